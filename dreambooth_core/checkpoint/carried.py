"""Entries of tensors that come from another file: byte for byte, or in another number format."""

from __future__ import annotations

from collections.abc import Iterator

from dreambooth_core.checkpoint.file import CheckpointReader, Entry, cast_chunks
from dreambooth_core.checkpoint.stream import Buffer, Buffers


def as_it_is(reader: CheckpointReader, key: str) -> Entry:
    """Return the entry of a tensor of an open file whose numbers are not looked at."""
    info = reader.header.tensors[key]
    return Entry(key, info.dtype, info.shape, lambda: reader.chunks(key), verbatim=True)


def cast_to(reader: CheckpointReader, key: str, dtype: str, buffers: Buffers) -> Entry:
    """Return the entry of a weight of an open file in a format ("F16"), which may be its own."""
    info = reader.header.tensors[key]

    def load() -> Iterator[Buffer]:
        chunks = reader.chunks(key)
        return chunks if dtype == info.dtype else cast_chunks(chunks, info.dtype, dtype, buffers)

    return Entry(key, dtype, info.shape, load)
