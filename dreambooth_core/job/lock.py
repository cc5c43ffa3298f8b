"""One job at a time per model: a lock file that names a process and is void when that is gone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from dreambooth_core.errors import BusyError
from dreambooth_core.job.process import is_running
from dreambooth_core.job.storage import atomic_write_json

GUARD_SECONDS = 30.0
"""The longest wait for another process to judge and change a lock: it takes milliseconds."""


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
    with _one_at_a_time(path):
        _refuse_if_held(path, model)
        atomic_write_json(path, dataclasses.asdict(holder))


def hand_over(path: Path, holder: Holder) -> None:
    """Write a new holder into a lock that is ours."""
    atomic_write_json(path, dataclasses.asdict(holder))


def release(path: Path, run_id: str) -> None:
    """Remove the lock if this run holds it."""
    with _one_at_a_time(path):
        holder = read_holder(path)
        if holder is not None and holder.run_id == run_id:
            path.unlink(missing_ok=True)


def read_holder(path: Path) -> Holder | None:
    """Return who is named in the lock; None if there is no lock or it says nothing."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold the system's lock under which the file is judged and changed as one step."""
    guard = FileLock(path.with_name(f"{path.name}.guard"))
    try:
        guard.acquire(timeout=GUARD_SECONDS)
    except Timeout:
        raise BusyError(
            f"Another program has kept {guard.lock_file} locked for {GUARD_SECONDS:.0f} seconds.",
            remedy="Try again. If it stays so, end other WebUIs and jobs that use this folder.",
        ) from None
    try:
        yield
    finally:
        guard.release()


def _refuse_if_held(path: Path, model: str) -> None:
    """Raise BusyError if the lock names a process that lives; any other lock is void."""
    holder = read_holder(path)
    if holder is not None and is_running(holder.pid, holder.mark):
        raise BusyError(
            f"The model {model!r} is in use by run {holder.run_id} ({holder.kind}, process"
            f" {holder.pid}).",
            remedy=f"Wait for it, or end it with: stop {holder.run_id}",
        )
