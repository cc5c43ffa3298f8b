"""A file's SHA-256, computed from the bytes that are read of it anyway."""

from __future__ import annotations

from collections.abc import Iterator

from dreambooth_core.checkpoint.file import CheckpointReader
from dreambooth_core.checkpoint.stream import Digest

REST = "the rest of the file"


class PassingDigest:
    """The digest of a whole file, of which a reader reads most parts, from front to back.

    What lies between the parts is read for the digest alone.
    """

    def __init__(self, reader: CheckpointReader, file_size: int) -> None:
        """Begin with an open reader, of which nothing is read yet."""
        self._reader, self._digest = reader, Digest()
        self._base = reader.header.data_start
        self._end = file_size - self._base
        self._done = -self._base

    def passing(self, key: str) -> Iterator[memoryview]:
        """Yield the bytes of a tensor, and add them, and all before them, to the digest."""
        info = self._reader.header.tensors[key]
        if info.strides or info.start < self._done:
            self._digest.wait()  # nothing of this is hashed now, so nothing else would wait
            yield from self._reader.chunks(key)
            return
        self._catch_up(info.start)
        for chunk in self._reader.chunks(key):
            self._digest.update(chunk)
            self._done += len(chunk)
            yield chunk

    def finish(self) -> str:
        """Read and add what is left, and return the digest."""
        self._catch_up(self._end)
        return self._digest.hexdigest()

    def close(self) -> None:
        """End the digest's thread."""
        self._digest.close()

    def _catch_up(self, end: int) -> None:
        for chunk in self._reader.pieces(self._done, end, REST):
            self._digest.update(chunk)
        self._done = max(self._done, end)
