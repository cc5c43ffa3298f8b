"""Files written in blocks, past the system's memory where it can be: the bytes and the sums."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import zlib
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.checkpoint import blocks, proof
from dreambooth_core.checkpoint.blocks import BlockWriter
from dreambooth_core.checkpoint.proof import Crc32
from dreambooth_core.errors import CheckpointError
from dreambooth_core.job import disk

BLOCK = 4096
CONTENT = bytes(i * 7 % 251 for i in range(9 * BLOCK + 123))
LENGTHS = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, len(CONTENT)]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a small file has many, each proven by itself."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(blocks, "BUFFERED_BYTES", 1000)
    monkeypatch.setattr(proof, "SYNC_BYTES", 2 * BLOCK)


class Noted:
    """The real disk, and whether each write to it was direct."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Stand before the functions."""
        self.direct: list[bool] = []
        self.real = disk.write
        monkeypatch.setattr(disk, "write", self.write)

    def write(self, file: FileIO, data: memoryview) -> None:
        """Note and write."""
        self.direct.append(is_direct(file))
        self.real(file, data)


def is_direct(file: FileIO) -> bool:
    """Whether the system passes its memory by for an open file."""
    if sys.platform != "linux":
        return False
    import fcntl

    return bool(fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & os.O_DIRECT)


def can_be_direct(folder: Path) -> bool:
    """Whether the file system of the tests has direct writing."""
    with disk.create(folder / "probe") as file:
        return disk.set_direct(file.fileno(), True)


def written(path: Path, content: bytes, at_a_time: int, kind: Callable[[], Any]) -> str:
    """Write in pieces, and return the sum."""
    writer = BlockWriter(path, kind)
    try:
        for start in range(0, len(content), at_a_time):
            piece = bytearray(content[start : start + at_a_time])
            writer.put(memoryview(piece))
            piece[:] = bytes(len(piece))  # what was put may change
        return writer.finish()
    finally:
        writer.close()


@pytest.mark.parametrize("kind", [hashlib.sha256, Crc32])
@pytest.mark.parametrize("at_a_time", [700, BLOCK, 3 * BLOCK + 5])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_file_holds_what_was_put_and_the_sum_is_the_files(
    tmp_path: Path, kind: Callable[[], Any], at_a_time: int, length: int
) -> None:
    path, content = tmp_path / "x", CONTENT[:length]
    expected = kind()
    expected.update(content)
    assert written(path, content, at_a_time, kind) == expected.hexdigest()
    assert path.read_bytes() == content


def test_whole_blocks_pass_the_systems_memory_by_and_the_rest_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_be_direct(tmp_path):
        pytest.skip("this file system has no direct writing")
    noted = Noted(monkeypatch)
    written(tmp_path / "x", CONTENT, 1000, Crc32)
    assert noted.direct == [True] * 9 + [False]


@pytest.mark.parametrize("refused", [1, 4])
def test_a_file_system_that_refuses_a_direct_write_is_written_the_other_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    real, count = disk.write, 0

    def refusing(file: FileIO, data: memoryview) -> None:
        nonlocal count
        count += is_direct(file)
        if is_direct(file) and count == refused:
            real(file, data[: len(data) // 2 // 512 * 512])
            raise OSError(errno.EINVAL, "Invalid argument")
        real(file, data)

    monkeypatch.setattr(disk, "write", refusing)
    path = tmp_path / "x"
    assert written(path, CONTENT, 1000, Crc32) == f"{zlib.crc32(CONTENT):08x}"
    assert path.read_bytes() == CONTENT


def test_where_nothing_can_be_direct_the_file_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "set_direct", lambda descriptor, on: False)
    noted, path = Noted(monkeypatch), tmp_path / "x"
    assert written(path, CONTENT, 1000, Crc32) == f"{zlib.crc32(CONTENT):08x}"
    assert path.read_bytes() == CONTENT
    assert not any(noted.direct)
    assert len(noted.direct) == 9 * 5 + 1


@pytest.mark.parametrize("at", [0, 4, 9])
def test_a_disk_that_keeps_something_else_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    real, count = disk.write, -1

    def lying(file: FileIO, data: memoryview) -> None:
        nonlocal count
        count += 1
        if count == at:
            data[len(data) // 2] ^= 1
        real(file, data)
        if count == at:
            data[len(data) // 2] ^= 1

    monkeypatch.setattr(disk, "write", lying)
    with pytest.raises(CheckpointError, match="x does not read back as it was written"):
        written(tmp_path / "x", CONTENT, 1000, Crc32)


def test_an_error_of_the_disk_in_the_middle_comes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = disk.write, 0

    def failing(file: FileIO, data: memoryview) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(errno.EIO, "Input/output error")
        real(file, data)

    monkeypatch.setattr(disk, "write", failing)
    with pytest.raises(OSError, match="Input/output error"):
        written(tmp_path / "x", CONTENT, 1000, Crc32)
