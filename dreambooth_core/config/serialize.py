"""Settings as JSON and back. Whatever is not understood is named, never dropped or bent."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, get_args, get_origin

from dreambooth_core.config.control import METADATA_KEY, field_specs, hints_of
from dreambooth_core.config.renames import of_today, with_version
from dreambooth_core.config.text_files import read_at_most
from dreambooth_core.errors import ConfigError, InputError, Problem
from dreambooth_core.job import plain_json
from dreambooth_core.job.checkpoint_files import is_diffusers_model
from dreambooth_core.job.formats import KEY

C = TypeVar("C")

MOST_BYTES = 4_000_000
"""A settings file with some hundred concepts has a few hundred thousand."""
MOST_SHOWN = 200

TRUE_WORDS = ("true", "yes", "on", "1")
FALSE_WORDS = ("false", "no", "off", "0")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as plain JSON values."""
    return dataclasses.asdict(config)


def to_kept(config: Any) -> dict[str, Any]:
    """Return a configuration as files keep it: plain JSON values that say their version."""
    return with_version(to_dict(config))


def from_dict(cls: type[C], data: Mapping[str, Any]) -> C:
    """Return a configuration; raises ConfigError naming every unknown, mistyped or missing one.

    Settings that say an older version are those of today then; without a version they are it
    already. Raises NewerVersionError for a newer one.
    """
    problems: list[Problem] = []
    if isinstance(data, Mapping) and KEY in data:
        data = of_today(data, cls.__name__, "that are given")
    config = _build(cls, data, "", problems)
    if problems:
        raise ConfigError(problems)
    return config  # type: ignore[no-any-return]


def load_json(path: Path, cls: type[C]) -> C:
    """Return the configuration in a JSON file; raises InputError or ConfigError."""
    return from_dict(cls, read_kept(path, cls))


def read_kept(path: Path, cls: type) -> dict[str, Any]:
    """Return the settings in a file, as today's version has them; raises InputError or ConfigError.

    Those without a version were written before there were any.
    """
    return of_today(read_json_object(path), cls.__name__, path)


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a settings file; raises InputError naming the file and place."""
    data = read_at_most(path, MOST_BYTES, "settings file")
    try:
        value = plain_json.parse(data)
    except ValueError as error:
        raise InputError(
            f"The settings file {path} is not JSON: {error}.", remedy="Correct it there."
        ) from error
    if not isinstance(value, dict):
        raise InputError(
            f"The settings file {path} holds a {type(value).__name__}, not settings.",
            remedy='It should look like {"model": "name", ...}.',
        )
    return value


def apply_set(config: C, assignment: str) -> C:
    """Return the configuration with one setting changed, given as "optimizer.name=adamw"."""
    data = to_dict(config)
    set_value(data, type(config), assignment)
    return from_dict(type(config), data)


def set_value(data: dict[str, Any], cls: type, assignment: str) -> None:
    """Change one setting in a configuration's JSON form, given as "concepts.0.class_token=dog"."""
    path, equals, text = assignment.partition("=")
    if not equals:
        raise ConfigError([Problem(path, "has no value.", "Write it as section.field=value.")])
    put_value(data, cls, path.strip(), parse_text(path.strip(), type_of(cls, path.strip()), text))


def put_value(data: dict[str, Any], cls: type, path: str, value: Any) -> None:
    """Put a value at a dotted path of a configuration's JSON form, making the groups on the way."""
    type_of(cls, path)
    parts = path.split(".")
    place: Any = data
    for index, part in enumerate(parts[:-1]):
        place = _step_into(place, part, parts[index + 1], path)
    place[parts[-1]] = value


def type_of(cls: type, path: str) -> Any:
    """Return the type of the setting at a dotted path; raises ConfigError if there is none."""
    current: Any = cls
    for position, part in enumerate(path.split(".")):
        if get_origin(current) is list and part.isdecimal():
            current = get_args(current)[0]
            continue
        hints = hints_of(current) if dataclasses.is_dataclass(current) else {}  # type: ignore[arg-type]
        if part not in hints:
            here = ".".join(path.split(".")[:position])
            raise ConfigError([_unknown(cls, current, here, part)])
        current = hints[part]
    return current


def parse_text(path: str, wanted: Any, text: str) -> Any:
    """Return the value that a person typed for a setting; raises ConfigError if it is none."""
    if wanted is str:
        return text
    if wanted is bool:
        if text.strip().lower() in TRUE_WORDS + FALSE_WORDS:
            return text.strip().lower() in TRUE_WORDS
        raise ConfigError([_mistyped(path, wanted, text)])
    if wanted == list[str] and not text.lstrip().startswith("["):
        return [text] if text else []
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return float(text) if wanted in (int, float) else json.loads(text)
    except ValueError as error:
        raise ConfigError([_mistyped(path, wanted, text)]) from error


def with_absolute_paths(config: C, base: Path) -> C:
    """Return the configuration with every path made absolute, counted from `base`.

    A checkpoint or LoRA may also be named by its name in the WebUI's folder; such names stay.
    """
    changed = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value, kind = getattr(config, field.name), field.metadata[METADATA_KEY].kind
        changed[field.name] = _absolute(value, kind, base)
    return dataclasses.replace(config, **changed)  # type: ignore[type-var]


def _absolute(value: Any, kind: str, base: Path) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return with_absolute_paths(value, base)
    if isinstance(value, list):
        return [_absolute(item, kind, base) for item in value]
    return _absolute_path(value, kind, base) if isinstance(value, str) else value


def _absolute_path(text: str, kind: str, base: Path) -> str:
    """Return a folder's or an existing file's path in full; other texts as they are."""
    path = base / Path(text).expanduser()
    is_path = kind in ("folder", "new_folder")
    if kind in ("checkpoint", "lora"):
        is_path = path.is_file() or is_diffusers_model(path)
    return str(path.absolute()) if is_path and text.strip() else text


def _build(cls: type, data: Any, path: str, problems: list[Problem]) -> Any:
    if not isinstance(data, Mapping):
        problems.append(_mistyped(path, cls, data))
        return None
    hints = hints_of(cls)
    before = len(problems)
    values = {}
    for name, value in data.items():
        if name in hints:
            values[name] = _convert(hints[name], value, _join(path, name), problems)
        else:
            problems.append(_unknown(cls, cls, path, str(name)))
    for spec in field_specs(cls):
        if spec.required and spec.path not in data:
            problems.append(Problem(_join(path, spec.path), "must be given.", spec.control.help))
    return cls(**values) if len(problems) == before else None


def _convert(wanted: Any, value: Any, path: str, problems: list[Problem]) -> Any:
    if dataclasses.is_dataclass(wanted):
        return _build(wanted, value, path, problems)  # type: ignore[arg-type]
    if get_origin(wanted) is list:
        if not isinstance(value, list):
            problems.append(_mistyped(path, wanted, value))
            return None
        inner = get_args(wanted)[0]
        return [_convert(inner, v, f"{path}.{i}", problems) for i, v in enumerate(value)]
    accept = _SCALARS[wanted]
    if not accept(value):
        problems.append(_mistyped(path, wanted, value))
        return None
    return wanted(value)


def _is_int(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and value.is_integer()
    )


def _is_float(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max  # False for NaN too; a whole number may be larger


def is_text(value: Any) -> TypeGuard[str]:
    """Whether it is a text that a file can hold: no NUL, and no half of a surrogate pair."""
    return isinstance(value, str) and not _NO_TEXT.search(value)


_SCALARS: dict[type, Callable[[Any], bool]] = {
    bool: lambda value: isinstance(value, bool),
    int: _is_int,
    float: _is_float,
    str: is_text,
}

_TYPE_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list[str]: "a list of texts",
}


def _mistyped(path: str, wanted: Any, value: Any) -> Problem:
    if get_origin(wanted) is list and wanted not in _TYPE_WORDS:
        words = "a list"
    else:
        words = _TYPE_WORDS.get(wanted, "a group of settings")
    shown = json.dumps(value, default=str)
    if len(shown) > MOST_SHOWN:
        shown = shown[:MOST_SHOWN] + "..."
    if wanted is str and isinstance(value, str):
        return Problem(path, f"is {shown}: no text holds such a character.", "Take it out.")
    verb = "is" if path else "The settings are"
    return Problem(path, f"{verb} {shown}, which is not {words}.")


def _unknown(root: type, cls: Any, path: str, name: str) -> Problem:
    name = name if len(name) <= MOST_SHOWN else name[:MOST_SHOWN] + "..."
    siblings = list(hints_of(cls)) if dataclasses.is_dataclass(cls) else []  # type: ignore[arg-type]
    close = _closest(name, (_join(path, sibling) for sibling in siblings))
    if not close:
        close = _closest(name, (spec.path for spec in field_specs(root)))
    remedy = f"Did you mean {close}?" if close else f"Known here: {', '.join(siblings)}."
    return Problem(_join(path, name), "is not a setting.", remedy)


def _closest(name: str, paths: Iterable[str]) -> str:
    by_leaf = {path.rpartition(".")[2]: path for path in paths}
    found = difflib.get_close_matches(name, by_leaf, n=1, cutoff=0.6)
    return by_leaf[found[0]] if found else ""


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _step_into(place: Any, part: str, following: str, path: str) -> Any:
    if isinstance(place, list):
        index = int(part)
        if index > len(place):
            raise ConfigError([Problem(path, f"comes before there are {index} in the list.")])
        if index == len(place):
            place.append({})
        return place[index]
    return place.setdefault(part, [] if following.isdecimal() else {})
