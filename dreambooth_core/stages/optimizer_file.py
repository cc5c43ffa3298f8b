"""What an optimizer remembers, as one `.safetensors` file: tensors, and plain numbers beside them.

The numbers stand in the file's metadata, in a copy of the whole in which a word takes the place of
each tensor. Nothing in the file can be a program.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.checkpoint.file import Entry, dtype_name, write_summed
from dreambooth_core.checkpoint.stored import read_whole
from dreambooth_core.errors import CheckpointError, NonFiniteError

MEMORY_KEY = "memory"
TENSOR = "tensor"


def write_memory(path: Path, memory: dict[str, Any]) -> str:
    """Write nested dictionaries and lists of tensors, numbers and None; return the file's CRC-32.

    Raises NonFiniteError naming a tensor or number that is NaN or infinite.
    """
    tensors: dict[str, Tensor] = {}
    plain = _replaced(memory, lambda key, value: _taken_out(tensors, key, value))
    entries = [_entry(key, tensor) for key, tensor in tensors.items()]
    return write_summed(path, entries, {MEMORY_KEY: json.dumps(plain, separators=(",", ":"))})


def read_memory(path: Path, crc32: str = "") -> dict[str, Any]:
    """Return what was written; raises CheckpointError if the file is damaged or another one.

    The whole file's sum is compared to `crc32`, where that is known.
    """
    header, tensors = read_whole(path, crc32)
    try:
        plain = json.loads(header.metadata[MEMORY_KEY])
        memory: dict[str, Any] = _replaced(
            plain, lambda key, value: tensors[key] if value == TENSOR else value
        )
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} does not hold what an optimizer remembers: {error}.",
            remedy="Resume from another state, or start a new run.",
        ) from error
    return memory


def _replaced(value: Any, replace: Callable[[str, Any], Any], key: str = "") -> Any:
    """Return a copy in which `replace` was asked for everything that is no dictionary or list."""
    if isinstance(value, dict):
        return {
            name: _replaced(inner, replace, f"{key}/{name}" if key else str(name))
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_replaced(inner, replace, f"{key}/{n}") for n, inner in enumerate(value)]
    return replace(key, value)


def _taken_out(tensors: dict[str, Tensor], key: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        tensors[key] = value
        return TENSOR
    if isinstance(value, float) and not math.isfinite(value):
        raise NonFiniteError(f"The optimizer remembers {value} as {key}.")
    if value is None or isinstance(value, bool | int | float):
        return value
    raise TypeError(f"{key} is {value!r}, which is neither a tensor nor a number")


def _entry(key: str, tensor: Tensor) -> Entry:
    def load() -> Tensor:
        return tensor.detach().to("cpu", memory_format=torch.contiguous_format).reshape(-1)

    return Entry(key, dtype_name(tensor.dtype), tuple(tensor.shape), load)
