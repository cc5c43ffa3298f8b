"""The contents of a PyTorch checkpoint (`.ckpt`, `.pt`), found without running what it holds.

Such a file is a ZIP archive, not compressed: `<root>/data.pkl` tells each tensor's dtype, shape
and place, and `<root>/data/<number>` are the bytes (pytorch.org/docs, "Serialization semantics").
So a tensor is a piece of the file, and is read like one of a `.safetensors` file.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

from dreambooth_core.checkpoint.contents import (
    DTYPE_BYTES,
    MAX_DIMENSIONS,
    Damage,
    Header,
    TensorInfo,
)
from dreambooth_core.checkpoint.pickle_data import (
    DANGEROUS,
    PARAMETER,
    STORAGES,
    TENSOR,
    Call,
    Name,
    Reference,
    read_pickle,
)
from dreambooth_core.job import disk

MAX_PICKLE_BYTES = 32 * 2**20
MAX_DIRECTORY_BYTES = 32 * 2**20
LOCAL_HEADER_BYTES = 30
END_BYTES = 22
MAX_KEY = 1000
LOCAL_MAGIC = b"PK\x03\x04"
WEIGHTS = "state_dict"
"""Where training programs put the weights beside other records."""


@dataclass(frozen=True)
class _Archive:
    """An open archive: its entries by their names below the root."""

    file: IO[bytes]
    size: int
    entries: Mapping[str, zipfile.ZipInfo]

    def place(self, name: str) -> tuple[int, int]:
        """Return where in the file the bytes of an entry begin and end."""
        entry = self.entries.get(name)
        if entry is None:
            raise Damage(f"its part {name!r} is missing")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise Damage(
                f"its part {name!r} is compressed or encrypted, which PyTorch never does",
                DANGEROUS,
            )
        self.file.seek(entry.header_offset)
        raw = self.file.read(LOCAL_HEADER_BYTES)
        if len(raw) < LOCAL_HEADER_BYTES or not raw.startswith(LOCAL_MAGIC):
            raise Damage(f"its part {name!r} is not where its directory says")
        start = entry.header_offset + LOCAL_HEADER_BYTES + sum(struct.unpack_from("<HH", raw, 26))
        if start + entry.file_size > self.size:
            raise Damage(f"it ends inside its part {name!r}")
        return start, start + entry.file_size

    def read(self, name: str, limit: int) -> bytes:
        """Return the bytes of a small entry."""
        start, end = self.place(name)
        if end - start > limit:
            raise Damage(f"its part {name!r} has {end - start} bytes, more than any checkpoint's")
        self.file.seek(start)
        return self.file.read(end - start)


def read_pickled_header(path: Path) -> Header:
    """Return the tensors of a PyTorch archive in the order of their bytes; raises Damage."""
    size = path.stat().st_size
    with io.BufferedReader(disk.open_read(path)) as file:
        archive = _Archive(file, size, _entries(file, size))
        if "byteorder" in archive.entries and archive.read("byteorder", 16) != b"little":
            raise Damage("its numbers are stored in the order of another kind of computer")
        weights = _weights(read_pickle(archive.read("data.pkl", MAX_PICKLE_BYTES)))
        places: dict[str, tuple[int, int]] = {}
        tensors = {key: _tensor(key, call, archive, places) for key, call in weights.items()}
    if sum(info.size for info in tensors.values()) > 2 * size:
        raise Damage("its tensors are far larger than the file: they share the same bytes")
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
    return Header(path, ordered, {}, 0)


def _entries(file: IO[bytes], size: int) -> dict[str, zipfile.ZipInfo]:
    if _directory_bytes(file, size) > MAX_DIRECTORY_BYTES:
        raise Damage("its directory is larger than any checkpoint's")
    try:
        found = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        raise Damage(f"its archive is cut or damaged ({error})") from error
    roots = [
        entry.filename.removesuffix("data.pkl")
        for entry in found
        if entry.filename.endswith("/data.pkl")
    ]
    if len(roots) != 1:
        raise Damage(f"it holds {len(roots)} descriptions of tensors (data.pkl), not one")
    names = [entry.filename.removeprefix(roots[0]) for entry in found]
    if len(set(names)) != len(names):
        raise Damage("its archive names something twice", DANGEROUS)
    return dict(zip(names, found, strict=True))


def _directory_bytes(file: IO[bytes], size: int) -> int:
    """Return the length of the archive's directory as its end tells it; PyTorch adds no comment."""
    if size < END_BYTES:
        raise Damage(f"it has only {size} bytes")
    file.seek(size - END_BYTES)
    end = file.read(END_BYTES)
    if not end.startswith(b"PK\x05\x06"):
        raise Damage("it does not end like an archive: it is cut, or something was added")
    length: int = struct.unpack_from("<I", end, 12)[0]
    if length != 0xFFFFFFFF:
        return length
    file.seek(max(0, size - END_BYTES - 20 - 56))  # the two records of archives over 4 GB
    return int.from_bytes(file.read(56)[40:48], "little")


def _weights(root: Any) -> dict[str, Call]:
    """Return the descriptions of the tensors by their names."""
    if isinstance(root, dict) and isinstance(root.get(WEIGHTS), dict):
        root = root[WEIGHTS]
    if not isinstance(root, dict):
        raise Damage("it holds no dictionary of tensors")
    weights = {}
    for key, value in root.items():
        call = _unwrapped(value)
        if isinstance(key, str) and call is not None:
            weights[_checked(key)] = call
    if not weights:
        raise Damage("it holds no tensors")
    return weights


def _unwrapped(value: Any) -> Call | None:
    while isinstance(value, Call) and value.function.text == PARAMETER and value.arguments:
        value = value.arguments[0]
    return value if isinstance(value, Call) and value.function.text == TENSOR else None


def _checked(key: str) -> str:
    """Return a tensor's name, which must be of some use in another file and in messages."""
    try:
        key.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Damage("the name of a tensor is no proper text") from error
    if len(key) > MAX_KEY:
        raise Damage(f"a tensor's name is longer than {MAX_KEY} characters")
    return key


def _tensor(
    key: str, call: Call, archive: _Archive, places: dict[str, tuple[int, int]]
) -> TensorInfo:
    """Return where a tensor lies; `places` remembers the storages that were looked up."""
    storage, offset, shape, strides = _description(key, call)
    dtype, name = _storage(key, storage)
    if name not in places:
        places[name] = archive.place(f"data/{name}")
    first, last = places[name]
    width, count = DTYPE_BYTES[dtype], prod(shape)
    start = first + offset * width
    if start + _span(shape, strides) * width > last:
        raise Damage(f"{key!r} reaches beyond its {last - first} bytes")
    if not count or _is_usual(shape, strides):
        return TensorInfo(dtype, shape, start, start + count * width)
    if _span(shape, strides) != count:
        raise Damage(f"{key!r} is a part of a larger tensor, with gaps or repeated numbers")
    return TensorInfo(dtype, shape, start, start + count * width, strides)


def _description(key: str, call: Call) -> tuple[Any, int, tuple[int, ...], tuple[int, ...]]:
    """Return a tensor's storage, offset, shape and strides, the last three as counts."""
    if len(call.arguments) < 4:
        raise Damage(f"the description of {key!r} is incomplete")
    storage, offset, shape, strides = call.arguments[:4]
    are_counts = _are_counts((offset,)) and _are_counts(shape) and _are_counts(strides)
    if not are_counts or len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise Damage(f"{key!r} has an impossible shape")
    return storage, offset, shape, strides


def _storage(key: str, storage: Any) -> tuple[str, str]:
    """Return the dtype and name of the storage that a tensor refers to."""
    said = storage.description if isinstance(storage, Reference) else None
    if not isinstance(said, tuple) or len(said) < 3 or said[0] != "storage":
        raise Damage(f"the numbers of {key!r} are not in the file")
    kind, name = said[1], said[2]
    if not isinstance(kind, Name) or kind.text not in STORAGES or not isinstance(name, str):
        raise Damage(f"{key!r} is of an unknown kind")
    return STORAGES[kind.text], name


def _are_counts(values: Any) -> bool:
    return isinstance(values, tuple) and all(
        type(value) is int and 0 <= value < 2**63 for value in values
    )


def _span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Return how many numbers lie between the first and the last, both included."""
    if not prod(shape):
        return 0
    return 1 + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))


def _is_usual(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Return whether the last index runs fastest, without gaps; sides of 1 do not matter."""
    expected = 1
    for side, stride in zip(reversed(shape), reversed(strides), strict=True):
        if side != 1 and stride != expected:
            return False
        expected *= side
    return True
