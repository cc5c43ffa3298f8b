"""Tensors of checkpoint files, read one at a time, and written to `.safetensors` as a stream.

No file is ever mapped into memory or read whole: what passes through is chunks of CHUNK_BYTES, so
a 4 GB checkpoint needs a few tens of megabytes, and Windows can replace a file that was read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreambooth_core.checkpoint.blocks import BlockWriter
from dreambooth_core.checkpoint.header import (
    DTYPE_BYTES,
    TensorInfo,
    encode_header,
    read_header,
)
from dreambooth_core.checkpoint.proof import Checksum, Crc32
from dreambooth_core.checkpoint.stream import (
    Buffer,
    Buffers,
    bytes_of,
)
from dreambooth_core.errors import CheckpointError, NonFiniteError
from dreambooth_core.job import disk
from dreambooth_core.job.storage import atomic_file, atomic_write_bytes, undone_on_error

CHUNK_BYTES = 8 * 2**20

TORCH_DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""Dtypes that can become tensors; the others pass through as bytes."""

EXPONENTS: dict[str, np.unsignedinteger[Any]] = {
    "F16": np.uint16(0x7C00),
    "BF16": np.uint16(0x7F80),
    "F32": np.uint32(0x7F800000),
    "F64": np.uint64(0x7FF0000000000000),
}
"""The bits of a number's exponent; all are set in NaN and infinity, and in no other (IEEE 754)."""

FLOATING = tuple(EXPONENTS)

LOOKED_AT = 2**16
"""Numbers that are looked at together: so many that they and their exponents stay in the cache."""

Data = Tensor | Buffer | Iterable[Buffer]
"""A tensor's contents: a tensor, its bytes, or its bytes in chunks of whole numbers."""


class CheckpointReader:
    """Reads the tensors of one file; a context manager."""

    def __init__(self, path: Path) -> None:
        """Read and check the header; raises CheckpointError."""
        self.header = read_header(path)
        self._file: FileIO | None = None
        self._buffers = Buffers()

    def __enter__(self) -> CheckpointReader:
        """Open the file."""
        self._file = disk.open_read(self.header.path)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def chunks(self, key: str) -> Iterator[memoryview]:
        """Yield the bytes of a tensor, at most CHUNK_BYTES at a time.

        A chunk stays as it is until the one after the next is read, from this tensor or another.
        """
        info = self._info(key)
        if info.strides:
            yield bytes_of(self.read(key))
        else:
            yield from self.pieces(info.start, info.end, key)

    def pieces(self, start: int, end: int, what: str) -> Iterator[memoryview]:
        """Yield the bytes [start, end) counted from the tensors' beginning, as `chunks` does."""
        for offset in range(start, end, CHUNK_BYTES):
            chunk = self._buffers.take(min(CHUNK_BYTES, end - offset))
            self._fill(chunk, offset, what)
            yield chunk

    def read_bytes(self, key: str) -> bytes:
        """Return the bytes of a tensor."""
        return b"".join(bytes(chunk) for chunk in self.chunks(key))

    def read(self, key: str) -> Tensor:
        """Return a tensor in its own memory; raises CheckpointError for a dtype torch lacks."""
        info = self._info(key)
        if info.dtype not in TORCH_DTYPES:
            raise CheckpointError(
                f"{self.header.path}: {key} has the number format {info.dtype}, which cannot be"
                " calculated with.",
                remedy="Use a checkpoint in fp16, bf16 or fp32.",
            )
        tensor = torch.empty(info.shape, dtype=TORCH_DTYPES[info.dtype])
        self._fill(bytes_of(tensor), info.start, key)
        if info.strides:
            return tensor.as_strided(info.shape, info.strides).contiguous()
        return tensor

    def _info(self, key: str) -> TensorInfo:
        info = self.header.tensors.get(key)
        if info is None:
            raise CheckpointError(
                f"{self.header.path} has no tensor {key!r}.",
                remedy="The file is incomplete or of another model: create the model again.",
            )
        return info

    def _fill(self, target: memoryview, offset: int, what: str) -> None:
        if self._file is None:
            raise ValueError(f"{self.header.path} is not open")
        with disk.naming(self.header.path):
            self._file.seek(self.header.data_start + offset)
            while target:
                count = self._file.readinto(target)
                if not count:
                    raise CheckpointError(
                        f"{self.header.path} ended while {what} was read.",
                        remedy="Another program is changing the file, or the disk is failing.",
                    )
                target = target[count:]


@dataclass(frozen=True)
class Entry:
    """A tensor to write: `load` is called when its turn comes and may return its bytes in chunks.

    `dtype` is the format's name ("F16"). A `verbatim` entry is carried from another file byte for
    byte and its numbers are not looked at; all others must be finite.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], Data]
    verbatim: bool = False

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class WrittenFile:
    """A file that is safely on the disk."""

    path: Path
    size: int
    sha256: str


class CheckpointWriter:
    """Streams the given entries, in their order, to a file; a context manager.

    On leaving, the disk has the file, was asked for it again, and gave back what was written; to
    give it its final name is the caller's (`atomic_file`).
    """

    def __init__(
        self,
        path: Path,
        entries: Sequence[Entry],
        metadata: Mapping[str, str] | None = None,
        kind: Callable[[], Checksum] = Crc32,
    ) -> None:
        """Lay out the file, whose sum is to be of a `kind`; nothing is opened yet."""
        self.path = path
        self.sum = ""
        self._kind = kind
        self._entries = {entry.key: entry for entry in entries}
        self._infos = _lay_out(entries)
        self._header = encode_header(self._infos, metadata or {})
        self._next = iter(self._entries)
        self._blocks: BlockWriter | None = None

    @property
    def size(self) -> int:
        """The length of the finished file in bytes."""
        return len(self._header) + sum(info.size for info in self._infos.values())

    def __enter__(self) -> CheckpointWriter:
        """Open the file and write its header."""
        self._blocks = BlockWriter(self.path, self._kind)
        self._put(self._header)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file; if all went well, read it again and compare."""
        if self._blocks is None:
            return
        try:
            if kind is None:
                self.sum = self._blocks.finish()
        finally:
            self._blocks.close()
            self._blocks = None
        if kind is None and read_header(self.path).tensors != self._infos:
            raise CheckpointError(
                f"{self.path} holds other tensors than were to be written.",
                remedy="Another program is changing the file: try again.",
            )

    def write(self, key: str, data: Data) -> None:
        """Write the next tensor; raises NonFiniteError naming it if it holds NaN or infinity."""
        expected = next(self._next, None)
        if key != expected:
            raise ValueError(f"{key!r} was written where {expected!r} comes next")
        entry, written = self._entries[key], 0
        for chunk in _chunks(data):
            if not entry.verbatim and not is_finite(chunk, entry.dtype):
                raise NonFiniteError(
                    f"{key} holds NaN or infinite numbers, so the file was not written.",
                    remedy="The weights are broken: use an earlier state, or a lower learning"
                    " rate, and bf16 or fp32 to save numbers too large for fp16.",
                )
            self._put(chunk)
            written += len(chunk)
        if written != entry.size:
            raise ValueError(f"{key!r} came with {written} bytes instead of {entry.size}")

    def _put(self, chunk: Buffer) -> None:
        if self._blocks is None:
            raise ValueError(f"{self.path} is not open")
        self._blocks.put(chunk)


def write_checkpoint(
    path: Path,
    entries: Sequence[Entry],
    metadata: Mapping[str, str] | None = None,
    beside: Mapping[Path, bytes] | None = None,
) -> WrittenFile:
    """Write a file as a stream, all or nothing, and return its size and SHA-256.

    The small files `beside` it are written once it is proven, just before it gets its name; they
    are as they were if it fails. Raises NonFiniteError naming a tensor that holds NaN or infinity;
    `path` is then untouched.
    """
    size, digest = _write(path, entries, metadata or {}, beside or {}, hashlib.sha256)
    return WrittenFile(path, size, digest)


def write_summed(path: Path, entries: Sequence[Entry], metadata: Mapping[str, str]) -> str:
    """Write a file like `write_checkpoint`, but return its CRC-32."""
    return _write(path, entries, metadata, {}, Crc32)[1]


def _write(
    path: Path,
    entries: Sequence[Entry],
    metadata: Mapping[str, str],
    beside: Mapping[Path, bytes],
    kind: Callable[[], Checksum],
) -> tuple[int, str]:
    """Return the size and the sum of the written file."""
    with undone_on_error(beside), atomic_file(path) as temporary:
        with CheckpointWriter(temporary, entries, metadata, kind) as writer:
            for entry in entries:
                writer.write(entry.key, entry.load())
        for small, data in beside.items():
            atomic_write_bytes(small, data)
    return writer.size, writer.sum


def is_finite(chunk: Buffer, dtype: str) -> bool:
    """Return whether all numbers of the chunk are finite; true for dtypes that are not floats."""
    if dtype not in FLOATING or not len(chunk):
        return True
    exponent = EXPONENTS[dtype]
    numbers: np.ndarray[Any, Any] = np.frombuffer(chunk, dtype=exponent.dtype)
    exponents = np.empty(min(len(numbers), LOOKED_AT), dtype=exponent.dtype)
    for start in range(0, len(numbers), LOOKED_AT):
        part = numbers[start : start + LOOKED_AT]
        if np.bitwise_and(part, exponent, out=exponents[: len(part)]).max() == exponent:
            return False
    return True


def cast_chunks(
    chunks: Iterable[Buffer], source: str, target: str, buffers: Buffers
) -> Iterator[memoryview]:
    """Yield the chunks' numbers in another dtype; both are the format's names of float dtypes."""
    for chunk in chunks:
        numbers = torch.frombuffer(chunk, dtype=TORCH_DTYPES[source])
        cast = buffers.take(len(numbers) * DTYPE_BYTES[target])
        torch.frombuffer(cast, dtype=TORCH_DTYPES[target]).copy_(numbers)
        yield cast


def tensor_of(chunks: Iterable[Buffer], dtype: str, shape: Sequence[int]) -> Tensor:
    """Return a tensor in its own memory out of its bytes; `dtype` is the format's name."""
    raw = bytearray().join(chunks)
    numbers = torch.frombuffer(raw, dtype=TORCH_DTYPES[dtype]) if raw else torch.empty(0)
    return numbers.to(TORCH_DTYPES[dtype]).reshape(tuple(shape))


def dtype_name(dtype: torch.dtype) -> str:
    """Return the format's name of a torch dtype."""
    return next(name for name, known in TORCH_DTYPES.items() if known == dtype)


def _lay_out(entries: Sequence[Entry]) -> dict[str, TensorInfo]:
    infos: dict[str, TensorInfo] = {}
    position = 0
    for entry in entries:
        if entry.key in infos:
            raise ValueError(f"{entry.key!r} is to be written twice")
        infos[entry.key] = TensorInfo(entry.dtype, entry.shape, position, position + entry.size)
        position += entry.size
    return infos


def _chunks(data: Data) -> Iterator[Buffer]:
    if isinstance(data, Tensor):
        data = bytes_of(data.detach().cpu().contiguous())
    if isinstance(data, bytes | memoryview):
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]
    else:
        yield from data
