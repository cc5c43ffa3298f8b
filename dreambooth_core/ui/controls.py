"""Controls made from the schema: a setting in, a component with its label, help and range out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import gradio as gr

from dreambooth_core.config.control import Control, FieldSpec, field_specs, section_specs
from dreambooth_core.config.serialize import from_dict, put_value
from dreambooth_core.config.settings_store import value_at
from dreambooth_core.errors import ConfigError, Problem
from dreambooth_core.ui.gradio_compat import make, visibility

C = TypeVar("C")

MOST_SLIDER_POSITIONS = 1000
LINE_BREAK = "\u23ce"
"""Stands for a line break inside one prompt of a list, whose prompts are on lines of their own."""
DEVICES = ("auto", "cpu", "cuda")


class Fields(Generic[C]):
    """The components of one configuration class, each setting at most once."""

    def __init__(self, config_class: type[C], prefix: str) -> None:
        """Make no component yet; `prefix` begins the elem_id of each."""
        self.config_class = config_class
        self.prefix = prefix
        self.specs = {spec.path: spec for spec in field_specs(config_class)}
        self._placed: dict[str, Any] = {}

    def place(self, *paths_or_sections: str, choices: Sequence[str] | None = None) -> None:
        """Make the components of settings or whole sections inside the current container.

        `choices` are those of a setting whose values are found rather than written in the schema.
        """
        for name in paths_or_sections:
            for path in self.paths(name):
                if path in self._placed:
                    raise ValueError(f"{path} is placed twice")
                spec = self.specs[path]
                self._placed[path] = _component(spec, self.described(path), choices)

    def paths(self, name: str) -> list[str]:
        """Return the settings of a section, or the one setting that is named."""
        if name in self.specs:
            return [name]
        if name not in {section.name for section in section_specs(self.config_class)}:
            raise KeyError(f"{self.config_class.__name__} has no {name}")
        return [spec.path for spec in self.specs.values() if spec.section == name]

    def described(self, path: str) -> dict[str, Any]:
        """Return what every component of a setting has: its label, its help and its id."""
        spec = self.specs[path]
        return {
            "label": spec.control.label,
            "info": _info(spec),
            "elem_id": f"dreambooth_{self.prefix}_{path.replace('.', '_')}",
        }

    def components(self) -> dict[str, Any]:
        """Return the placed components by the paths of their settings."""
        return dict(self._placed)

    def data(self, values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
        """Return the values as JSON; raises ConfigError naming numbers that are missing."""
        data: dict[str, Any] = {}
        problems = []
        for path, component in self._placed.items():
            spec, value = self.specs[path], values[component]
            if value is None and spec.type in (int, float):
                problems.append(Problem(prefix + path, "is empty.", "Give a number."))
                continue
            put_value(data, self.config_class, path, _from_component(spec, value))
        if problems:
            raise ConfigError(problems)
        return data

    def read(self, values: Mapping[Any, Any], more: Mapping[str, Any] | None = None) -> C:
        """Return the configuration that is shown, with `more` that has no component of its own.

        Raises ConfigError naming the settings that cannot be used.
        """
        return from_dict(self.config_class, {**self.data(values), **(more or {})})

    def show(self, config: C) -> dict[Any, Any]:
        """Return the updates that show a configuration."""
        return {
            component: gr.update(value=_to_component(self.specs[path], value_at(config, path)))
            for path, component in self._placed.items()
        }

    def filter(self, is_shown: Callable[[FieldSpec], bool]) -> dict[Any, Any]:
        """Return the updates that hide all settings but some."""
        return {
            component: gr.update(visible=visibility(is_shown(self.specs[path])))
            for path, component in self._placed.items()
        }


def side_button(text: str, name: str, variant: str = "secondary", min_width: int = 90) -> Any:
    """Return a small button that stands beside what it belongs to; `name` ends its elem_id."""
    look = {"variant": variant, "size": "sm", "scale": 0, "min_width": min_width}
    return make(gr.Button, value=text, elem_id=f"dreambooth_{name}", **look)


def _component(spec: FieldSpec, described: Mapping[str, Any], choices: Sequence[str] | None) -> Any:
    control = spec.control
    options = {**described, "visible": visibility(not control.advanced)}
    # Left out, it would be the first choice in some versions.
    options["value"] = None if spec.required else _to_component(spec, spec.default)
    if spec.type is bool:
        return make(gr.Checkbox, **options)
    if control.choices:
        return make(gr.Dropdown, choices=list(control.choices), **options)
    if spec.type in (int, float):
        return _number(spec, options)
    found = choices if choices is not None else DEVICES if control.kind == "device" else None
    if found is not None:
        free = control.kind in ("device", "checkpoint", "lora")
        return make(gr.Dropdown, choices=list(found), allow_custom_value=free, **options)
    lines = {"prompt": 2}.get(control.kind, 1) + (spec.type == list[str])
    return make(gr.Textbox, lines=lines, **options)


def _number(spec: FieldSpec, options: Mapping[str, Any]) -> Any:
    control = spec.control
    if is_slider(control):
        limits = {"minimum": control.minimum, "maximum": control.maximum, "step": control.step}
        return make(gr.Slider, **limits, **options)
    # Its limits are ours to check: Gradio's own message would not say which setting is meant.
    if spec.type is int:
        return make(gr.Number, precision=0, **options)
    return make(gr.Number, **options)


def is_slider(control: Control) -> bool:
    """Return whether a setting's range has few enough positions to drag through."""
    low, high, step = control.minimum, control.maximum, control.step
    if low is None or high is None or not step:
        return False
    positions = (high - low) / step
    return positions <= MOST_SLIDER_POSITIONS and abs(positions - round(positions)) < 1e-6


def _info(spec: FieldSpec) -> str:
    control = spec.control
    text = control.help
    if spec.type == list[str]:
        text = f"{text} One per line."
    if control.minimum is None or control.maximum is None:
        return text
    span = f"{_plain(control.minimum)} to {_plain(control.maximum)} {control.unit}".rstrip()
    return f"{text} ({span})"


def _plain(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def _to_component(spec: FieldSpec, value: Any) -> Any:
    if spec.type == list[str]:
        return "\n".join(text.replace("\n", LINE_BREAK) for text in value)
    return value


def _from_component(spec: FieldSpec, value: Any) -> Any:
    if spec.type == list[str]:
        lines = (value or "").split("\n")
        return [line.replace(LINE_BREAK, "\n") for line in lines if line.strip()]
    if spec.type is str:
        return value or ""
    return value
