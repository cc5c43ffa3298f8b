"""Lines for a file whose disk is full: held back, and written in order once there is room."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dreambooth_core.job import disk
from dreambooth_core.job.full_disk import is_full
from dreambooth_core.job.storage import append_line, write_file

MOST_HELD = 5000
"""So many lines that may be missing are held back; of more, some are dropped."""

MOST_INTO_SPARE = 50
"""So many of them go into the spare room with a line that must not be missing."""

SPARE_SIZES = (65536, 32768, 16384, 8192)
"""Room for the last words, kept taken by a file of its own as long as the disk has it."""


@dataclass
class HeldLines:
    """A file of lines that survives a full disk.

    `spare` is a file that only takes room: it makes way for a line that must not be missing.
    """

    path: Path
    spare: Path | None = None
    _held: list[tuple[bool, str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def count(self) -> int:
        """How many lines are held back."""
        return len(self._held)

    def take_spare(self) -> None:
        """Take room for lines that must not be missing, if there is any."""
        if self.spare is None:
            return
        for size in SPARE_SIZES:
            try:
                write_file(self.spare, bytes(size))
                return
            except OSError:
                self._drop_spare()

    def add(self, line: str, *, must: bool) -> None:
        """Append a line, or hold it back while the disk is full; `must` says it is never dropped.

        Raises OSError for anything else that is wrong with the disk.
        """
        with self._lock:
            self._held.append((must, line))
            if self._write():
                return
            self._thin(MOST_HELD)
            if must and self.spare is not None:
                self._write_into_spare()
                self.take_spare()

    def end(self) -> None:
        """Write what is held back, as far as it goes, and give the spare room back."""
        with self._lock:
            if not self._write() and self.spare is not None:
                self._write_into_spare()
            self._drop_spare()

    def _write_into_spare(self) -> None:
        """Write what must not be missing, and a few of the other lines, into the spare room."""
        self._drop_spare()
        for most in (MOST_INTO_SPARE, 0):
            self._thin(most)
            if self._write():
                return

    def _write(self) -> bool:
        """Write the held lines in order; return whether none is left."""
        written = 0
        try:
            for _, line in self._held:
                append_line(self.path, line)
                written += 1
        except OSError as error:
            if not is_full(error):
                raise
        finally:
            del self._held[:written]
        return not self._held

    def _thin(self, most: int) -> None:
        """Keep `most` of the lines that may be missing, evenly, the newest among them."""
        light = [number for number, (must, _) in enumerate(self._held) if not must]
        if len(light) > most:
            every = -(-len(light) // most) if most else len(light) + 1
            kept = set(light[::-every]) if most else set()
            dropped = set(light) - kept
            self._held = [held for n, held in enumerate(self._held) if n not in dropped]

    def _drop_spare(self) -> None:
        if self.spare is not None:
            with suppress(OSError):
                disk.remove(self.spare)
