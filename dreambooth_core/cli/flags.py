"""Command-line flags made from the schema, and settings made from the flags."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.config.control import FieldSpec, field_specs, number_text, section_specs
from dreambooth_core.config.schema import Concept, JobConfig, TrainConfig
from dreambooth_core.config.serialize import (
    from_dict,
    parse_text,
    put_value,
    read_kept,
    set_value,
)
from dreambooth_core.errors import ConfigError, Problem

CONCEPT_PREFIX = "concept."
COMMON_FLAGS = ("help", "config", "set", "json", "root")
LONG_ONLY = ("ema", "learning_rate", "lora", "previews", "unet")
"""Sections whose settings say too little without the section's name, such as `unet.train`."""


@dataclass(frozen=True)
class Flag:
    """One flag: its names without the dashes, the place it is stored and the setting it sets."""

    names: tuple[str, ...]
    dest: str
    group: str
    spec: FieldSpec


def flags_of(cls: type[JobConfig]) -> list[Flag]:
    """Return the flags of a job's settings; the last name alone is one too where it is clear."""
    named = [(spec.path, spec.section, spec) for spec in field_specs(cls) if _is_plain(spec)]
    if cls is TrainConfig:
        named += [(CONCEPT_PREFIX + s.path, "concept", s) for s in field_specs(Concept)]
    leaves = Counter(path.rpartition(".")[2] for path, _, _ in named)
    return [Flag(_names(path, group, leaves), path, group, spec) for path, group, spec in named]


def _names(path: str, group: str, leaves: Mapping[str, int]) -> tuple[str, ...]:
    leaf = path.rpartition(".")[2]
    clear = leaf != path and group not in LONG_ONLY and leaves[leaf] == 1
    short = [leaf] if clear and leaf not in COMMON_FLAGS else []
    return tuple(name.replace("_", "-") for name in (*short, path))


def add_flags(parser: argparse.ArgumentParser, cls: type[JobConfig]) -> None:
    """Add a job's flags to its parser, one help group per section."""
    groups = {"": parser.add_argument_group("General", (cls.__doc__ or "").strip())}
    if cls is TrainConfig:
        groups["concept"] = parser.add_argument_group(
            "Concept",
            "One subject or style to learn. For several, write them as a list under"
            ' "concepts" in a --config file.',
        )
    for section in section_specs(cls):
        groups[section.name] = parser.add_argument_group(
            section.control.label, section.control.help
        )
    for flag in flags_of(cls):
        _add_flag(groups[flag.group], flag)


def describe(spec: FieldSpec) -> str:
    """Return a setting's help text with its unit, range, choices and default."""
    control = spec.control
    facts = []
    if control.unit:
        facts.append(f"in {control.unit}")
    if control.minimum is not None and control.maximum is not None:
        facts.append(f"{number_text(control.minimum)} to {number_text(control.maximum)}")
    if control.choices:
        facts.append("one of " + ", ".join(control.choices))
    facts.append("must be given" if spec.required else f"default {_shown(spec.default)}")
    return f"{control.help} [{'; '.join(facts)}]"


def config_from(options: argparse.Namespace, cls: type[JobConfig]) -> JobConfig:
    """Return the settings: the --config file, then the flags, then each --set, later ones win."""
    data: dict[str, Any] = read_kept(Path(options.config), cls) if options.config else {}
    given: Mapping[str, Any] = vars(options)
    for flag in flags_of(cls):
        if flag.dest in given:
            put_value(data, cls, _place(flag, data), given[flag.dest])
    for assignment in options.set:
        set_value(data, cls, assignment)
    return from_dict(cls, data)


def _place(flag: Flag, data: Mapping[str, Any]) -> str:
    if not flag.dest.startswith(CONCEPT_PREFIX):
        return flag.dest
    if len(data.get("concepts") or []) > 1:
        raise ConfigError(
            [
                Problem(
                    flag.dest,
                    "does not say which concept of the settings file it means.",
                    f"Use --set concepts.0.{flag.spec.path}=VALUE, counted from 0.",
                )
            ]
        )
    return f"concepts.0.{flag.spec.path}"


def _add_flag(group: argparse._ArgumentGroup, flag: Flag) -> None:
    names = [f"--{name}" for name in flag.names]
    text = describe(flag.spec).replace("%", "%%")
    options: dict[str, Any] = {"dest": flag.dest, "default": argparse.SUPPRESS, "help": text}
    if flag.spec.type is bool:
        group.add_argument(*names, action=argparse.BooleanOptionalAction, **options)
    elif flag.spec.type == list[str]:
        group.add_argument(*names, action="extend", nargs="+", metavar="TEXT", **options)
    else:
        reader = _reader(flag)
        group.add_argument(*names, type=reader, metavar=_metavar(flag.spec), **options)


def _reader(flag: Flag) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return parse_text(flag.dest, flag.spec.type, text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(error.message) from error

    return read


def _metavar(spec: FieldSpec) -> str:
    words = {"folder": "FOLDER", "new_folder": "FOLDER", "checkpoint": "FILE", "model": "NAME"}
    words["lora"] = "FILE"
    by_type = {int: "N", float: "X", str: "TEXT"}
    return words.get(spec.control.kind) or by_type[spec.type]


def _is_plain(spec: FieldSpec) -> bool:
    return spec.type in (bool, int, float, str) or spec.type == list[str]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value in ("", []):
        return "empty"
    return number_text(value) if isinstance(value, int | float) else str(value)
