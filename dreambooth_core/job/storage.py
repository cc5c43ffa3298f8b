"""Writing files so that a crash leaves the old file or the new one, never half of one."""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from dreambooth_core.job import disk

COPY_BYTES = 2**20

DISTRUSTED = "the disk does not give back what was written to it"


@contextmanager
def atomic_file(path: Path, crc32: Callable[[], int] | None = None) -> Iterator[Path]:
    """Yield `<path>.tmp` to write; on success it becomes `path` durably, on error it is removed.

    If the CRC-32 of what was written is told, it is read again from the disk and compared before
    it is renamed.
    """
    path = Path(path)
    disk.make_folder(path.parent)
    temporary = path.with_name(path.name + ".tmp")
    with disk.naming(temporary):
        try:
            yield temporary
            sync_file(temporary)
            if crc32 is not None:
                _require_sum(temporary, crc32())
            disk.rename(temporary, path)
        except BaseException:
            with suppress(OSError):  # what is told is why it was not written
                disk.remove(temporary)
            raise
        disk.sync_folder(path.parent)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, all or nothing."""
    with atomic_file(path, lambda: zlib.crc32(data)) as temporary:
        write_file(temporary, data)


def atomic_write_json(path: Path, obj: object) -> None:
    """Write `obj` as indented JSON; raises ValueError for NaN and infinity, which JSON lacks."""
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write_bytes(path, (text + "\n").encode("utf-8"))


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to a file that is not in use yet."""
    with disk.naming(path), disk.create(path) as file:
        disk.write(file, data)


def atomic_copy(path: Path, data: IO[bytes]) -> None:
    """Write what is left in an open file to `path`, all or nothing."""
    total = 0
    with atomic_file(path, lambda: total) as temporary, disk.create(temporary) as file:
        while chunk := data.read(COPY_BYTES):
            disk.write(file, chunk)
            total = zlib.crc32(chunk, total)


@contextmanager
def undone_on_error(paths: Iterable[Path]) -> Iterator[None]:
    """Put small files back as they were, or were not, if what is done inside fails."""
    before = {path: disk.read(path) if path.is_file() else None for path in paths}
    try:
        yield
    except BaseException:
        for path, data in before.items():
            with suppress(OSError):
                _put_back(path, data)
        raise


def put_folder(building: Path, target: Path) -> None:
    """Give a finished folder its name durably; one that has the name stays whole until then."""
    old, replaced = aside(target), target.exists()
    disk.remove_folder(old)
    if replaced:
        disk.rename(target, old)
    try:
        with disk.naming(target):
            disk.rename(building, target)
            disk.sync_folder(target.parent)
    except BaseException:
        if target.exists():
            disk.rename(target, building)
        if replaced:
            disk.rename(old, target)
        raise
    with suppress(OSError):
        disk.remove_folder(old)


def drop_folder(path: Path) -> None:
    """Delete a folder: it has its name no longer from one moment to the next, never half of it."""
    gone = aside(path)
    disk.remove_folder(gone)
    disk.rename(path, gone)
    disk.remove_folder(gone)


def aside(folder: Path) -> Path:
    """Return the name of a folder that is on its way out; like all hidden ones it is not listed."""
    return folder.with_name(f".{folder.name}.old")


def append_line(path: Path, text: str) -> None:
    """Append one whole line, or none; a line torn by an earlier crash is closed first.

    So that one stays alone. What a failed write has left of the line is cut off again.
    """
    if "\n" in text or "\r" in text:
        raise ValueError("append_line writes one line; the text holds a line break")
    path = Path(path)
    disk.make_folder(path.parent)
    with disk.naming(path), disk.append(path) as file:
        size = file.seek(0, os.SEEK_END)
        torn = False
        if size:
            file.seek(size - 1)
            torn = file.read(1) != b"\n"
        line = (b"\n" if torn else b"") + text.encode("utf-8") + b"\n"
        try:
            disk.write(file, line)
        except BaseException:
            with suppress(OSError):
                file.seek(size)
                if line.startswith(file.read()):  # else another program wrote after it
                    disk.truncate(file, size)
            raise


def _require_sum(path: Path, crc32: int) -> None:
    found, size = 0, path.stat().st_size
    buffer = memoryview(bytearray(min(max(1, size), COPY_BYTES)))
    with disk.open_read(path) as file:
        disk.drop_cache(file.fileno(), 0, size)
        while count := file.readinto(buffer):
            found = zlib.crc32(buffer[:count], found)
    if found != crc32:
        raise OSError(errno.EIO, DISTRUSTED, str(path))


def _put_back(path: Path, data: bytes | None) -> None:
    if data is None:
        disk.remove(path)
    elif disk.read(path) != data:
        atomic_write_bytes(path, data)


def sync_file(path: Path) -> None:
    """Wait until the disk has a written file."""
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        disk.sync(descriptor)
    finally:
        os.close(descriptor)
