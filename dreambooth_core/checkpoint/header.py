"""The header of a checkpoint file: which tensors it holds and where, read without torch.

Layout of a `.safetensors` file: 8 bytes of length (little-endian), a JSON object of that length,
then the tensors' bytes without gaps (github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from dreambooth_core.checkpoint.contents import (
    DTYPE_BYTES,
    MAX_DIMENSIONS,
    Damage,
    Header,
    TensorInfo,
)
from dreambooth_core.checkpoint.pickled import read_pickled_header
from dreambooth_core.errors import CheckpointError
from dreambooth_core.job import disk

__all__ = ["DTYPE_BYTES", "Header", "TensorInfo", "encode_header", "read_header"]

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
METADATA_KEY = "__metadata__"
ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80\x02"
PICKLED_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
OLD_PICKLE = "Load it in the WebUI and save it as .safetensors; its merger can do that."


def read_header(path: Path) -> Header:
    """Read and check a header; raises CheckpointError naming the file, the fault and the remedy."""
    path = Path(path)
    try:
        if _is_archive(path):
            return read_pickled_header(path)
        size = path.stat().st_size
        raw = _read_raw(path, size)
        return _parse(path, raw, size - LENGTH_BYTES - len(raw))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"The checkpoint {path} does not exist.", remedy="Check the name and the folder."
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be read: {error.strerror or error}.",
            remedy="Give a file that you may read.",
        ) from error
    except Damage as damage:
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


def _damaged(path: Path, damage: Damage) -> CheckpointError:
    remedy = damage.remedy or "The file is damaged or incomplete: download or copy it again."
    return CheckpointError(f"{path} is not a readable checkpoint: {damage}.", remedy=remedy)


def _is_archive(path: Path) -> bool:
    with disk.open_read(path) as file:
        return file.read(len(ZIP_MAGIC)) == ZIP_MAGIC


def _read_raw(path: Path, size: int) -> bytes:
    if size < LENGTH_BYTES:
        raise Damage(f"it has only {size} bytes")
    with disk.open_read(path) as file:
        first = file.read(LENGTH_BYTES)
        is_json = file.read(1) == b"{"
        file.seek(LENGTH_BYTES)
        if first.startswith(PICKLE_MAGIC) and not is_json:  # a length can begin with these bytes
            raise Damage("it is a pickle of PyTorch before version 1.6", OLD_PICKLE)
        length = int.from_bytes(first, "little")
        if length > MAX_HEADER_BYTES:
            remedy = OLD_PICKLE if path.suffix.lower() in PICKLED_SUFFIXES else ""
            raise Damage("it does not begin with the length of a header", remedy)
        if length > size - LENGTH_BYTES:
            raise Damage(f"it ends inside its header of {length} bytes")
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
        raise Damage("its header does not begin with '{'")
    try:
        text = raw.decode("utf-8")
        table = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        "".join(table).encode("utf-8")  # a lone surrogate in a name could not be written again
    except (ValueError, RecursionError) as error:
        raise Damage(f"its header is not valid JSON ({error})") from error
    if not isinstance(table, dict):
        raise Damage("its header is not a JSON object")
    return table


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise Damage("its header names something twice")
    return table


def _refuse_constant(name: str) -> Any:
    raise Damage(f"its header holds {name}, which JSON does not have")


def _check_metadata(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict):
        raise Damage(f"its {METADATA_KEY} is not an object")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise Damage(f"its {METADATA_KEY} holds something other than text")
    return metadata


def _check_tensor(key: str, entry: Any) -> TensorInfo:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise Damage(f"the entry of {key!r} lacks its dtype, shape or offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise Damage(f"{key!r} has the unknown dtype {dtype!r}")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise Damage(f"{key!r} has an impossible shape")
    if not _are_offsets(offsets):
        raise Damage(f"{key!r} has impossible offsets")
    info = TensorInfo(dtype, tuple(shape), offsets[0], offsets[1])
    expected = prod(shape) * DTYPE_BYTES[dtype]
    if info.size != expected:
        raise Damage(f"{key!r} has {info.size} bytes where its shape and dtype need {expected}")
    return info


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _are_offsets(values: Any) -> bool:
    return _are_counts(values) and len(values) == 2 and values[0] <= values[1]


def _check_offsets(ordered: Mapping[str, TensorInfo], data_bytes: int) -> None:
    position = 0
    for key, info in ordered.items():
        if info.start != position:
            fault = "overlaps another tensor" if info.start < position else "leaves a gap before it"
            raise Damage(f"{key!r} {fault}")
        position = info.end
    if position != data_bytes:
        raise Damage(f"its header tells of {position} bytes of tensors, the file has {data_bytes}")
