"""What is known of a checkpoint file without its numbers: its tensors and where they are."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

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
"""Bytes of one number of each dtype, by the names of the `.safetensors` format."""

MAX_DIMENSIONS = 16


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: its dtype, shape and bytes [start, end) counted from `Header.data_start`.

    `strides`, in numbers, are given where the numbers do not lie in the usual order.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    strides: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return self.end - self.start

    @classmethod
    def of_size(cls, dtype: str, shape: tuple[int, ...]) -> TensorInfo:
        """Return a tensor that has a size and no place yet."""
        return cls(dtype, shape, 0, prod(shape) * DTYPE_BYTES[dtype])


@dataclass(frozen=True)
class Header:
    """What a file says about itself; `tensors` is in the order of the bytes."""

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int

    @property
    def file_size(self) -> int:
        """The length of the tensors, and of what comes before them, in bytes."""
        return self.data_start + sum(info.size for info in self.tensors.values())


class Damage(Exception):
    """What is wrong with a file, in words."""

    def __init__(self, message: str, remedy: str = "") -> None:
        """Keep the words; `remedy` replaces the usual one."""
        super().__init__(message)
        self.remedy = remedy
