"""Disks without room: told from other errors, and in the words of a person."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from dreambooth_core.errors import FullDiskError

FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_ON_WINDOWS = (39, 112, 1295)
"""What Windows calls a full disk and a used-up quota; not all have a number of other systems."""


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk has no room, or not for this user."""
    if isinstance(error, OSError):
        return error.errno in FULL or getattr(error, "winerror", None) in FULL_ON_WINDOWS
    return isinstance(error, FullDiskError)


@contextmanager
def told_if_full(what: str) -> Iterator[None]:
    """Raise FullDiskError for a full disk in the block; `what` begins it: "The command"."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise full_disk(what, error) from error


def full_disk(what: str, error: OSError) -> FullDiskError:
    """Return the error of a person's for the system's."""
    where = f" ({error.filename})" if error.filename else ""
    return FullDiskError(
        f"{what} cannot be written: the disk is full{where}.", remedy="Free some space on it."
    )
