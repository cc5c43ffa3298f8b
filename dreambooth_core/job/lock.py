"""One job at a time per model and per file: a lock file names who has it, and when it is void.

A lock of this machine is void when the process that it names is gone. Of another machine or
container, which works in the same network folder, nothing is known of processes; it keeps its lock
fresh (`heartbeat.py`), and one that was not for minutes is void. The age is measured by the clock
of the folder's own file system, as clocks of two machines differ.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from dreambooth_core.errors import BusyError, InputError
from dreambooth_core.job import disk, plain_json
from dreambooth_core.job.formats import LOCK
from dreambooth_core.job.heartbeat import VOID_SECONDS, heart
from dreambooth_core.job.process import is_here, is_running, machine_name, this_machine
from dreambooth_core.job.storage import atomic_write_json

GUARD_SECONDS = 30.0
"""The longest wait for another process to judge and change a lock: it takes milliseconds."""
POLL_SECONDS = 0.01
GUARD_FILE = ".guard"
STARTING, DELETING = "starting-", "deleting-"
"""What stands for the id of a run before there is one, and where there is none."""


@dataclass(frozen=True)
class Holder:
    """Who has a model: the process, its start mark and its run, on which machine since when."""

    pid: int
    mark: str
    run_id: str
    kind: str
    machine: str = field(default_factory=this_machine, compare=False)
    since: float = field(default_factory=time.time, compare=False)

    @property
    def is_run(self) -> bool:
        """Whether it can be told to stop."""
        return not self.run_id.startswith((STARTING, DELETING))

    @property
    def lives(self) -> bool:
        """Whether the process runs; nothing is known of one on another machine."""
        return is_here(self.machine) and is_running(self.pid, self.mark)


def acquire(path: Path, holder: Holder, name: str, what: str = "model") -> None:
    """Take a lock and keep it fresh; one that the same run has already is taken over.

    `what` and `name` say what it is of. Raises BusyError naming who has it.
    """
    with alone(path):
        before = _refuse_if_held(path, holder.run_id, name, what)
        try:
            _write(path, holder)
        except BaseException:  # whoever is told that it failed does not release it
            if before is None or before.run_id != holder.run_id:
                with suppress(OSError):
                    disk.remove(path)
            raise


def refuse_if_held(path: Path, run_id: str, name: str, what: str) -> None:
    """Raise BusyError if another than this run has a lock; it stays as it is."""
    if path.exists():
        with alone(path):
            _refuse_if_held(path, run_id, name, what)


def hand_over(path: Path, holder: Holder, before: str = "") -> None:
    """Write a new holder into a lock of the same run, or of `before`; one that is gone stays so."""
    with alone(path):
        present = read_holder(path)
        if present is not None and present.run_id in (holder.run_id, before):
            _write(path, dataclasses.replace(holder, since=present.since or holder.since))


def release(path: Path, run_id: str) -> None:
    """Remove the lock if this run holds it."""
    heart().forget(path)
    if not path.parent.is_dir():
        return
    with alone(path):
        holder = read_holder(path)
        if holder is not None and holder.run_id == run_id:
            disk.remove(path)


def read_holder(path: Path) -> Holder | None:
    """Return who is named in the lock; None if there is no lock or it says nothing."""
    with suppress(OSError):
        return _read(path)
    return None


def _read(path: Path) -> Holder | None:
    """Return who is named; raises OSError for a lock that the disk does not give out."""
    try:
        known = LOCK.known(plain_json.parse(disk.read(path)))
        return Holder(
            int(known["pid"]),
            str(known["mark"]),
            str(known["run_id"]),
            str(known["kind"]),
            str(known["machine"]),
            float(known.get("since") or 0.0),
        )
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Let no other process read and change a file meanwhile that asks for the same one here.

    The system's own lock, on one hidden file per folder: it ends with its process. Not to be asked
    for again inside.
    """
    disk.make_folder(path.parent)
    guard = FileLock(path.with_name(GUARD_FILE))
    try:
        guard.acquire(timeout=GUARD_SECONDS, poll_interval=POLL_SECONDS)
    except Timeout:
        raise BusyError(
            f"Another program has kept {guard.lock_file} locked for {GUARD_SECONDS:.0f} seconds.",
            remedy="Try again. If it stays so, end other WebUIs and jobs that use this folder.",
        ) from None
    except NotImplementedError:
        raise InputError(
            f"The folder {path.parent} is on a drive that cannot lock files.",
            remedy="Mount it with locks, or keep the models on another drive.",
        ) from None
    try:
        yield
    finally:
        guard.release()


def _write(path: Path, holder: Holder) -> None:
    atomic_write_json(path, LOCK.stamped(dataclasses.asdict(holder)))
    if holder.pid == os.getpid() and is_here(holder.machine):
        heart().keep(path)
    else:
        heart().forget(path)


def _refuse_if_held(path: Path, run_id: str, name: str, what: str) -> Holder | None:
    """Return who is named in a lock that may be taken, as it is void or of the same run.

    Raises BusyError if another has it, and OSError for one that the disk does not give out, which
    is not taken for none.
    """
    holder = _read(path)
    if holder is None:
        LOCK.refuse_newer(path)
        return None
    left = _seconds_left(path, holder)
    if holder.run_id == run_id or not left:
        return holder
    raise BusyError(f"The {what} {name!r} is {use(holder)}.", remedy=_remedy(holder, left))


def _seconds_left(path: Path, holder: Holder) -> float:
    """Return how long a lock holds if it is not kept fresh any more; 0 for one that is void."""
    if is_here(holder.machine):
        return math.inf if holder.lives else 0.0
    return max(0.0, VOID_SECONDS - _age(path))


def _age(path: Path) -> float:
    """Return the seconds since a lock was kept fresh, by the clock of its file system."""
    guard = path.with_name(GUARD_FILE)
    with suppress(FileNotFoundError):
        os.utime(guard)
        return guard.stat().st_mtime - path.stat().st_mtime
    return math.inf


def use(holder: Holder) -> str:
    """Return who has a lock and what for: "in use by run ..."."""
    process = f"process {holder.pid}"
    if not is_here(holder.machine):
        process += f" on the machine {machine_name(holder.machine)}"
    if holder.since:
        process += f", since {time.strftime('%Y-%m-%d %H:%M', time.localtime(holder.since))}"
    if holder.is_run:
        return f"in use by run {holder.run_id} ({holder.kind}, {process})"
    if holder.run_id.startswith(DELETING):
        return f"being deleted ({process})"
    return f"in use by a job that is being started ({holder.kind}, {process})"


def _remedy(holder: Holder, left: float) -> str:
    end = f", or end it with: stop {holder.run_id}" if holder.is_run else "."
    if math.isinf(left):
        return f"Wait for it{end}"
    minutes = math.ceil(left / 60)
    void = "in a minute" if minutes == 1 else f"in {minutes} minutes"
    return f"If that machine is gone, its lock is void {void}. Else wait for it{end}"
