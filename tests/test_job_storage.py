from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import pytest

from dreambooth_core.job import storage
from dreambooth_core.job.storage import (
    append_line,
    atomic_file,
    atomic_write_bytes,
    atomic_write_json,
    replace,
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
def test_a_full_disk_names_the_file(tmp_path: Path, number: int) -> None:
    """The system does not say which file a write was for; what it says of another one stays."""

    def write(error: OSError) -> None:
        with atomic_file(tmp_path / "file.bin"):
            raise error

    for error, name in (
        (OSError(number, "full"), str(tmp_path / "file.bin.tmp")),
        (OSError(number, "full", "/other"), "/other"),
        (OSError(errno.EIO, "broken"), None),
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


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "\n"])
def test_append_line_refuses_more_than_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="one line"):
        append_line(tmp_path / "lines.txt", text)
    assert not (tmp_path / "lines.txt").exists()


def test_replace_waits_for_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"new")
    real, refusals = os.replace, [PermissionError("in use")] * 3

    def reluctant(a: Path, b: Path) -> None:
        if refusals:
            raise refusals.pop()
        real(a, b)

    monkeypatch.setattr(os, "replace", reluctant)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    replace(source, target)
    assert target.read_bytes() == b"new"
    refusals.extend([PermissionError("in use")] * 1000)
    target.rename(source)
    with pytest.raises(PermissionError):
        replace(source, target)


def test_replace_does_not_wait_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(a: Path, b: Path) -> None:
        raise PermissionError("never")

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(PermissionError, match="never"):
        replace(tmp_path / "a", tmp_path / "b")
