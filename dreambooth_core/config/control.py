"""How a setting is described: its default, label, help, range and unit, beside its type."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, get_type_hints

METADATA_KEY = "control"


class _Required:
    """The default of a setting that must be given."""

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = _Required()


@dataclasses.dataclass(frozen=True)
class Control:
    """What a person sees of a setting; the command line, the page and the docs all use it."""

    label: str
    help: str
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    unit: str = ""
    choices: tuple[str, ...] = ()
    advanced: bool = False
    kind: str = ""
    """What the value means: "folder", "new_folder", "checkpoint", "lora", "model", "new_model",
    "run", "file_name", "prompt" or "device"; "section" for a group of settings; "" for anything
    else."""
    source: str = ""
    """Who described what it does, with the paper's number if there is one."""


@dataclasses.dataclass(frozen=True)
class FieldSpec:
    """One setting of a configuration, with its dotted path."""

    path: str
    name: str
    type: Any
    default: Any
    control: Control

    @property
    def section(self) -> str:
        """The name of the group that the setting stands in; "" for the top level."""
        return self.path.rpartition(".")[0]

    @property
    def required(self) -> bool:
        """Whether the setting must be given."""
        return isinstance(self.default, _Required)


@dataclasses.dataclass(frozen=True)
class SectionSpec:
    """A named group of settings."""

    name: str
    type: type
    control: Control


def control(
    default: Any,
    label: str,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    step: float | None = None,
    unit: str = "",
    choices: Sequence[str] | None = None,
    advanced: bool = False,
    kind: str = "",
    source: str = "",
) -> Any:
    """Return a dataclass field that carries its own description; REQUIRED means "no default"."""
    described = Control(
        label, help, minimum, maximum, step, unit, tuple(choices or ()), advanced, kind, source
    )
    metadata = {METADATA_KEY: described}
    if isinstance(default, _Required):
        return dataclasses.field(metadata=metadata)
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(cls: type, label: str, help: str) -> Any:
    """Return a dataclass field that holds a group of settings, made with the group's defaults."""
    described = Control(label, help, kind="section")
    return dataclasses.field(default_factory=cls, metadata={METADATA_KEY: described})


def number_text(value: float) -> str:
    """Return a number as a person writes it: whole ones in full, others short."""
    return str(value) if isinstance(value, int) else f"{value:g}"


@cache
def hints_of(cls: type) -> Mapping[str, Any]:
    """Return the types of a class's fields; worked out once, as that takes a millisecond."""
    return MappingProxyType(get_type_hints(cls))


def field_specs(cls: type) -> list[FieldSpec]:
    """Return every setting of a configuration class in order, those of its sections included."""
    specs: list[FieldSpec] = []
    hints = hints_of(cls)
    for field in dataclasses.fields(cls):
        described: Control = field.metadata[METADATA_KEY]
        if described.kind == "section":
            inner = field_specs(hints[field.name])
            specs += [dataclasses.replace(s, path=f"{field.name}.{s.path}") for s in inner]
        else:
            default = _default(field)
            specs.append(FieldSpec(field.name, field.name, hints[field.name], default, described))
    return specs


def section_specs(cls: type) -> list[SectionSpec]:
    """Return the groups of a configuration class in order."""
    hints = hints_of(cls)
    return [
        SectionSpec(field.name, hints[field.name], field.metadata[METADATA_KEY])
        for field in dataclasses.fields(cls)
        if field.metadata[METADATA_KEY].kind == "section"
    ]


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED
