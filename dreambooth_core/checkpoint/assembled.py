"""A checkpoint that is spread over several files, read as if it were one.

A model may take its VAE from a file of its own, and a folder has a file for each component.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from dreambooth_core.checkpoint.contents import Header, TensorInfo
from dreambooth_core.checkpoint.file import CheckpointReader
from dreambooth_core.checkpoint.hashed import PassingDigest
from dreambooth_core.checkpoint.stream import bytes_of
from dreambooth_core.job import disk

HASH_BYTES = 2**20


@dataclass(frozen=True)
class Piece:
    """A tensor of a file; a matrix may be turned over its diagonal when it is read."""

    path: Path
    key: str
    transposed: bool = False


@dataclass(frozen=True)
class Assembly:
    """A checkpoint: what it holds, and where those tensors are that are not in its own file.

    Several pieces make one tensor, joined along the first axis; none make one of zeros. `parts` are
    the files of a folder; a checkpoint that is one file has none.
    """

    header: Header
    elsewhere: Mapping[str, tuple[Piece, ...]] = field(default_factory=dict)
    parts: tuple[Path, ...] = ()

    @property
    def file_size(self) -> int:
        """The bytes that reading all of it takes."""
        return sum(info.size for info in self.header.tensors.values())


class AssemblyReader:
    """Reads the tensors of an assembly in their order, and its digest; a context manager."""

    def __init__(self, assembly: Assembly) -> None:
        """Open nothing yet."""
        self._assembly = assembly
        self._readers: dict[Path, CheckpointReader] = {}
        self._digest: PassingDigest | None = None
        self._stack = ExitStack()

    def __enter__(self) -> AssemblyReader:
        """Open the checkpoint's own file."""
        if not self._assembly.parts:
            path = self._assembly.header.path
            self._digest = PassingDigest(self._reader(path), path.stat().st_size)
            self._stack.callback(self._digest.close)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close all files."""
        self._stack.close()

    def chunks(self, key: str) -> Iterator[memoryview]:
        """Yield the bytes of a tensor; a chunk stays as it is until the one after the next."""
        pieces = self._assembly.elsewhere.get(key)
        if pieces is None and self._digest is not None:
            yield from self._digest.passing(key)
        if pieces == ():
            yield memoryview(bytes(self._assembly.header.tensors[key].size))
        for piece in pieces or ():
            reader = self._reader(piece.path)
            if piece.transposed:
                yield bytes_of(reader.read(piece.key).t().contiguous())
            else:
                yield from reader.chunks(piece.key)

    def sha256(self) -> str:
        """Return the SHA-256 of the file, of which the rest is read now; of a folder's in turn."""
        if self._digest is not None:
            return self._digest.finish()
        digest = hashlib.sha256()
        for path in self._assembly.parts:
            with disk.naming(path), disk.open_read(path) as file:
                while chunk := file.read(HASH_BYTES):
                    digest.update(chunk)
        return digest.hexdigest()

    def _reader(self, path: Path) -> CheckpointReader:
        if path not in self._readers:
            self._readers[path] = self._stack.enter_context(CheckpointReader(path))
        return self._readers[path]


def with_tensors(
    header: Header, added: Mapping[str, tuple[TensorInfo, tuple[Piece, ...]]]
) -> Assembly:
    """Return a checkpoint with tensors of other files in the place of its own, or at its end."""
    tensors = dict(header.tensors)
    tensors |= {key: info for key, (info, _) in added.items()}
    pieces = {key: places for key, (_, places) in added.items()}
    return Assembly(Header(header.path, tensors, header.metadata, header.data_start), pieces)
