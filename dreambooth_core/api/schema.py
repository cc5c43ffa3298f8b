"""What may be sent to start a job, as JSON Schema made from the settings' own descriptions."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args, get_origin, get_type_hints

from starlette.responses import Response

from dreambooth_core.api.answers import ok
from dreambooth_core.api.edge import Call, Endpoint
from dreambooth_core.config.control import Control, field_specs, section_specs
from dreambooth_core.config.schema import JOB_CONFIGS
from dreambooth_core.job.commands import COMMANDS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TYPE_NAMES = {bool: "boolean", int: "integer", float: "number", str: "string"}


def show_schema(call: Call) -> Response:
    """Show the JSON Schema of every job's settings, with labels, help, defaults and ranges."""
    return ok(job_schema())


def job_schema(reference: str = "#/$defs/") -> dict[str, Any]:
    """Return the schema of what starts a job: {"kind", "config"}, one of the kinds there are."""
    kinds = [
        {
            "type": "object",
            "title": kind,
            "description": (cls.__doc__ or "").strip(),
            "properties": {"kind": {"const": kind}, "config": {"$ref": reference + cls.__name__}},
            "required": ["kind", "config"],
            "additionalProperties": False,
        }
        for kind, cls in JOB_CONFIGS.items()
    ]
    return {
        "$schema": DIALECT,
        "title": "A job",
        "oneOf": kinds,
        "$defs": definitions(reference),
    }


def command_schema() -> dict[str, Any]:
    """Return the schema of what is asked of a running job."""
    meanings = "; ".join(f"{name}: {meaning}" for name, meaning in COMMANDS.items())
    return {
        "type": "object",
        "properties": {
            "command": {"type": "string", "enum": list(COMMANDS), "description": meanings},
            "arguments": {"type": "object"},
        },
        "required": ["command"],
    }


def definitions(reference: str = "#/$defs/") -> dict[str, Any]:
    """Return the schema of every class of settings, its groups and concepts included, by name."""
    found: dict[str, Any] = {}
    waiting: list[type] = list(JOB_CONFIGS.values())
    while waiting:
        cls = waiting.pop(0)
        if cls.__name__ not in found:
            found[cls.__name__] = class_schema(cls, reference)
            waiting += [inner for hint in get_type_hints(cls).values() for inner in _classes(hint)]
    return found


def class_schema(cls: type, reference: str = "#/$defs/") -> dict[str, Any]:
    """Return the schema of one class of settings; its groups are referred to."""
    specs = {spec.path: spec for spec in field_specs(cls)}
    groups = {group.name: group for group in section_specs(cls)}
    properties = {}
    for field in dataclasses.fields(cls):
        if field.name in groups:
            described = groups[field.name].control
            properties[field.name] = {
                "$ref": reference + groups[field.name].type.__name__,
                **_words(described),
            }
        else:
            spec = specs[field.name]
            properties[field.name] = _value_schema(spec.type, spec.control, reference)
            if not spec.required:
                properties[field.name]["default"] = spec.default
    return {
        "type": "object",
        "title": cls.__name__,
        "description": (cls.__doc__ or "").strip(),
        "properties": properties,
        "required": [name for name, spec in specs.items() if spec.required and "." not in name],
        "additionalProperties": False,
    }


def _value_schema(wanted: Any, control: Control, reference: str) -> dict[str, Any]:
    rules: dict[str, Any] = {}
    if control.choices:
        rules["enum"] = list(control.choices)
    if control.minimum is not None:
        rules["minimum"] = control.minimum
    if control.maximum is not None:
        rules["maximum"] = control.maximum
    if get_origin(wanted) is list:
        return {"type": "array", "items": _item(wanted, rules, reference), **_words(control)}
    return {"type": TYPE_NAMES[wanted], **rules, **_words(control)}


def _item(wanted: Any, rules: dict[str, Any], reference: str) -> dict[str, Any]:
    (inner,) = get_args(wanted)
    if dataclasses.is_dataclass(inner):
        return {"$ref": reference + inner.__name__}  # type: ignore[union-attr]
    return {"type": TYPE_NAMES[inner], **rules}


def _words(control: Control) -> dict[str, Any]:
    """Return what a page needs to show the setting; `x-` marks what JSON Schema has no word for."""
    extra = {
        "x-unit": control.unit,
        "x-step": control.step,
        "x-kind": "" if control.kind == "section" else control.kind,
        "x-advanced": control.advanced,
    }
    return {
        "title": control.label,
        "description": control.help,
        **{name: value for name, value in extra.items() if value},
    }


def _classes(hint: Any) -> list[type]:
    parts = get_args(hint) or (hint,)
    return [part for part in parts if dataclasses.is_dataclass(part) and isinstance(part, type)]


ENDPOINTS = (Endpoint("GET", "/schema", show_schema),)
