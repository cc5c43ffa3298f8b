"""One case after the other: made from a seed, watched, and told so that it can be made again.

A target is a function that makes an input from a `Random`, gives it to the product and checks what
comes back. It may raise a DreamboothError; anything else is a finding. So is a case that writes
outside of its folder, starts a program, opens a connection, takes too long or too much memory.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from dreambooth_core.errors import DreamboothError

MOST_SECONDS = 20.0
MOST_MIB = 900
"""By how much one case may raise what the process takes: a picture may have half a gigabyte."""
MOST_FINDINGS = 20
TRACE_LINES = 9
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGING = {
    "os.mkdir": 0,
    "os.remove": 0,
    "os.rename": 1,
    "os.rmdir": 0,
    "os.symlink": 1,
    "os.link": 1,
    "os.truncate": 0,
    "os.chmod": 0,
    "shutil.rmtree": 0,
    "shutil.move": 1,
}
"""Audited calls that change the disk, and which of their arguments says where."""
RUNNING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")

Target = Callable[[Random, Path], None]


class TooLong(BaseException):
    """A case went on for longer than any may."""


@dataclass(frozen=True)
class Finding:
    """A case that went wrong, and how."""

    target: str
    seed: int
    case: int
    words: str
    trace: str = field(repr=False, default="")

    def __str__(self) -> str:
        """Say how to make it again."""
        again = f"python -m tests.fuzz --target {self.target} --seed {self.seed} --case {self.case}"
        return f"{self.words}\n{self.trace}  again: {again}"


def fuzz(name: str, target: Target, cases: Iterator[int] | range, seed: int) -> list[Finding]:
    """Run cases of a target and return what was found; a case depends on nothing before it."""
    found: list[Finding] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as temporary:
        base = Path(temporary).resolve()
        with _in_folder(base):
            for case in cases:
                finding = _one(name, target, seed, case, base / "case")
                found += [finding] if finding else []
                if len(found) >= MOST_FINDINGS:
                    break
    return found


def random_of(name: str, seed: int, case: int) -> Random:
    """Return what a case is made from."""
    return Random(f"{name}/{seed}/{case}")


def _one(name: str, target: Target, seed: int, case: int, folder: Path) -> Finding | None:
    folder.mkdir()
    before, began = _memory(), time.monotonic()
    words, trace = "", ""
    try:
        with WATCH.watching(folder.parent), _at_most(MOST_SECONDS):
            target(random_of(name, seed, case), folder)
    except DreamboothError as error:
        words = "" if str(error).strip() else f"a {type(error).__name__} without words"
    except TooLong:
        words, trace = "took too long", _trace()
    except Exception as error:  # noqa: BLE001 (that is what is looked for)
        words, trace = f"{type(error).__name__}: {error}"[:500], _trace()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not words and WATCH.violations:
        words = f"did what it must not: {WATCH.violations[0]}"
    if not words and time.monotonic() - began > MOST_SECONDS:
        words = "took too long"
    if not words and _peak_memory() - before > MOST_MIB * 2**20:
        words = f"took {(_peak_memory() - before) / 2**20:.0f} MiB"
    return Finding(name, seed, case, words, trace) if words else None


def _trace() -> str:
    """Return where it happened: a deep recursion would fill pages."""
    return "".join(traceback.format_exc().splitlines(keepends=True)[-TRACE_LINES:])


class _Watch:
    """What the process does while a case runs, as Python's audit events tell."""

    def __init__(self) -> None:
        self.inside: Path | None = None
        """Where may be written; None while nobody looks."""
        self.violations: list[str] = []
        self.installed = False

    @contextmanager
    def watching(self, inside: Path) -> Iterator[None]:
        """Note what is done that must not be; there may be written only `inside` the folder."""
        if not self.installed:
            sys.addaudithook(self.hear)
            self.installed = True
        self.violations.clear()
        self.inside = inside
        try:
            yield
        finally:
            self.inside = None

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.inside is None:
            return
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            self.judge(event, arguments[0])
        elif event in CHANGING and not _is_below(event, arguments):
            self.judge(event, arguments[CHANGING[event]])
        elif event in RUNNING:
            self.violations.append(f"{event} {arguments!r}"[:300])

    def judge(self, event: str, path: Any) -> None:
        """Note a change outside of where may be written."""
        if isinstance(path, int) or path is None:
            return
        where = os.path.realpath(os.fsdecode(path))
        parts = Path(where).parts
        ours = Path(where).is_relative_to(str(self.inside)) or "__pycache__" in parts
        if not ours and where != os.devnull:
            self.violations.append(f"{event} {where}"[:300])


def _is_below(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether a name is counted from an open folder, which was judged as it was opened."""
    return event in ("os.remove", "os.rmdir", "os.mkdir") and arguments[-1] != -1


WATCH = _Watch()


@contextmanager
def _in_folder(base: Path) -> Iterator[None]:
    """Let temporary files be made in the folder."""
    usual = tempfile.tempdir
    tempfile.tempdir = str(base)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's about large pictures, of every second one
            yield
    finally:
        tempfile.tempdir = usual


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise TooLong after some time, where the system can wake a thread up."""
    if sys.platform == "win32":
        yield
        return

    def end(signum: int, frame: FrameType | None) -> None:
        raise TooLong

    usual = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)


def _memory() -> int:
    """Return what the process takes now, and let its peak begin anew, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return _status("VmRSS")
    except OSError:
        return 0


def _peak_memory() -> int:
    try:
        return _status("VmHWM")
    except OSError:
        return 0


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    line = next(line for line in text.splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
