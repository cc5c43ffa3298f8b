"""In the worker: ends its process group at an instant, and notes what is not on the disk yet.

The note is a file of JSON lines outside the workspace, one per change of the disk since the worker
began; `power.py` reads it. A file that is replaced or removed keeps a hard link beside the note.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

Blow = dict[str, Any]
"""Where a worker is killed: see `install`."""


def die() -> None:
    """Kill the process group, as `kill -9` of the worker and its helpers does."""
    os.killpg(os.getpgid(0), signal.SIGKILL)
    signal.pause()


class Note:
    """Appends what was done to the disk, so that it is there however the process ends."""

    def __init__(self, folder: Path | None) -> None:
        """Write `note.jsonl` into a folder; None keeps no note."""
        self._folder, self._count = folder, itertools.count()
        self._file = -1
        if folder is not None:
            self._file = os.open(folder / "note.jsonl", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def add(self, **values: Any) -> None:
        if self._folder is not None:
            os.write(self._file, json.dumps(values).encode() + b"\n")

    def keep(self, path: Path) -> str:
        """Link what a name stands for, so that the name can be given back; "" for none."""
        if self._folder is None or not os.path.lexists(path):
            return ""
        kept = self._folder / f"kept-{next(self._count)}"
        if path.is_dir():
            shutil.copytree(path, kept, copy_function=os.link)
        else:
            os.link(path, kept)
        return str(kept)


class Disk:
    """Stands before the functions of `job/disk.py`: counts, notes, and kills when it is time."""

    def __init__(self, blow: Blow, note: Note) -> None:
        from dreambooth_core.job import disk

        self.real = {name: getattr(disk, name) for name in disk.CHANGES}
        self.blow, self.note, self.count = blow, note, 0
        self.half_due = False
        for name in disk.CHANGES:
            setattr(disk, name, self._standing_before(name))

    def _standing_before(self, name: str) -> Callable[..., Any]:
        does = getattr(self, f"_{name}")

        def stand_in(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            at = self.blow.get("operation")
            if at is not None and self.count >= at:
                self._strike(name, arguments)
            result = does(*arguments, **named)
            if at is not None and self.count == at and self.blow.get("after"):
                die()
            return result

        return stand_in

    def _strike(self, name: str, arguments: tuple[Any, ...]) -> None:
        if self.blow.get("after"):
            return
        if not self.blow.get("half"):
            die()
        if name == "write":  # the first write from the operation on
            file, data = arguments
            half = memoryview(data)[: len(data) // 2]
            self._write(file, half)
            die()

    # -- what each one leaves to be lost

    def _create(self, path: Path) -> Any:
        was_there = os.path.lexists(path)
        file = self.real["create"](path)
        inode = os.fstat(file.fileno()).st_ino
        self.note.add(do="empty", inode=inode, size=0)
        if not was_there:
            self.note.add(do="new", path=str(path))
        return file

    def _append(self, path: Path) -> Any:
        was_there = os.path.lexists(path)
        file = self.real["append"](path)
        if not was_there:
            self.note.add(do="new", path=str(path))
        return file

    def _write(self, file: Any, data: Any) -> None:
        inode, before = os.fstat(file.fileno()).st_ino, os.fstat(file.fileno()).st_size
        self.note.add(do="write", inode=inode, size=before)
        self.real["write"](file, data)

    def _sync(self, descriptor: int) -> None:
        self.real["sync"](descriptor)
        status = os.fstat(descriptor)
        self.note.add(do="sync", inode=status.st_ino, size=status.st_size)

    def _truncate(self, file: Any, size: int) -> None:
        self.real["truncate"](file, size)
        self.note.add(do="write", inode=os.fstat(file.fileno()).st_ino, size=size)

    def _rename(self, source: Path, target: Path) -> None:
        kept = self.note.keep(Path(target))
        self.real["rename"](source, target)
        self.note.add(do="rename", path=str(target), source=str(source), kept=kept)

    def _remove(self, path: Path) -> None:
        kept = self.note.keep(Path(path))
        self.real["remove"](path)
        if kept:
            self.note.add(do="remove", path=str(path), kept=kept)

    def _make_folder(self, path: Path, **named: Any) -> None:
        chain = [Path(path), *Path(path).parents]
        missing = [folder for folder in chain if not folder.exists()]
        for folder in reversed(missing):  # noted first: it brings the names to the disk itself
            self.note.add(do="new", path=str(folder))
        self.real["make_folder"](path, **named)

    def _remove_folder(self, path: Path) -> None:
        kept = self.note.keep(Path(path))
        self.real["remove_folder"](path)
        if kept:
            self.note.add(do="remove", path=str(path), kept=kept)

    def _sync_folder(self, path: Path) -> None:
        self.real["sync_folder"](path)
        self.note.add(do="sync_folder", path=str(path))


def install(blow: Blow, folder: Path | None) -> Disk:
    """Prepare this process to be killed as `blow` says.

    "operation" is the number (from 1) of a change of the disk: it is killed before it, or "after"
    it, or with "half" of the next write done; "step" after that many reports of a step;
    "optimizer" inside that update of the weights. With a folder a note is kept of what a power
    failure would take.
    """
    disk = Disk(blow, Note(folder))
    if "step" in blow:
        _die_after_step(int(blow["step"]))
    if "optimizer" in blow:
        _die_in_update(int(blow["optimizer"]))
    return disk


def _die_after_step(number: int) -> None:
    from dreambooth_core.job.events import EventWriter, StepDone

    emit, steps = EventWriter.emit, itertools.count(1)

    def counted(self: EventWriter, event: Any) -> None:
        emit(self, event)
        if isinstance(event, StepDone) and next(steps) == number:
            die()

    EventWriter.emit = counted  # type: ignore[method-assign]


def _die_in_update(number: int) -> None:
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    updates = itertools.count(1)

    def hook(*_: Any) -> None:
        if next(updates) == number:
            die()

    register_optimizer_step_pre_hook(hook)
