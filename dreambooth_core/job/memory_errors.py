"""Errors that mean that memory ran out, of whatever library, told from their words; without torch.

Where such an error came from is marked on it, so that the end of a run can be told of it.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

GPU, RAM = "GPU", "RAM"

PAGING_FILE_TOO_SMALL = 1455
"""What Windows calls it."""

_MARK = "dreambooth_place"
_UNITS = {
    "": 1,
    "b": 1,
    "bytes": 1,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
    "eib": 2**60,
}
_UNITS |= {"kb": 2**10, "mb": 2**20, "gb": 2**30}
_SIZE = r"([\d.]+) *([KMGTPE]?i?B(?:ytes)?|bytes)?"

_ON_GPU = re.compile(
    r"\b(?:CUDA|HIP|XPU|MPS|NPU)\b.{0,40}out of memory|CUDA error: out of memory"
    r"|(?:CUBLAS|CUDNN|CUSPARSE|CUSOLVER)_STATUS_ALLOC_FAILED"
    r"|not enough GPU video memory|UR_RESULT_ERROR_OUT_OF_(?:DEVICE_|RESOURCES)",
    re.DOTALL,
)
_IN_RAM = re.compile(
    r"DefaultCPUAllocator|cannot allocate memory|not enough memory:|os error 1455"
    r"|unable to allocate .{1,40} for an array|std::bad_alloc",
    re.IGNORECASE,
)
_ASKED = re.compile(rf"(?:tried to allocate|unable to allocate|allocate tensor with) {_SIZE}", re.I)
_LIMITS = (rf"{_SIZE} allowed", rf"max allowed: {_SIZE}")
_FREE = re.compile(rf"of which {_SIZE} is free", re.I)
_USED = re.compile(rf"this process has {_SIZE} memory in use", re.I)


@dataclass(frozen=True)
class Shortage:
    """Memory that was not there; sizes in bytes, 0 where the error does not tell.

    `there` is the most that this process could have had.
    """

    device: str
    asked: int = 0
    used: int = 0
    there: int = 0

    def __str__(self) -> str:
        """Return what is known of it in words, such as "2.0 GB were asked for"."""
        known = (
            (self.asked, "asked for"),
            (self.used, "in use"),
            (self.there, "there at most"),
        )
        return ", ".join(f"{size_words(size)} {words}" for size, words in known if size)


@dataclass(frozen=True)
class Place:
    """Where memory ran out: in words, and whether weights were just being changed."""

    doing: str = ""
    changes_weights: bool = False


def shortage_of(error: BaseException) -> Shortage | None:
    """Return what an error says of memory that ran out; None for any other error."""
    words = str(error)
    if type(error).__name__ == "OutOfMemoryError":
        return _shortage(GPU, words)
    if isinstance(error, MemoryError):
        return _shortage(RAM, words)
    if isinstance(error, OSError):
        windows = getattr(error, "winerror", None) == PAGING_FILE_TOO_SMALL
        return Shortage(RAM) if windows or error.errno == errno.ENOMEM else None
    if not isinstance(error, RuntimeError) and type(error).__name__ != "SafetensorError":
        return None
    if _ON_GPU.search(words):
        return _shortage(GPU, words)
    return _shortage(RAM, words) if _IN_RAM.search(words) else None


@contextmanager
def during(doing: str, *, changes_weights: bool = False) -> Iterator[None]:
    """Mark an error of the block, of memory that ran out, with where it came from.

    What is marked already keeps its words; that weights were being changed is never forgotten.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if shortage_of(error) is not None:
            mark(error, doing, changes_weights=changes_weights)
        raise


def mark(error: BaseException, doing: str, *, changes_weights: bool = False) -> None:
    """Mark an error with where it came from, as `during` does."""
    before = place_of(error)
    half = changes_weights or before.changes_weights
    setattr(error, _MARK, Place(before.doing or doing, half))


def place_of(error: BaseException) -> Place:
    """Return where an error came from; an empty place if nothing is marked."""
    place = getattr(error, _MARK, None)
    return place if isinstance(place, Place) else Place()


def size_words(size: int) -> str:
    """Return a number of bytes in GB, or in MB where it is small."""
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{max(size / 2**20, 0.1):.1f} MB"


def _shortage(device: str, words: str) -> Shortage:
    used, free = _bytes(_USED.search(words)), _bytes(_FREE.search(words))
    limits = (_bytes(re.search(pattern, words, re.I)) for pattern in _LIMITS)
    limit = next((size for size in limits if size), 0)
    return Shortage(device, _bytes(_ASKED.search(words)), used, limit or (used and used + free))


def _bytes(found: re.Match[str] | None) -> int:
    if found is None:
        return 0
    number, unit = found.groups()
    try:
        return round(float(number.rstrip(".")) * _UNITS.get((unit or "").lower(), 1))
    except ValueError:
        return 0
