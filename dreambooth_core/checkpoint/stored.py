"""Tensors that stay in their files until each is asked for, and files that are read whole."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from dreambooth_core.checkpoint.contents import Header
from dreambooth_core.checkpoint.file import CheckpointReader
from dreambooth_core.checkpoint.proof import READ_BYTES, Crc32
from dreambooth_core.checkpoint.stream import bytes_of
from dreambooth_core.errors import CheckpointError
from dreambooth_core.job import disk


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, each read anew whenever it is asked for; only their shapes are known."""

    @property
    @abstractmethod
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes by name, in the order of the names."""

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self.shapes)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.shapes)

    def __contains__(self, name: object) -> bool:
        """Tell whether there is a tensor of that name, which is not read for that."""
        return name in self.shapes


class StoredTensors(LazyTensors):
    """The tensors of one file whose names begin with a prefix, which is left out."""

    def __init__(self, path: Path, prefix: str = "") -> None:
        """Read the header; raises CheckpointError."""
        self._reader, self._prefix = CheckpointReader(path), prefix
        self._shapes = {
            key.removeprefix(prefix): info.shape
            for key, info in self._reader.header.tensors.items()
            if key.startswith(prefix)
        }

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes by name."""
        return self._shapes

    def __getitem__(self, name: str) -> Tensor:
        """Read a tensor; the file is open only meanwhile."""
        if name not in self._shapes:
            raise KeyError(name)
        with self._reader as reader:
            return reader.read(self._prefix + name)


class JoinedTensors(LazyTensors):
    """The tensors of several mappings, lazy or not, no two of which share a name."""

    def __init__(self, parts: Iterable[Mapping[str, Tensor]]) -> None:
        """Remember where each is."""
        self._places: dict[str, Mapping[str, Tensor]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for part in parts:
            self._places |= dict.fromkeys(part, part)
            self._shapes |= shapes_of(part)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes by name."""
        return self._shapes

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor of one of the parts."""
        return self._places[name][name]


def shapes_of(tensors: Mapping[str, Tensor]) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of tensors by name; those that lie in files are not read for it."""
    if isinstance(tensors, LazyTensors):
        return tensors.shapes
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def read_whole(path: Path, crc32: str = "") -> tuple[Header, dict[str, Tensor]]:
    """Return a file's header and all its tensors, whose sum is computed on the way.

    Raises CheckpointError if it is not `crc32`, where that is known.
    """
    total, tensors = Crc32(), {}
    with CheckpointReader(path) as reader:
        for piece in reader.pieces(-reader.header.data_start, 0, "its header"):
            total.update(piece)
        for key in reader.header.tensors:
            tensors[key] = reader.read(key)
            total.update(bytes_of(tensors[key]))
    _require_sum(path, total, crc32)
    return reader.header, tensors


def check_sum(path: Path, crc32: str) -> None:
    """Read a file for its sum alone; raises CheckpointError if it is not `crc32`."""
    total, buffer = Crc32(), memoryview(bytearray(READ_BYTES))
    with disk.naming(path), disk.open_read(path) as file:
        while count := file.readinto(buffer):
            total.update(buffer[:count])
    _require_sum(path, total, crc32)


def _require_sum(path: Path, total: Crc32, crc32: str) -> None:
    if crc32 and total.hexdigest() != crc32:
        raise CheckpointError(
            f"{path} is damaged: its checksum is {total.hexdigest()}, and was {crc32} when it was"
            " written.",
            remedy="The disk may be failing, or something has changed the file.",
        )
