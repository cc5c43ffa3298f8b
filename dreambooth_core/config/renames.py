"""Settings of older versions: what they are called now, and which of them are gone.

Settings say their version wherever they are kept: in a model's folder, a run, a training state, a
preset. Those without one are of version 0. A version is one row of `CHANGES` per setting that it
renamed or took away; the next one is another tuple at its end.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.errors import ConfigError, Problem
from dreambooth_core.job.formats import KEY, Format, unchanged

ANY = "*"
"""In a path: each of a list, as in "concepts.*.class_steps"."""


@dataclass(frozen=True)
class Renamed:
    """A setting of a kind of job, such as TrainConfig, that has another place now."""

    of: str
    old: str
    new: str


@dataclass(frozen=True)
class Removed:
    """A setting that is gone: the value at which nothing is lost, and what to say at others."""

    of: str
    old: str
    harmless: Any
    remedy: str


Change = Renamed | Removed

CHANGES: tuple[tuple[Change, ...], ...] = ((),)
"""By version: the first only says its number."""


def settings_format() -> Format:
    """Return the format of settings: its steps are in `CHANGES`, as they need the kind of job."""
    return Format("The settings", (unchanged,) * len(CHANGES))


def with_version(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as they are kept: after their version."""
    return settings_format().stamped(values)


def of_today(values: Mapping[str, Any], of: str, path: Path | str = "") -> dict[str, Any]:
    """Return kept settings of a kind of job as today's version has them, without the version.

    Raises NewerVersionError naming the file, or ConfigError for a removed setting that was used.
    """
    version = settings_format().version_of(values, path)
    data = copy.deepcopy({name: value for name, value in values.items() if name != KEY})
    for changes in CHANGES[version:]:
        for change in changes:
            if change.of == of:
                _apply(change, data)
    return data


def paths_of_today(settings: Mapping[str, Any], version: int, of: str) -> dict[str, Any]:
    """Return settings by their dotted paths, as a preset has them, under today's paths.

    What counts for each of a list stands there without its place: "concepts.class_steps".
    """
    found = dict(settings)
    for changes in CHANGES[version:]:
        for change in (change for change in changes if change.of == of):
            old = change.old.replace(f".{ANY}", "")
            if old not in found:
                continue
            value = found.pop(old)
            if isinstance(change, Renamed):
                found[change.new.replace(f".{ANY}", "")] = value
            else:
                _refuse_unless_harmless(change, value)
    return found


def _apply(change: Change, data: dict[str, Any]) -> None:
    *groups, name = change.old.split(".")
    for place, numbers in list(_places(data, groups)):
        if name not in place:
            continue
        value = place.pop(name)
        if isinstance(change, Renamed):
            _put(data, change.new.split("."), numbers, value)
        else:
            _refuse_unless_harmless(change, value)


def _refuse_unless_harmless(change: Removed, value: Any) -> None:
    if value != change.harmless:
        words = f"is {value!r}, a setting that is there no more."
        raise ConfigError([Problem(change.old, words, change.remedy)])


def _places(
    place: Any, groups: Sequence[str], numbers: tuple[int, ...] = ()
) -> Iterator[tuple[MutableMapping[str, Any], tuple[int, ...]]]:
    """Yield the groups at a path that are there, and the numbers that stand for its stars."""
    if not groups:
        if isinstance(place, dict):
            yield place, numbers
        return
    first, *rest = groups
    if first == ANY and isinstance(place, list):
        for number, item in enumerate(place):
            yield from _places(item, rest, (*numbers, number))
    elif isinstance(place, dict) and first in place:
        yield from _places(place[first], rest, numbers)


def _put(data: dict[str, Any], path: Sequence[str], numbers: Sequence[int], value: Any) -> None:
    """Put a value at its new path; one that is there already stays."""
    place: Any = data
    left = list(numbers)
    for part in path[:-1]:
        place = place[left.pop(0)] if part == ANY else place.setdefault(part, {})
    place.setdefault(path[-1], value)
