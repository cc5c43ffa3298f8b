"""The one place that changes the disk, and that opens files of ours to read them.

Everything else calls these functions as `disk.name(...)`, so that a test can let any of them fail
where it is called. `storage.py` makes of them what is whole or absent.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

if sys.platform == "linux":
    import fcntl

CHANGES = (
    *("create", "append", "write", "sync", "rename", "remove", "make_folder", "remove_folder"),
    *("sync_folder", "truncate"),
)
"""The functions that change the disk."""

READS = ("open_read", "read")
"""The functions that read files."""

# A virus scanner or a reader may hold a file open for a moment; only Windows refuses to replace it.
RENAME_ATTEMPTS = 20
RENAME_PAUSE_SECONDS = 0.1


def create(path: Path) -> FileIO:
    """Open a file to write it anew."""
    return FileIO(path, "wb")


def append(path: Path) -> FileIO:
    """Open a file to read it and to write at its end; it is made if it is missing."""
    return FileIO(path, "ab+")


def write(file: FileIO, data: bytes | bytearray | memoryview) -> None:
    """Write all of `data`."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def sync(descriptor: int) -> None:
    """Wait until the disk has what was written to an open file."""
    os.fsync(descriptor)


def rename(source: Path, target: Path) -> None:
    """Give `source` the name `target` in one step, waiting while Windows has `target` in use.

    A file of that name is replaced; of folders, only an empty one, and on Windows none.
    """
    for attempt in range(1, RENAME_ATTEMPTS + 1):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if sys.platform != "win32" or attempt == RENAME_ATTEMPTS:
                raise
            time.sleep(RENAME_PAUSE_SECONDS)


def remove(path: Path) -> None:
    """Delete a file; one that is gone already is none to delete."""
    Path(path).unlink(missing_ok=True)


def make_folder(path: Path, *, new: bool = False) -> None:
    """Make a folder and those above it, so that a power failure does not take their names again.

    Raises FileExistsError for a `new` one that is there.
    """
    path = Path(path)
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=not new)
    with naming(path):
        for folder in missing:
            sync_folder(folder.parent)


def remove_folder(path: Path) -> None:
    """Delete a folder with all in it, if it is there; raises OSError if something stays."""
    if os.path.lexists(path):
        shutil.rmtree(path)


def sync_folder(path: Path) -> None:
    """Wait until the disk has a folder's list of names; Windows has no such call and needs none."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_direct(descriptor: int, on: bool) -> bool:
    """Let an open file be read and written past the system's memory, or through it again.

    Returns whether it is; then memory, place and length must be multiples of the disk's blocks.
    Only Linux can, and there not every file system.
    """
    if sys.platform != "linux":
        return False
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return on


def drop_cache(descriptor: int, start: int, count: int) -> None:
    """Let the system forget what it keeps in memory of a piece of a file that the disk has.

    So that reading it asks the disk. Where the system cannot, nothing is done.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, count, os.POSIX_FADV_DONTNEED)


def truncate(file: FileIO, size: int) -> None:
    """Cut an open file to its first `size` bytes."""
    file.truncate(size)


def open_read(path: Path) -> FileIO:
    """Open a file to read it."""
    return FileIO(path, "rb")


def read(path: Path) -> bytes:
    """Return what is in a file."""
    with naming(path), FileIO(path, "rb") as file:
        return file.readall()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a file in the errors of the system, which does so where a file is opened only."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
