"""The runs that a run goes on from: one training may be many runs, each from the one before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.job.events import (
    CheckpointSaved,
    Event,
    LoraSaved,
    Resumed,
    SampleSaved,
    StateSaved,
    StepDone,
    read_events,
)
from dreambooth_core.job.runs import events_path

READ_BYTES = 2**20
"""Read of a run's events at a time, so that a long run takes no more memory than a short one."""


@dataclass
class Earlier:
    """A run that was gone on from: of its events those up to `until` count; `offset` is read."""

    folder: Path
    until: int
    offset: int = 0

    def read(self) -> tuple[list[Event], bool]:
        """Return the next events that still count, and whether there may be more."""
        before = self.offset
        events, self.offset = read_events(events_path(self.folder), self.offset, READ_BYTES)
        return [event for event in events if self._counts(event)], self.offset > before

    def _counts(self, event: Event) -> bool:
        if isinstance(event, StepDone | SampleSaved | CheckpointSaved | LoraSaved | StateSaved):
            return 0 < event.step <= self.until
        return False


class EventsOfRuns:
    """Reads a run's events little by little; after one that tells of earlier runs come theirs."""

    def __init__(self, folder: Path) -> None:
        """Begin with the first event of the run in `folder`."""
        self._folder, self._offset = folder, 0
        self._earlier: list[Earlier] = []
        self._held: list[Event] = []

    def read(self) -> tuple[list[Event], bool, bool]:
        """Return the next events, whether they are an earlier run's, and if there may be more."""
        if self._earlier:
            events, more = self._earlier[0].read()
            if not more:
                del self._earlier[0]
            return events, True, True
        events, self._held = self._held, []
        if not events:
            before = self._offset
            events, self._offset = read_events(events_path(self._folder), before, READ_BYTES)
            if self._offset == before:
                return [], False, False
        return self._up_to_resumed(events), False, True

    def _up_to_resumed(self, events: list[Event]) -> list[Event]:
        """Return the events up to one that tells of earlier runs; the rest waits for theirs."""
        for number, event in enumerate(events, start=1):
            if isinstance(event, Resumed) and event.run_id != self._folder.name:
                self._earlier, self._held = earlier_runs(self._folder, event), events[number:]
                return events[:number]
        return events


def earlier_runs(folder: Path, resumed: Resumed) -> list[Earlier]:
    """Return the runs that the run in `folder` goes on from, oldest first; some may be gone."""
    found: list[Earlier] = []
    seen, until, before = {folder.name}, resumed.step, resumed
    while before.run_id not in seen and Path(before.run_id).name == before.run_id:
        seen.add(before.run_id)
        until = min(until, before.step)
        earlier = folder.parent / before.run_id
        found.append(Earlier(earlier, until))
        beginning = began_from(earlier)
        if beginning is None:
            break
        before = beginning
    return found[::-1]


def runs_before(folder: Path) -> list[str]:
    """Return the ids of the runs that the run in `folder` goes on from, oldest first."""
    resumed = began_from(folder)
    return [run.folder.name for run in earlier_runs(folder, resumed)] if resumed else []


def began_from(folder: Path) -> Resumed | None:
    """Return what a run went on from before its first step; None for one that began anew."""
    for event in _events(folder):
        if isinstance(event, Resumed):
            return event
        if isinstance(event, StepDone):
            return None
    return None


def _events(folder: Path) -> Iterator[Event]:
    offset, before = 0, -1
    while offset > before:
        before = offset
        events, offset = read_events(events_path(folder), offset, READ_BYTES // 16)
        yield from events
