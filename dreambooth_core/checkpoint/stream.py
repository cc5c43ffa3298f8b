"""What a stream of tensors passes through: memory that is used again, a digest, an early sync."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

Buffer = bytes | memoryview

SYNC_BYTES = 256 * 2**20
"""Written before the disk is asked to begin with them."""


class Digest:
    """SHA-256 computed in a thread beside the reading and writing (hashlib releases the GIL)."""

    def __init__(self) -> None:
        """Start with no bytes."""
        self._sha256 = hashlib.sha256()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sha256")
        self._pending: Future[None] | None = None

    def update(self, chunk: Buffer) -> None:
        """Add bytes, which must not change; at most one chunk is under way at a time."""
        self.wait()
        self._pending = self._thread.submit(self._sha256.update, chunk)

    def hexdigest(self) -> str:
        """Return the digest of all bytes so far."""
        self.wait()
        return self._sha256.hexdigest()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=True)

    def wait(self) -> None:
        """Wait until the bytes given so far are added, and may change."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None


class Buffers:
    """Two pieces of memory for chunks, used in turn.

    One is being filled while the digest still reads the other; memory that is fresh for each chunk
    costs the system more time than copying the chunk.
    """

    def __init__(self) -> None:
        """Take no memory yet."""
        self._older, self._newer = new_memory(0), new_memory(0)

    def take(self, size: int) -> memoryview:
        """Return memory that nothing else writes to until the call after the next."""
        free = self._older if len(self._older) >= size else new_memory(size)
        self._older, self._newer = self._newer, free
        return free[:size]


class EarlySync:
    """Brings a file to the disk while it is written, so that the end is no long wait."""

    def __init__(self, descriptor: int) -> None:
        """Begin with an open file, of which nothing is written."""
        self._descriptor = descriptor
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sync")
        self._waiting = 0
        self._pending: Future[None] | None = None

    def wrote(self, count: int) -> None:
        """Count written bytes; raises OSError if the disk refused earlier ones."""
        self._waiting += count
        if self._waiting < SYNC_BYTES or (self._pending and not self._pending.done()):
            return
        if self._pending is not None:
            self._pending.result()
        self._waiting = 0
        self._pending = self._thread.submit(os.fsync, self._descriptor)

    def close(self) -> None:
        """Wait for the sync under way, for which the file must be open; raises OSError likewise."""
        self._thread.shutdown(wait=True)
        if self._pending is not None:
            self._pending.result()


def new_memory(size: int) -> memoryview:
    """Return fresh memory of `size` bytes."""
    return bytes_of(torch.empty(size, dtype=torch.uint8))


def bytes_of(tensor: Tensor) -> memoryview:
    """Return a view of the memory of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
