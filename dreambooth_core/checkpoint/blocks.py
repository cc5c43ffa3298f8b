"""A file written in blocks: while one is summed and goes to the disk, the next is filled.

The blocks go past the system's memory where the system can: what is written is not read again
soon, and to keep it there takes several times the time of the disk.
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from dreambooth_core.checkpoint.proof import Checksum, Proof
from dreambooth_core.checkpoint.stream import Buffer, Digest
from dreambooth_core.job import disk

BLOCK_BYTES = 4 * 2**20
"""A multiple of every disk's own blocks."""

BUFFERED_BYTES = 2**17
"""Written at a time through the system's memory: for larger writes Linux looks for larger free
pages, at several times the time of the whole copy once its memory is full of other files."""


class BlockWriter:
    """Writes a file from front to back, sums it, and proves that the disk gives it back."""

    def __init__(self, path: Path, kind: Callable[[], Checksum]) -> None:
        """Open a new file, whose sum will be of the `kind`."""
        self._digest = Digest(kind)
        self._filled = self._free = memoryview(b"")
        self._count = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="blocks")
        self._pending: Future[int] | None = None
        self._file = disk.create(path)
        self._direct = disk.set_direct(self._file.fileno(), True)
        self._proof = Proof(path, self._file.fileno(), self._digest.hexdigest, kind)

    def put(self, data: Buffer) -> None:
        """Add bytes, which may change afterwards; raises OSError or CheckpointError."""
        rest = memoryview(data)
        while rest:
            if not self._filled:
                self._filled = memoryview(mmap.mmap(-1, BLOCK_BYTES))
            room = self._filled[self._count : self._count + len(rest)]
            room[:] = rest[: len(room)]
            rest = rest[len(room) :]
            self._count += len(room)
            if self._count == len(self._filled):
                self._hand_over()

    def finish(self) -> str:
        """Write what is left, read all again from the disk, and return the sum; raises likewise."""
        self._hand_over()
        self._wait()
        self._proof.finish()
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file and end the threads, whatever comes of what is under way."""
        self._thread.shutdown(wait=True)
        self._digest.close()
        self._proof.close()
        self._file.close()

    def _hand_over(self) -> None:
        self._wait()
        block = self._filled[: self._count]
        self._digest.update(block)
        self._pending = self._thread.submit(self._write, block)
        self._filled, self._free, self._count = self._free, self._filled, 0

    def _wait(self) -> None:
        """Wait until the block that was handed over is written and may change."""
        if self._pending is not None:
            count = self._pending.result()
            self._digest.wait()
            self._pending = None
            self._proof.wrote(count)

    def _write(self, block: memoryview) -> int:
        whole = len(block) == BLOCK_BYTES
        if not (self._direct and whole and self._passes(block)):
            self._direct = disk.set_direct(self._file.fileno(), False)
            for start in range(0, len(block), BUFFERED_BYTES):
                disk.write(self._file, block[start : start + BUFFERED_BYTES])
        return len(block)

    def _passes(self, block: memoryview) -> bool:
        """Write a block directly, if the file system, asked for it, does not refuse after all."""
        start = self._file.tell()
        try:
            disk.write(self._file, block)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._file.seek(start)
            return False
        self._proof.direct = True
        return True
