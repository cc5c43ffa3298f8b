from __future__ import annotations

import errno
import io
import json
import os
import sys
from inspect import isfunction
from io import FileIO
from pathlib import Path

import pytest
from typing_extensions import Buffer

from dreambooth_core.job import disk
from dreambooth_core.job.storage import (
    append_line,
    aside,
    atomic_copy,
    atomic_file,
    atomic_write_bytes,
    atomic_write_json,
    drop_folder,
    put_folder,
)


def test_atomic_file_replaces_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "below" / "file.bin"
    atomic_write_bytes(path, b"old")
    with atomic_file(path) as temporary:
        assert temporary == path.with_name("file.bin.tmp")
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["file.bin"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_what_fails_names_the_file(tmp_path: Path, number: int) -> None:
    """The system does not say which file a write was for; what it says of another one stays."""

    def write(error: OSError) -> None:
        with atomic_file(tmp_path / "file.bin"):
            raise error

    for error, name in (
        (OSError(number, "full"), str(tmp_path / "file.bin.tmp")),
        (OSError(number, "full", "/other"), "/other"),
        (OSError(errno.EIO, "broken"), str(tmp_path / "file.bin.tmp")),
    ):
        with pytest.raises(OSError, match=error.strerror) as caught:
            write(error)
        assert caught.value.filename == name


def test_atomic_file_leaves_the_old_one_on_error(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_file(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_the_file_is_flushed_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), real_fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), real_replace(a, b)))
    atomic_write_bytes(tmp_path / "file", b"x")
    assert calls == ["fsync", "replace", "fsync"]  # the file, the name, the folder


def test_json_holds_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    atomic_write_json(path, {"name": "Ä", "n": 1.5})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "Ä", "n": 1.5}
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic_write_json(path, {"n": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8"))["n"] == 1.5


def test_append_line_writes_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "below" / "lines.txt"
    append_line(path, "one")
    append_line(path, "zwei Ä")
    assert path.read_bytes() == "one\nzwei Ä\n".encode()


def test_append_line_keeps_a_torn_line_apart(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes(b"whole\nto")
    append_line(path, "next")
    assert path.read_bytes() == b"whole\nto\nnext\n"


@pytest.mark.parametrize("torn", [b"", b"to"])
@pytest.mark.parametrize("others", [b"", b"another's\n"])
def test_a_failed_line_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bytes, others: bytes
) -> None:
    """And if another program has written since, its line stays, and the torn one stays alone."""
    path = tmp_path / "lines.txt"
    path.write_bytes(b"whole\n" + torn)

    def write_half(file: FileIO, data: bytes) -> None:
        file.write(data[:4])
        with path.open("ab") as other:
            other.write(others)
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(disk, "write", write_half)
        with pytest.raises(OSError, match="full") as caught:
            append_line(path, "next")
    assert caught.value.filename == str(path)
    half = (b"\n" * bool(torn) + b"next\n")[:4] if others else b""
    assert path.read_bytes() == b"whole\n" + torn + half + others
    append_line(path, "again")
    assert path.read_bytes().splitlines()[-1] == b"again"


def test_a_short_write_goes_on(tmp_path: Path) -> None:
    class Slow(FileIO):
        def write(self, data: Buffer) -> int:
            return super().write(memoryview(data)[:3])

    with Slow(tmp_path / "slow", "wb") as file:
        disk.write(file, b"all of these bytes")
    assert disk.read(tmp_path / "slow") == b"all of these bytes"


def test_what_is_left_of_an_open_file_is_copied(tmp_path: Path) -> None:
    data = io.BytesIO(b"first, the rest")
    data.seek(7)
    atomic_copy(tmp_path / "copy", data)
    assert disk.read(tmp_path / "copy") == b"the rest"


def test_what_a_disk_gives_back_otherwise_gets_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "settings.json", disk.write
    atomic_write_bytes(path, b"old")
    monkeypatch.setattr(disk, "write", lambda file, data: real(file, data[:-1] + b"?"))
    for write in (
        lambda: atomic_write_bytes(path, b"new"),
        lambda: atomic_copy(path, io.BytesIO(b"new")),
    ):
        with pytest.raises(OSError, match="does not give back") as caught:
            write()
        assert caught.value.filename == str(path) + ".tmp"
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["settings.json"]


def test_a_folder_takes_the_place_of_another_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it cannot, the other is where it was; a third that a crash left over goes."""
    target, building, real = tmp_path / "a", tmp_path / ".a.tmp", disk.rename
    for folder, text in ((target, b"old"), (aside(target), b"older"), (building, b"new")):
        atomic_write_bytes(folder / "file", text)

    def refuse(source: Path, to: Path) -> None:
        if source == building:
            raise OSError(errno.EIO, "broken")
        real(source, to)

    monkeypatch.setattr(disk, "rename", refuse)
    with pytest.raises(OSError, match="broken"):
        put_folder(building, target)
    assert disk.read(target / "file") == b"old"
    monkeypatch.undo()
    put_folder(building, target)
    assert os.listdir(tmp_path) == ["a"]
    assert disk.read(target / "file") == b"new"
    drop_folder(target)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "\n"])
def test_append_line_refuses_more_than_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="one line"):
        append_line(tmp_path / "lines.txt", text)
    assert not (tmp_path / "lines.txt").exists()


def test_rename_waits_for_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"new")
    real, refusals = os.replace, [PermissionError("in use")] * 3

    def reluctant(a: Path, b: Path) -> None:
        if refusals:
            raise refusals.pop()
        real(a, b)

    monkeypatch.setattr(os, "replace", reluctant)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(disk.time, "sleep", lambda seconds: None)
    disk.rename(source, target)
    assert target.read_bytes() == b"new"
    refusals.extend([PermissionError("in use")] * 1000)
    target.rename(source)
    with pytest.raises(PermissionError):
        disk.rename(source, target)


def test_rename_does_not_wait_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(a: Path, b: Path) -> None:
        raise PermissionError("never")

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(disk.time, "sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(PermissionError, match="never"):
        disk.rename(tmp_path / "a", tmp_path / "b")


def test_a_folder_is_gone_whole(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    disk.make_folder(folder)
    with pytest.raises(FileExistsError):
        disk.make_folder(folder, new=True)
    atomic_write_bytes(folder / "file", b"x")
    disk.remove_folder(tmp_path / "a")
    disk.remove_folder(tmp_path / "a")
    disk.remove(folder / "file")
    assert os.listdir(tmp_path) == []


def test_every_function_is_listed() -> None:
    """So that a test of faults tries them all."""
    found = {name for name, value in vars(disk).items() if isfunction(value)}
    ours = {name for name in found if getattr(disk, name).__module__ == disk.__name__}
    assert ours - {"naming", "drop_cache", "set_direct"} == {*disk.CHANGES, *disk.READS}
