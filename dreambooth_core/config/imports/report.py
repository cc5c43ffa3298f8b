"""What an import found: settings, concepts, and a line for everything that the file says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

AS_LABELLED = "labels"
AS_IT_WAS = "as it was"
BEHAVIOURS = {
    AS_LABELLED: "Do what the labels say",
    AS_IT_WAS: "Do what it did there",
}
"""Where a control of another trainer did something else than it said, one must choose."""

UNUSABLE = "cannot be used"
YOURS = "left to you"
REVIVED = "never worked there"
CHANGED = "changed meaning"
TRANSLATED = "translated"
KEPT = "kept"
LEFT = "not taken over"
ABOUT = "no setting"
UNKNOWN = "unknown"
VERDICTS = (UNUSABLE, YOURS, UNKNOWN, REVIVED, CHANGED, TRANSLATED, KEPT, LEFT, ABOUT)
"""In the order of how much they ask of the person."""

LONGEST_VALUE = 200
MOST_UNKNOWN = 50


@dataclass(frozen=True)
class Line:
    """What became of one thing in the file: its old name and value, the new ones, and why."""

    old: str
    old_value: str
    new: str
    new_value: str
    verdict: str
    words: str = ""


@dataclass(frozen=True)
class Snapshot:
    """Saved weights of another trainer's run, which a model can be made from."""

    label: str
    source: str


@dataclass(frozen=True)
class FoundModel:
    """Another trainer's model folder: its name, and what a new model can be made from."""

    name: str
    folder: str
    sources: tuple[Snapshot, ...]
    has_ema: bool
    images_seen: int
    epochs: int


@dataclass
class Import:
    """What was read from a file, a folder or a text."""

    origin: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    concepts: list[dict[str, Any]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    model: FoundModel | None = None

    def add(
        self, old: str, value: Any, verdict: str, words: str, new: str = "", taken: Any = ""
    ) -> None:
        """Add a line to the report."""
        self.lines.append(Line(shortened(old), shown(value), new, shown(taken), verdict, words))


def in_order(lines: Sequence[Line]) -> list[Line]:
    """Return the lines with those first that ask most of the person."""
    return sorted(lines, key=lambda line: VERDICTS.index(line.verdict))


def summary(found: Import) -> str:
    """Return the report in one sentence: how many settings were kept, translated and so on."""
    counts = Counter(line.verdict for line in found.lines)
    parts = [f"{counts[verdict]} {verdict}" for verdict in reversed(VERDICTS) if counts[verdict]]
    return f"{found.name}, {found.origin}: {', '.join(parts)}."


def shown(value: Any) -> str:
    """Return a value of a file as a person reads it, cut off where it is long."""
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return shortened(value)


def shortened(text: str) -> str:
    """Return a text without line breaks and other control characters, cut off where it is long."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text[: LONGEST_VALUE + 1])
    return plain if len(plain) <= LONGEST_VALUE else plain[: LONGEST_VALUE - 3] + "..."
