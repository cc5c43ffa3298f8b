"""One job at a time per model: a lock file that names a process and is void when that is gone."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.errors import BusyError
from dreambooth_core.job.process import is_running
from dreambooth_core.job.storage import atomic_write_json

# A lock is created first and filled a moment later; an empty one is given this long.
FILLING_SECONDS = 10.0
ATTEMPTS = 5


@dataclass(frozen=True)
class Holder:
    """Who has a model: the process, its start mark and its run."""

    pid: int
    mark: str
    run_id: str
    kind: str


def acquire(path: Path, holder: Holder, model: str) -> None:
    """Take the lock; raises BusyError naming the run that has it, if its process lives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(ATTEMPTS):
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            _refuse_if_held(path, model)
            continue
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(dataclasses.asdict(holder), file)
        return
    raise BusyError(f"The model {model!r} is being taken by other jobs.", remedy="Try again.")


def hand_over(path: Path, holder: Holder) -> None:
    """Write a new holder into a lock that is ours."""
    atomic_write_json(path, dataclasses.asdict(holder))


def release(path: Path, run_id: str) -> None:
    """Remove the lock if this run holds it."""
    holder = read_holder(path)
    if holder is not None and holder.run_id == run_id:
        path.unlink(missing_ok=True)


def read_holder(path: Path) -> Holder | None:
    """Return who is named in the lock; None if there is no lock or it is not filled."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _refuse_if_held(path: Path, model: str) -> None:
    """Raise BusyError if the lock is in force; else put it out of the way."""
    holder = read_holder(path)
    if holder is None:
        if _age_seconds(path) < FILLING_SECONDS:
            raise BusyError(f"Another job on the model {model!r} is starting.", remedy="Try again.")
    elif is_running(holder.pid, holder.mark):
        raise BusyError(
            f"The model {model!r} is in use by run {holder.run_id} ({holder.kind}, process"
            f" {holder.pid}).",
            remedy=f"Wait for it, or end it with: stop {holder.run_id}",
        )
    _set_aside(path, holder)


def _set_aside(path: Path, judged: Holder | None) -> None:
    """Remove a void lock, unless another job replaced it since it was judged."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        os.replace(path, aside)
    except FileNotFoundError:
        return
    if read_holder(aside) != judged:
        os.replace(aside, path)
        return
    aside.unlink(missing_ok=True)


def _age_seconds(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
