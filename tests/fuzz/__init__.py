"""Fuzzing of everything that reads what others wrote: `python -m tests.fuzz --help`."""

from __future__ import annotations

from tests.fuzz import checkpoints, pictures, rest, runs, settings, texts
from tests.fuzz.harness import Target

TARGETS: dict[str, Target] = {
    "header": checkpoints.header,
    "archive": checkpoints.archive,
    "side": checkpoints.side,
    "captions": texts.captions,
    "names": texts.names,
    "configs": settings.configs,
    "presets": settings.presets,
    "kohya": settings.kohya,
    "d8ahazard": settings.d8ahazard,
    "events": runs.events,
    "commands": runs.commands,
    "rest": rest.rest,
    "states": runs.states,
    "pictures": pictures.pictures,
}
"""What can be fuzzed."""
