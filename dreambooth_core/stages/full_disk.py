"""What a training does when a disk has no room for a file: it waits, leaves it out, or ends."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dreambooth_core.errors import FullDiskError
from dreambooth_core.job.events import INFO, WARNING, Event, Notice, PhaseStarted
from dreambooth_core.job.full_disk import full_disk, is_full
from dreambooth_core.stages.requests import Requests

CONTINUE, STOP = "continue", "stop"
PHASE = "waiting for room on the disk"
LOOK_SECONDS = 2.0
LOOKS_BEFORE_TRYING = 15
"""Where it cannot be seen that there is room, writing is tried after so many looks."""


class Room:
    """Writes files as far as there is room, and does what the settings say where there is none."""

    def __init__(self, choice: str, emit: Callable[[Event], None], requests: Requests) -> None:
        """Follow `choice` (saving.on_full_disk); while it waits, `requests` may end that."""
        self.choice, self._emit, self._requests = choice, emit, requests
        self.given_up = False
        """Whether a person has ended the waiting: nothing is waited for any more."""
        self.left_out: set[str] = set()
        """What is not written."""

    def write(self, what: str, write: Callable[[], object], *, last: bool = False) -> bool:
        """Write a file and return whether it is written; `what` begins a sentence about it.

        Nothing is left out unasked of what is the `last` of a run, which has nothing to go on with.
        Raises FullDiskError or OSError if the settings say so.
        """
        waited = False
        while True:
            try:
                write()
            except (OSError, FullDiskError) as error:
                if not is_full(error) or self.choice == STOP:
                    raise
                if self.given_up or (self.choice == CONTINUE and not last):
                    self._leave_out(what, error)
                    return False
                if not waited:
                    words = "The run waits and goes on by itself; Stop ends it instead."
                    self._emit(Notice(WARNING, f"{in_words(what, error)} {words}"))
                waited = True
                self._wait(error)
            else:
                if waited:
                    self._emit(Notice(INFO, f"There is room again: {what} is written."))
                return True

    def _leave_out(self, what: str, error: OSError | FullDiskError) -> None:
        if what not in self.left_out:
            self.left_out.add(what)
            self._emit(Notice(WARNING, f"{what} is left out. {in_words(what, error)}"))

    def _wait(self, error: OSError | FullDiskError) -> None:
        """Wait until there may be room, or until a stop is asked for from now on."""
        before, asked = _free(error), self._requests.take(STOP)
        self._emit(PhaseStarted(PHASE))
        for _ in range(LOOKS_BEFORE_TRYING):
            time.sleep(LOOK_SECONDS)
            self._requests.look()
            self.given_up = self._requests.wants(STOP)
            if self.given_up or _has_room(error, before):
                break
        if asked:
            self._requests.put_back(STOP)


def in_words(what: str, error: OSError | FullDiskError) -> str:
    """Return what is needed and where, and what to do."""
    return str(full_disk(what, error) if isinstance(error, OSError) else error)


def tensor_bytes(values: Any) -> int:
    """Return what the tensors in nested mappings and lists take, as fp32 at least."""
    if isinstance(values, torch.Tensor):
        return values.numel() * max(4, values.element_size())
    if isinstance(values, Mapping):
        return sum(map(tensor_bytes, values.values()))
    return sum(map(tensor_bytes, values)) if isinstance(values, list | tuple) else 0


def _has_room(error: OSError | FullDiskError, before: int) -> bool:
    free = _free(error)
    needed = error.needed if isinstance(error, FullDiskError) else 0
    return free >= needed if needed else free > before


def _free(error: OSError | FullDiskError) -> int:
    """Return what is free on the disk that an error is of; 0 if it does not tell which."""
    named = error.folder if isinstance(error, FullDiskError) else error.filename
    for folder in [Path(str(named)), *Path(str(named)).parents] if named else []:
        if folder.is_dir():
            return shutil.disk_usage(folder).free
    return 0
