"""Keeping files fresh that say to other machines that this process lives: by their age."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

BEAT_SECONDS = 20.0
VOID_SECONDS = 180.0
"""A file that was not kept fresh for so long is of a machine that is gone."""

Lost = Callable[[Path], bool]
"""Whether a file is not ours any more, so that it is left alone."""


class Heart:
    """A thread that touches files now and then, as long as there are any."""

    def __init__(self) -> None:
        """Have no file to keep fresh."""
        self._files: dict[Path, Lost | None] = {}
        self._change = threading.Condition()
        self._beating = False

    def keep(self, path: Path, lost: Lost | None = None) -> None:
        """Keep a file fresh until it is to be forgotten, is `lost` or this process ends."""
        with self._change:
            self._files[path] = lost
            if not self._beating:
                self._beating = True
                threading.Thread(target=self._run, name="dreambooth locks", daemon=True).start()

    def forget(self, path: Path) -> None:
        """Let a file grow old."""
        with self._change:
            self._files.pop(path, None)
            self._change.notify()

    def end(self, path: Path) -> None:
        """Let a file be old at once: other machines see that what kept it fresh is over."""
        self.forget(path)
        with suppress(OSError):
            os.utime(path, (0, 0))

    def beat(self) -> None:
        """Touch every file once."""
        with self._change:
            files = list(self._files.items())
        for path, lost in files:
            if lost is not None and lost(path):
                self.forget(path)
                continue
            with suppress(OSError):  # a network that is gone comes back, or the lock is void
                os.utime(path)

    def _run(self) -> None:
        while True:
            with self._change:
                if self._change.wait_for(lambda: not self._files, BEAT_SECONDS):
                    self._beating = False
                    return
            self.beat()


def seconds_since(path: Path) -> float:
    """Return how long ago a file was kept fresh, by this machine's clock."""
    return time.time() - path.stat().st_mtime


@cache
def heart() -> Heart:
    """Return what keeps this process's files fresh."""
    return Heart()
