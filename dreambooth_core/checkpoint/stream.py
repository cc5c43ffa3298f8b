"""What a stream of tensors passes through: memory that is used again, and a digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from dreambooth_core.checkpoint.proof import Checksum

Buffer = bytes | memoryview

SMALL_BYTES = 2**16
"""Hashed at once: to hand so little to a thread takes longer."""


class Digest:
    """A sum, else SHA-256, computed in a thread beside the reading and writing.

    (hashlib and zlib release the GIL.)
    """

    def __init__(self, kind: Callable[[], Checksum] = hashlib.sha256) -> None:
        """Start with no bytes."""
        self._sum = kind()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="digest")
        self._pending: Future[None] | None = None

    def update(self, chunk: Buffer) -> None:
        """Add bytes, which must not change; at most one chunk is under way at a time."""
        self.wait()
        if len(chunk) <= SMALL_BYTES:
            self._sum.update(chunk)
        else:
            self._pending = self._thread.submit(self._sum.update, chunk)

    def hexdigest(self) -> str:
        """Return the digest of all bytes so far."""
        self.wait()
        return self._sum.hexdigest()

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


def new_memory(size: int) -> memoryview:
    """Return fresh memory of `size` bytes."""
    return bytes_of(torch.empty(size, dtype=torch.uint8))


def bytes_of(tensor: Tensor) -> memoryview:
    """Return a view of the memory of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
