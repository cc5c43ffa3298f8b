from __future__ import annotations

import os
from pathlib import Path

import pytest

from dreambooth_core.job import log
from dreambooth_core.job.log import log_tail
from dreambooth_core.job.runs import log_path


def test_the_last_lines(tmp_path: Path) -> None:
    assert log_tail(tmp_path, 3) == []
    log_path(tmp_path).write_text("".join(f"line {n}\n" for n in range(5000)))
    assert log_tail(tmp_path, 2) == ["line 4998", "line 4999"]
    assert len(log_tail(tmp_path, 100)) == 100
    assert log_tail(tmp_path, 0) == log_tail(tmp_path, -1) == []


def test_a_progress_bar_is_one_line(tmp_path: Path) -> None:
    log_path(tmp_path).write_bytes(b"a\r\n\n 1%\r 50%\r100%\nb \xff\n\r50%\r   \r\n")
    assert log_tail(tmp_path, 9) == ["a", "100%", "b \ufffd"]


def test_a_large_log_is_not_read_whole(tmp_path: Path) -> None:
    with log_path(tmp_path).open("wb") as file:
        file.truncate(2**33)  # sparse where the file system can
        file.seek(0, os.SEEK_END)
        file.write(b"\nthe end\n")
    assert log_tail(tmp_path, 1) == ["the end"]


def test_a_line_that_is_longer_than_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may begin within a character."""
    monkeypatch.setattr(log, "TAIL_BYTES", 8)
    log_path(tmp_path).write_text("Grüße, ÄÖÜ.\n", encoding="utf-8")
    assert log_tail(tmp_path, 5) == ["ÄÖÜ."]
    log_path(tmp_path).write_text("Grüße, ÄÖÜ\n", encoding="utf-8")
    assert log_tail(tmp_path, 5) == [" ÄÖÜ"]
    log_path(tmp_path).write_text("Grüße: ÄÖÜß\n", encoding="utf-8")
    assert log_tail(tmp_path, 5) == ["\ufffdÖÜß"]
