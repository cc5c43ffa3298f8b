"""The trainer's own packages, in a folder beside the host's: made, checked, replaced, found."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dreambooth_core.errors import OverlayError
from dreambooth_core.job import disk
from dreambooth_core.job.interpreter import (
    PACKAGE_ROOT,
    WorkerPython,
    module_command,
    worker_environment,
)
from dreambooth_core.job.overlay_state import OverlayState, read_facts, torch_problem
from dreambooth_core.job.pip_install import Report, install, no_window, pins
from dreambooth_core.job.process import is_running
from dreambooth_core.job.storage import atomic_write_json, write_file

__all__ = ["Overlay", "OverlayError", "OverlayState", "WorkerPython", "host_overlay", "note_use"]

NEEDED_BYTES = 300 * 1024**2
WAIT_SECONDS = 2.0
SELF_TEST_SECONDS = 900.0
SELF_TEST_MODULE = "dreambooth_core.worker"
SELF_TEST_WORD = "--self-test"

MARKER = "overlay.json"
USERS = ".users"
ABSENT = -1
COMPILED = (".so", ".pyd", ".dylib")


class Overlay:
    """The folder `root/<hash of the pins and the Python>` with the packages of `requirements`."""

    def __init__(
        self,
        root: Path,
        requirements: Path,
        python: str,
        *,
        test_word: str = SELF_TEST_WORD,
        needed_bytes: int = NEEDED_BYTES,
    ) -> None:
        """Name the folder of overlays, the file of pins and the host's interpreter.

        `test_word` tells a worker which test of the packages to make; `needed_bytes` have to be
        free to install them.
        """
        self.root = root
        self.requirements = requirements
        self.python = python
        self.test_word = test_word
        self.needed_bytes = needed_bytes

    @property
    def folder(self) -> Path:
        """Where the packages that fit the pins are, or will be."""
        facts = read_facts(self.python)
        digest = hashlib.sha256(self.requirements.read_bytes().replace(b"\r\n", b"\n"))
        digest.update(f"{facts.python} {facts.system} {facts.machine}".encode())
        return self.root / digest.hexdigest()[:12]

    @property
    def log(self) -> Path:
        """What pip said the last time."""
        return self.root / "install.log"

    def state(self) -> OverlayState:
        """Return whether the packages are there, at once, offline and without importing torch."""
        torch = torch_problem(read_facts(self.python).torch)
        if torch is not None:
            return torch
        folder = self.folder
        if folder.is_dir():
            return self._state_of(folder)
        if self._others(folder):
            return OverlayState(
                "stale",
                "The trainer's packages are of an earlier version or of another Python.",
                "Press Repair, or start a job: the new ones are installed first.",
            )
        return OverlayState(
            "missing",
            "The trainer's packages are not installed yet.",
            "Press Install, or start a job: they are installed first (about 100 MB).",
        )

    def worker(self) -> WorkerPython:
        """Return the Python that jobs run in; the folder may still have to be made."""
        return WorkerPython(self.python, (self.folder,))

    def make(self, report: Report, again: bool = False) -> Path:
        """Install what is missing and return the folder; `again` replaces even one that is ready.

        `report` gets what is done, and how much of it; an error that it raises ends the work. Two
        processes may call this at once: the second waits. Nothing is seen at the final place
        before it is whole and tested. Raises OverlayError.
        """
        problem = torch_problem(read_facts(self.python).torch)
        if problem is not None:
            raise OverlayError(problem.message, remedy=problem.remedy)
        folder = self.folder
        with _in_plain_words(self.root), self._alone(report):
            if again or not self.state().ready:
                self._make(folder, report)
            self._remove_others(folder)
        return folder

    def _make(self, folder: Path, report: Report) -> None:
        _refuse_in_use(folder)
        self._remove_unfinished()
        _check_disk(self.root, self.needed_bytes)
        unfinished = self.root / f"{folder.name}.tmp-{os.getpid()}"
        temporary = self.root / f"tmp-{os.getpid()}"
        disk.make_folder(temporary, new=True)
        steps = len(pins(self.requirements)) + 1

        def tell(text: str, done: int, total: int) -> None:
            report(text, done, total + 1)

        try:
            install(self.python, self.requirements, unfinished, temporary, self.log, tell)
            report("Testing the packages", steps, steps)
            self._self_test(unfinished)
            self._write_marker(unfinished)
            self._put_in_place(unfinished, folder)
        finally:
            _remove_if_possible(unfinished)
            _remove_if_possible(temporary)

    def _self_test(self, folder: Path) -> None:
        """Import everything in a child, as a worker does, and compute a little."""
        command = module_command(self.python, SELF_TEST_MODULE, self.test_word, str(folder))
        try:
            done = subprocess.run(
                command,
                cwd=self.root,
                env=worker_environment(os.environ, [folder]),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=SELF_TEST_SECONDS,
                check=False,
                **no_window(),
            )
        except subprocess.TimeoutExpired:
            raise OverlayError(
                f"The test of the trainer's packages took longer than {SELF_TEST_SECONDS:.0f} s.",
                remedy="The machine may be busy: try again.",
            ) from None
        with self.log.open("a", encoding="utf-8") as log:
            log.write(done.stdout + done.stderr)
        if done.returncode:
            last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["no word"]
            raise OverlayError(
                f"The trainer's packages do not work with this Python: {last[0].strip()}",
                remedy=f"The log is {self.log}.{_missing_module(last[0])}",
            )

    def _write_marker(self, folder: Path) -> None:
        files = {
            path.relative_to(folder).as_posix(): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if _tells_damage(path, folder)
        }
        facts = read_facts(self.python)
        atomic_write_json(
            folder / MARKER,
            {"pins": pins(self.requirements), "torch": facts.torch, "files": files},
        )

    def _put_in_place(self, unfinished: Path, folder: Path) -> None:
        if folder.exists():
            disk.rename(folder, self.root / f"{folder.name}.old-{os.getpid()}")
        disk.rename(unfinished, folder)
        self._remove_unfinished()

    def _state_of(self, folder: Path) -> OverlayState:
        """Judge a folder by the files that its marker lists."""
        try:
            marker = json.loads(disk.read(folder / MARKER))
            sizes = {str(name): int(size) for name, size in marker["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            sizes = {}
        bad = [name for name, size in sizes.items() if _size(folder / name) != size]
        if sizes and not bad:
            return OverlayState("ready")
        return OverlayState(
            "broken",
            f"The trainer's packages are damaged: {[*bad, MARKER][0]} is missing or changed.",
            "Press Repair. If it comes back, see whether a virus scanner removes files.",
        )

    def _others(self, folder: Path) -> list[Path]:
        """Return the finished overlays for other pins or Pythons."""
        named = (path for path in self.root.glob("*") if re.fullmatch("[0-9a-f]{12}", path.name))
        return sorted(path for path in named if path != folder)

    def _remove_others(self, folder: Path) -> None:
        """Delete overlays of earlier pins that no job uses; the others are for the next time."""
        for path in self._others(folder):
            if not users(path):
                _remove_if_possible(path)

    def _remove_unfinished(self) -> None:
        """Delete what processes that were stopped left behind; only called by who is alone."""
        for pattern in ("*.tmp-*", "*.old-*", "tmp-*"):
            for path in self.root.glob(pattern):
                _remove_if_possible(path)

    @contextmanager
    def _alone(self, report: Report) -> Iterator[None]:
        """Wait until no other process makes an overlay here, and keep others waiting."""
        # Only here: what only asks for the state works where the package is missing.
        from filelock import FileLock, Timeout

        disk.make_folder(self.root)
        guard = FileLock(str(self.root / ".lock"))
        while True:
            try:
                guard.acquire(timeout=WAIT_SECONDS)
                break
            except Timeout:
                report("Waiting for another process that installs", 0, 1)
        try:
            yield
        finally:
            guard.release()


def host_overlay() -> Overlay:
    """Return the overlay of the extension for the Python that runs this."""
    pinned = PACKAGE_ROOT / "requirements" / "overlay.txt"
    return Overlay(PACKAGE_ROOT / ".trainer-packages", pinned, sys.executable)


def note_use(folders: Sequence[Path], pid: int, mark: str) -> None:
    """Remember that a process uses these packages, so that they are not removed under it."""
    for folder in folders:
        # A folder that cannot be written to cannot be removed either.
        with suppress(OSError):
            disk.make_folder(folder / USERS)
            write_file(folder / USERS / str(pid), mark.encode("utf-8"))


def users(folder: Path) -> list[int]:
    """Return the running processes that use these packages; forget those that ended."""
    found = []
    for note in (folder / USERS).glob("*"):
        with suppress(OSError, ValueError):
            if is_running(int(note.name), disk.read(note).decode("utf-8")):
                found.append(int(note.name))
            else:
                disk.remove(note)
    return found


def _remove_if_possible(folder: Path) -> None:
    with suppress(OSError):
        disk.remove_folder(folder)


def _refuse_in_use(folder: Path) -> None:
    pids = users(folder)
    if pids:
        raise OverlayError(
            f"The trainer's packages are in use by a job (process {pids[0]}).",
            remedy="Stop the job or wait for its end, then try again.",
        )


def _check_disk(root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if free < needed:
        raise OverlayError(
            f"There are {free // 1024**2} MB free in {root}; the trainer's packages need"
            f" {needed // 1024**2} MB while they are installed.",
            remedy="Free some space and try again.",
        )


@contextmanager
def _in_plain_words(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f" ({error.filename})" if error.filename else ""
        raise OverlayError(
            f"The packages could not be put into {root}: {error.strerror or error}{what}.",
            remedy="See that there is space, that it may be written and that no job is running.",
        ) from error
    except ModuleNotFoundError as error:
        raise OverlayError(
            f"The WebUI's Python lacks the package {error.name}.",
            remedy="Start the WebUI once without --skip-install, so that it installs it.",
        ) from error


def _missing_module(line: str) -> str:
    match = re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", line)
    if match is None:
        return ""
    return (
        f" The WebUI should have {match[1].partition('.')[0]}: start it once without"
        " --skip-install, so that it installs its own packages."
    )


def _tells_damage(path: Path, folder: Path) -> bool:
    """Whether a file is one of the few that are looked at at every start: libraries, main files."""
    is_main = path.parent.parent == folder and path.name in ("__init__.py", "RECORD")
    return is_main or path.suffix in COMPILED


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return ABSENT
