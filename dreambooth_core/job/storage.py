"""Writing files so that a crash leaves the old file or the new one, never half of one."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# A virus scanner or a reader may hold a file open for a moment; only Windows refuses to replace it.
REPLACE_ATTEMPTS = 20
REPLACE_PAUSE_SECONDS = 0.1

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""The disk has no room left, or not for this user."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield `<path>.tmp` to write; on success it becomes `path` durably, on error it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        sync_file(temporary)
        replace(temporary, path)
    except BaseException as error:
        # The system names the file where it is opened, and not where it is written.
        if isinstance(error, OSError) and error.errno in FULL_DISK and not error.filename:
            error.filename = str(temporary)
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, all or nothing."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_json(path: Path, obj: object) -> None:
    """Write `obj` as indented JSON; raises ValueError for NaN and infinity, which JSON lacks."""
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write_bytes(path, (text + "\n").encode("utf-8"))


def append_line(path: Path, text: str) -> None:
    """Append one whole line; a line torn by an earlier crash is closed first, so it stays alone."""
    if "\n" in text or "\r" in text:
        raise ValueError("append_line writes one line; the text holds a line break")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        torn = False
        if size:
            file.seek(size - 1)
            torn = file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + text.encode("utf-8") + b"\n")


def sync_file(path: Path) -> None:
    """Flush a written file to the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk; Windows has no such call and needs none."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(source: Path, target: Path) -> None:
    """Rename `source` over `target` in one step, waiting while Windows has `target` in use."""
    for attempt in range(1, REPLACE_ATTEMPTS + 1):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if sys.platform != "win32" or attempt == REPLACE_ATTEMPTS:
                raise
            time.sleep(REPLACE_PAUSE_SECONDS)
