from __future__ import annotations

import errno
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.errors import FullDiskError
from dreambooth_core.job import disk, held_lines
from dreambooth_core.job.commands import Command, send
from dreambooth_core.job.events import (
    EventWriter,
    JobFailed,
    Notice,
    PhaseStarted,
    StepDone,
    read_events,
)


class SmallDisk:
    """A disk of so many bytes, for what is written through `job.disk`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room = room
        self._write, self._remove = disk.write, disk.remove
        monkeypatch.setattr(disk, "write", self.write)
        monkeypatch.setattr(disk, "remove", self.remove)
        monkeypatch.setattr(disk, "truncate", self.truncate)

    def write(self, file: FileIO, data: bytes) -> None:
        """Write what there is room for; the rest does not fit."""
        fits = data[: max(0, self.room)]
        self._write(file, fits)
        self.room -= len(fits)
        if len(fits) < len(data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def remove(self, path: Path) -> None:
        """Delete a file, whose room is free then."""
        self.room += Path(path).stat().st_size if Path(path).exists() else 0
        self._remove(path)

    def truncate(self, file: FileIO, size: int) -> None:
        """Cut a file, whose room is free then."""
        self.room += file.seek(0, 2) - size
        file.truncate(size)


def step(number: int) -> StepDone:
    return StepDone(number, 100_000, 0, 0.5, 0.5)


def test_events_wait_for_room_and_come_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run" / "events.jsonl"
    small = SmallDisk(monkeypatch, 1500)
    writer = EventWriter(path)
    events: list[Any] = [PhaseStarted("training", 9), *map(step, range(1, 10)), Notice("info", "x")]
    for event in events:
        writer.emit(event)
    before = read_events(path)[0]
    assert 0 < len(before) < len(events)
    assert path.read_bytes().endswith(b"\n"), "no torn line"
    small.room = 10**6
    writer.emit(JobFailed("The end."))
    found = read_events(path)[0]
    assert found == [*events, JobFailed("The end.")]
    assert [event.time for event in found] == sorted(event.time for event in found)


def test_what_must_be_told_has_room_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, spare = tmp_path / "events.jsonl", tmp_path / "events.spare"
    small = SmallDisk(monkeypatch, 70_000)
    writer = EventWriter(path, spare=True)
    assert spare.stat().st_size == 65536
    for number in range(1, 2001):
        writer.emit(step(number))
    writer.emit(Notice("warning", "the disk is full"))
    assert Notice("warning", "the disk is full") in read_events(path)[0]
    assert spare.exists(), "for the next one, if smaller"
    for number in range(2001, 4001):
        writer.emit(step(number))
    writer.emit(JobFailed("The end."))
    found = read_events(path)[0]
    assert found[-1] == JobFailed("The end.")
    steps = [event.step for event in found if isinstance(event, StepDone)]
    assert steps == sorted(steps) and steps[-1] == 4000
    assert not spare.exists() and small.room >= 0


def test_only_so_many_are_held_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_lines, "MOST_HELD", 40)
    small = SmallDisk(monkeypatch, 0)
    writer = EventWriter(tmp_path / "events.jsonl")
    for number in range(1, 1001):
        writer.emit(step(number))
        if number % 100 == 0:
            writer.emit(Notice("info", f"{number}"))
    assert writer._lines.count <= 40 + 10
    small.room = 10**6
    writer.emit(step(1001))
    found = read_events(tmp_path / "events.jsonl")[0]
    assert [e.message for e in found if isinstance(e, Notice)] == [
        f"{n}" for n in range(100, 1001, 100)
    ]
    assert found[-1] == step(1001) and found[-2] == Notice("info", "1000")


def test_another_fault_of_the_disk_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(file: FileIO, data: bytes) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(disk, "write", broken)
    with pytest.raises(OSError, match="Input/output"):
        EventWriter(tmp_path / "events.jsonl").emit(step(1))


def test_a_command_that_does_not_fit_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SmallDisk(monkeypatch, 3)
    with pytest.raises(FullDiskError, match=r"The command stop cannot be written.*commands.jsonl"):
        send(tmp_path, Command("stop"))
    assert (tmp_path / "commands.jsonl").read_bytes() == b""
