"""Tables of another trainer's settings, and how a table is gone through.

A row says what one old setting is here. The tables are data: a setting that is new here needs one
new row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dreambooth_core.config.concept import Concept
from dreambooth_core.config.control import FieldSpec, field_specs
from dreambooth_core.config.imports.report import (
    ABOUT,
    AS_IT_WAS,
    CHANGED,
    KEPT,
    LEFT,
    MOST_UNKNOWN,
    REVIVED,
    TRANSLATED,
    UNKNOWN,
    UNUSABLE,
    YOURS,
    Import,
)
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.serialize import FALSE_WORDS, TRUE_WORDS, is_text
from dreambooth_core.config.validate import check_value

TRAINING = {spec.path: spec for spec in field_specs(TrainConfig)}
CONCEPT = {spec.path: spec for spec in field_specs(Concept)}
PATH_KINDS = ("folder", "new_folder", "checkpoint")
NOTHING_THERE = "Nothing is set there."
AS_THERE = "Set so that it does what it did there."
ACTS_HERE = "Here it acts."


@dataclass(frozen=True)
class Old:
    """The settings of a file by their names, read with care, and what is known beside them."""

    values: Mapping[str, Any]
    behaviour: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def number(self, name: str, default: float) -> float:
        """Return a number, or what it is where the file does not say."""
        value = as_number(self.values.get(name))
        return default if value is None else value

    def flag(self, name: str, default: bool = False) -> bool:
        """Return whether something is switched on."""
        value = as_flag(self.values.get(name))
        return default if value is None else value

    def text(self, name: str, default: str = "") -> str:
        """Return a text; anything else counts as not said."""
        value = self.values.get(name)
        return value if is_text(value) else default


@dataclass(frozen=True)
class Taken:
    """A value that was taken over in a way of its own."""

    value: Any
    verdict: str
    words: str


@dataclass(frozen=True)
class Skipped:
    """A value that is not taken over, and why."""

    words: str
    verdict: str = LEFT


Reader = Callable[[Any, Old], Any]


@dataclass(frozen=True)
class Row:
    """What an old setting is here.

    `new` is the path of ours, "" for none. `read` turns the old value into ours, `before` into
    what acts as the old one really did; each may return Taken or Skipped.
    """

    old: str
    new: str
    verdict: str
    words: str = ""
    read: Reader | None = None
    before: Reader | None = None
    hidden: bool = False


def same(old: str, new: str, words: str = "") -> Row:
    """A setting that means here what it meant there."""
    return Row(old, new, KEPT, words)


def turned(old: str, new: str, read: Reader, words: str = "") -> Row:
    """A setting that is written in another way here."""
    return Row(old, new, TRANSLATED, words, read)


def changed(old: str, new: str, words: str, read: Reader | None = None, **more: Any) -> Row:
    """A setting that means something a little else here."""
    return Row(old, new, CHANGED, words, read, **more)


def revived(old: str, new: str, words: str, before: Reader, read: Reader | None = None) -> Row:
    """A setting that did nothing there, and does what its label says here."""
    return Row(old, new, REVIVED, words, read, before)


def dropped(old: str, words: str) -> Row:
    """A setting that has nothing like it here."""
    return Row(old, "", LEFT, words)


def all_dropped(words: str, names: str) -> list[Row]:
    """Several settings that have nothing like them here, for one reason."""
    return [dropped(name, words) for name in names.split()]


def told(old: str, words: str, hidden: bool = False) -> Row:
    """What is no setting of a training; `hidden` is a secret that no report shows."""
    return Row(old, "", ABOUT, words, hidden=hidden)


def go_through(
    rows: Iterable[Row],
    old: Old,
    found: Import,
    specs: Mapping[str, FieldSpec] = TRAINING,
    prefix: str = "",
) -> dict[str, Any]:
    """Return the values of ours that the old ones become, and add a line for each to the report."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row.old, []).append(row)
    taken: dict[str, Any] = {}
    unknown = [name for name in old.values if name not in by_name]
    for name, named in by_name.items():
        if name in old.values:
            _take_all(named, old, found, specs, prefix, taken)
    for name in unknown[:MOST_UNKNOWN]:
        # Its value is not shown: this may be no settings file at all, and a secret one.
        found.add(prefix + str(name), "...", UNKNOWN, "Neither there nor here is it a setting.")
    if len(unknown) > MOST_UNKNOWN:
        more = len(unknown) - MOST_UNKNOWN
        found.add(f"{prefix}... and {more} more", "...", UNKNOWN, "None of them is a setting.")
    return taken


def _take_all(
    rows: Iterable[Row],
    old: Old,
    found: Import,
    specs: Mapping[str, FieldSpec],
    prefix: str,
    taken: dict[str, Any],
) -> None:
    """Take an old setting by each of its rows; those that do not concern it are not told."""
    before = len(found.lines)
    for row in rows:
        _take(row, old, found, specs, prefix, taken)
    added = found.lines[before:]
    told = [line for line in added if line.verdict != LEFT] or added[:1]
    found.lines[before:] = told


def _take(
    row: Row,
    old: Old,
    found: Import,
    specs: Mapping[str, FieldSpec],
    prefix: str,
    taken: dict[str, Any],
) -> None:
    value, name = old.values[row.old], prefix + row.old
    given = "(not shown)" if row.hidden else value
    if not row.new:
        found.add(name, given, row.verdict, row.words)
        return
    if value is None or value == "":
        found.add(name, given, LEFT, NOTHING_THERE)
        return
    result = _result(row, value, old)
    if isinstance(result, Skipped):
        found.add(name, given, result.verdict, result.words)
        return
    spec = specs[row.new]
    fitted = fit(spec, result.value)
    problem = _problem(spec, fitted)
    if problem:
        words = f"{problem} The setting stays as it is."
        found.add(name, given, UNUSABLE, words, ours(prefix, row.new))
        return
    taken[row.new] = fitted
    verdict = result.verdict
    if verdict in (KEPT, TRANSLATED):
        verdict = TRANSLATED if _differs(value, fitted) else KEPT
    found.add(name, given, verdict, result.words, ours(prefix, row.new), fitted)


def ours(prefix: str, path: str) -> str:
    """Return the full path of a setting: that of a concept begins with "concepts.0."."""
    number = prefix.partition("[")[2].partition("]")[0]
    return f"concepts.{number}.{path}" if number and path in CONCEPT else path


def _result(row: Row, value: Any, old: Old) -> Taken | Skipped:
    """Return what becomes of a value under the behaviour that was chosen."""
    labelled = row.read(value, old) if row.read else value
    before = row.before(value, old) if row.before else labelled
    as_before = old.behaviour == AS_IT_WAS
    result = before if as_before else labelled
    if isinstance(result, Taken | Skipped):
        return result
    if row.before and as_number(labelled) is not None and as_number(labelled) == as_number(before):
        return Taken(result, KEPT, "")  # whatever it did there makes no difference
    return Taken(result, row.verdict, _words(row, as_before))


def _words(row: Row, as_before: bool) -> str:
    if as_before and row.before:
        return f"{row.words} {AS_THERE}".strip()
    acts = ACTS_HERE if row.verdict == REVIVED else ""
    return f"{row.words} {acts}".strip()


def fit(spec: FieldSpec, value: Any) -> Any:
    """Return a value in the type of a setting, or as it is where it has none of them.

    Other trainers write numbers and switches as texts at times.
    """
    if spec.type is bool:
        flag = as_flag(value)
        return value if flag is None else flag
    if spec.type in (int, float):
        number = as_number(value)
        if number is None or (spec.type is int and number != int(number)):
            return value
        return spec.type(number)
    if spec.type is str and isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}"
    return value


def _problem(spec: FieldSpec, value: Any) -> str:
    """Return what is wrong with a value for a setting, or ""."""
    wanted = {bool: "on or off", int: "a whole number", float: "a number", str: "a text"}
    items = value if spec.type == list[str] else [value]
    kind = str if spec.type == list[str] else spec.type
    if not isinstance(items, list) or not all(_is_a(kind, item) for item in items):
        return f"It is not {wanted[kind]}."
    if spec.control.kind in PATH_KINDS:
        return ""
    problems = (check_value(spec, item, spec.path) for item in items)
    first = next((problem for problem in problems if problem), None)
    return f"Here it {first.message} {first.remedy}" if first else ""


def _is_a(kind: type, item: Any) -> bool:
    return is_text(item) if kind is str else type(item) is kind


def _differs(value: Any, fitted: Any) -> bool:
    """Return whether a value is written in another way here."""
    return bool(value != fitted or isinstance(value, bool) != isinstance(fitted, bool))


def as_number(value: Any) -> float | None:
    """Return a number, also one that is written as a text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number):
        return None
    return int(number) if number == int(number) and abs(number) < 1e15 else number


def as_flag(value: Any) -> bool | None:
    """Return a switch, also as a text, a number or a list of one switch; None for anything else."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower() if isinstance(value, int | float | str) else ""
    if word in TRUE_WORDS:
        return True
    return False if word in FALSE_WORDS else None


def yours(words: str) -> Skipped:
    """What the person has to see to."""
    return Skipped(words, YOURS)
