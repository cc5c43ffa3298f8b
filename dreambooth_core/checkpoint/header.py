"""The header of a `.safetensors` file: which tensors it holds and where, read without torch.

Layout of a file: 8 bytes of length (little-endian), a JSON object of that length, then the tensors'
bytes without gaps (github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from dreambooth_core.errors import CheckpointError

DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "C64": 8,
}
"""Bytes of one number of each dtype that the format knows."""

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 16
METADATA_KEY = "__metadata__"
ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80\x02"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: its dtype, shape and bytes [start, end) counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """What a file says about itself; `tensors` is in the order of the bytes."""

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int

    @property
    def file_size(self) -> int:
        """The length of the whole file in bytes."""
        return self.data_start + sum(info.size for info in self.tensors.values())


class _Damage(Exception):
    """What is wrong with a header, in words."""


def read_header(path: Path) -> Header:
    """Read and check a header; raises CheckpointError naming the file, the fault and the remedy."""
    path = Path(path)
    try:
        size = path.stat().st_size
        raw = _read_raw(path, size)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"The checkpoint {path} does not exist.", remedy="Check the name and the folder."
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be read: {error.strerror or error}.",
            remedy="Give a .safetensors file that you may read.",
        ) from error
    except _Damage as damage:
        raise _damaged(path, damage) from damage
    try:
        return _parse(path, raw, size - LENGTH_BYTES - len(raw))
    except _Damage as damage:
        raise _damaged(path, damage) from damage


def encode_header(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """Return the length and the JSON, padded with spaces so that the tensors start aligned."""
    table: dict[str, Any] = {METADATA_KEY: dict(metadata)} if metadata else {}
    for key, info in tensors.items():
        offsets = [info.start, info.end]
        table[key] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": offsets}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _damaged(path: Path, damage: _Damage) -> CheckpointError:
    remedy = "The file is damaged or incomplete: download or copy it again."
    if path.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        remedy = "Convert it to .safetensors first; other formats can hide programs in them."
    return CheckpointError(f"{path} is not a readable .safetensors file: {damage}.", remedy=remedy)


def _read_raw(path: Path, size: int) -> bytes:
    if size < LENGTH_BYTES:
        raise _Damage(f"it has only {size} bytes")
    with path.open("rb") as file:
        first = file.read(LENGTH_BYTES)
        if first.startswith((ZIP_MAGIC, PICKLE_MAGIC)):
            raise _Damage("it is a PyTorch pickle (.ckpt)")
        length = int.from_bytes(first, "little")
        if length > MAX_HEADER_BYTES:
            raise _Damage("it does not begin with the length of a header")
        if length > size - LENGTH_BYTES:
            raise _Damage(f"it ends inside its header of {length} bytes")
        return file.read(length)


def _parse(path: Path, raw: bytes, data_bytes: int) -> Header:
    table = _parse_json(raw)
    metadata = _check_metadata(table.pop(METADATA_KEY, {}))
    tensors = {key: _check_tensor(key, entry) for key, entry in table.items()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
    _check_offsets(ordered, data_bytes)
    return Header(path, ordered, metadata, LENGTH_BYTES + len(raw))


def _parse_json(raw: bytes) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        raise _Damage("its header does not begin with '{'")
    try:
        text = raw.decode("utf-8")
        table = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        "".join(table).encode("utf-8")  # a lone surrogate in a name could not be written again
    except (ValueError, RecursionError) as error:
        raise _Damage(f"its header is not valid JSON ({error})") from error
    if not isinstance(table, dict):
        raise _Damage("its header is not a JSON object")
    return table


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise _Damage("its header names something twice")
    return table


def _refuse_constant(name: str) -> Any:
    raise _Damage(f"its header holds {name}, which JSON does not have")


def _check_metadata(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict):
        raise _Damage(f"its {METADATA_KEY} is not an object")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise _Damage(f"its {METADATA_KEY} holds something other than text")
    return metadata


def _check_tensor(key: str, entry: Any) -> TensorInfo:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _Damage(f"the entry of {key!r} lacks its dtype, shape or offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise _Damage(f"{key!r} has the unknown dtype {dtype!r}")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise _Damage(f"{key!r} has an impossible shape")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _Damage(f"{key!r} has impossible offsets")
    info = TensorInfo(dtype, tuple(shape), offsets[0], offsets[1])
    expected = prod(shape) * DTYPE_BYTES[dtype]
    if info.size != expected:
        raise _Damage(f"{key!r} has {info.size} bytes where its shape and dtype need {expected}")
    return info


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_offsets(ordered: Mapping[str, TensorInfo], data_bytes: int) -> None:
    position = 0
    for key, info in ordered.items():
        if info.start != position:
            fault = "overlaps another tensor" if info.start < position else "leaves a gap before it"
            raise _Damage(f"{key!r} {fault}")
        position = info.end
    if position != data_bytes:
        raise _Damage(f"its header tells of {position} bytes of tensors, the file has {data_bytes}")
