"""Files written in blocks: the bytes, the sums, and what is read again before they get a name."""

from __future__ import annotations

import errno
import hashlib
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
LENGTHS = [1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, len(CONTENT)]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a small file has many, each written in several pieces."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(blocks, "WRITE_BYTES", 1000)
    monkeypatch.setattr(proof, "SYNC_BYTES", 3 * BLOCK)


def written(path: Path, content: bytes, at_a_time: int, kind: Callable[[], Any] = Crc32) -> str:
    """Write in pieces, and return the sum."""
    writer = BlockWriter(path, len(content), kind)
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


@pytest.mark.parametrize("at", [0, 4, 9])
def test_a_block_that_is_kept_otherwise_is_found_as_soon_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    real = disk.write

    def lying(file: FileIO, data: memoryview) -> None:
        changed = bytearray(data)
        if file.tell() // BLOCK == at:
            changed[-1] ^= 1
        real(file, changed)

    monkeypatch.setattr(disk, "write", lying)
    path = tmp_path / "x"
    with pytest.raises(CheckpointError, match="x does not read back as it was written"):
        written(path, CONTENT, 1000)
    assert path.stat().st_size <= (at + 2) * BLOCK


class Forgetful:
    """A system whose memory held what the disk does not have: it shows when it has to forget."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path, damaged: int = -1) -> None:
        """Stand in for what makes it forget; the block `damaged` is another one on the disk."""
        self.path, self.damaged = path, damaged
        self.asked: list[tuple[int, int]] = []
        self.synced_before: list[bool] = []
        self._synced, self._sync = False, disk.sync
        monkeypatch.setattr(disk, "drop_cache", self.drop_cache)
        monkeypatch.setattr(disk, "sync", self.sync)

    def sync(self, descriptor: int) -> None:
        """Note it."""
        self._sync(descriptor)
        self._synced = True

    def drop_cache(self, descriptor: int, start: int, count: int) -> None:
        """Note it, and show what the disk has."""
        self.asked.append((start // BLOCK, count))
        self.synced_before.append(self._synced)
        if start // BLOCK == self.damaged:
            with self.path.open("r+b") as file:
                file.seek(start + count - 1)
                file.write(b"\xff")


@pytest.mark.parametrize(
    ("most", "expected"), [(64, range(10)), (10, range(10)), (3, [0, 3, 6, 9]), (1, [0, 9])]
)
def test_the_disk_is_asked_for_blocks_all_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, expected: list[int]
) -> None:
    monkeypatch.setattr(proof, "ASKED_BLOCKS", most)
    disk_below = Forgetful(monkeypatch, tmp_path / "x")
    written(tmp_path / "x", CONTENT, 1000)
    assert [block for block, _ in disk_below.asked] == list(expected)
    assert disk_below.asked[-1] == (9, 123), "the last block too, which is a short one"
    assert all(disk_below.synced_before)


@pytest.mark.parametrize("damaged", [0, 5, 9])
def test_what_the_disk_has_otherwise_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: int
) -> None:
    Forgetful(monkeypatch, tmp_path / "x", damaged)
    with pytest.raises(CheckpointError, match="x does not read back as it was written"):
        written(tmp_path / "x", CONTENT, 1000)


def test_the_disk_begins_before_all_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    path, real = tmp_path / "x", disk.sync

    def noted(descriptor: int) -> None:
        sizes.append(path.stat().st_size)
        real(descriptor)

    monkeypatch.setattr(disk, "sync", noted)
    written(path, CONTENT, BLOCK)
    assert len(sizes) > 1
    assert sizes[0] < len(CONTENT) == sizes[-1]


@pytest.mark.parametrize("function", ["write", "sync", "open_read"])
def test_an_error_of_the_disk_comes_out_with_the_files_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def failing(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(disk, function, failing)
    with pytest.raises(OSError, match="Input/output error"):
        written(tmp_path / "x", CONTENT, 1000)


def test_the_sum_of_pieces_is_that_of_the_whole() -> None:
    total = Crc32()
    for start in range(0, len(CONTENT), 700):
        total.update(CONTENT[start : start + 700])
    assert total.hexdigest() == f"{zlib.crc32(CONTENT):08x}"
