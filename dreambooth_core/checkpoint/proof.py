"""Whether the disk gives back what was written: a file is read again before it gets its name."""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Protocol

from dreambooth_core.errors import CheckpointError
from dreambooth_core.job import disk

SYNC_BYTES = 256 * 2**20
"""Written before the disk is asked to begin with them."""

READ_BYTES = 2**22


class Checksum(Protocol):
    """A sum of bytes in the form of hashlib's."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Add bytes."""

    def hexdigest(self) -> str:
        """Return the sum of all bytes so far."""


class Crc32:
    """The sum CRC-32: it finds damage as surely as SHA-256 does and takes half the time."""

    def __init__(self) -> None:
        """Start with no bytes."""
        self._value = 0

    def update(self, data: bytes | memoryview, /) -> None:
        """Add bytes."""
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        """Return the sum of all bytes so far, as eight digits."""
        return f"{self._value:08x}"


class Proof:
    """Brings a file to the disk while it is written, and reads it again from there.

    So the end is no long wait. What the system keeps of the file in its memory is dropped first,
    where the system can, so that it is the disk that is asked.
    """

    def __init__(
        self, path: Path, descriptor: int, told: Callable[[], str], kind: Callable[[], Checksum]
    ) -> None:
        """Begin with an open file of which nothing is written.

        `told` returns the sum of what is written so far, of the `kind` that is made here anew.
        """
        self._path, self._descriptor, self._told = path, descriptor, told
        self._again = kind()
        self.direct = False
        """Whether the file can be read past the system's memory, as it was written."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="proof")
        self._pending: Future[None] | None = None
        self._written = self._begun = self._proven = 0

    def wrote(self, count: int) -> None:
        """Count written bytes; raises OSError or CheckpointError if earlier ones went wrong."""
        self._written += count
        busy = self._pending is not None and not self._pending.done()
        if self._written - self._begun < SYNC_BYTES or busy:
            return
        self._wait()
        self._begun = self._written
        self._pending = self._thread.submit(self._prove, self._written, self._told())

    def finish(self) -> None:
        """Prove the rest, for which the file must be open; raises likewise."""
        self._wait()
        self._prove(self._written, self._told())

    def close(self) -> None:
        """Wait for what is under way, whatever comes of it."""
        self._thread.shutdown(wait=True)

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _prove(self, end: int, told: str) -> None:
        with disk.naming(self._path):
            disk.sync(self._descriptor)
            with disk.open_read(self._path) as file:
                self._read_again(file, end)
        if self._proven != end or self._again.hexdigest() != told:
            raise CheckpointError(
                f"{self._path} does not read back as it was written.",
                remedy="The disk may be failing: choose another one, or look at its state. What was"
                " there before under that name is untouched.",
            )

    def _read_again(self, file: FileIO, end: int) -> None:
        file.seek(self._proven)
        disk.drop_cache(file.fileno(), self._proven, end - self._proven)
        disk.set_direct(file.fileno(), self.direct)
        buffer = memoryview(mmap.mmap(-1, READ_BYTES))
        while self._proven < end and (count := file.readinto(buffer)):
            piece = buffer[: min(count, end - self._proven)]
            self._again.update(piece)
            self._proven += len(piece)
