"""Text files that a person writes: encodings, templates, and errors that name the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth_core.config.text_files import read_templates, read_text
from dreambooth_core.errors import InputError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_utf8_or_marked_utf16(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a").write_bytes("Hündchen 日本".encode(encoding))
    assert read_text(tmp_path / "a", "note") == "Hündchen 日本"


def test_anything_else_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"H\xfcndchen")
    with pytest.raises(InputError, match=r"The note .*a is not UTF-8 text \(byte 1\)"):
        read_text(tmp_path / "a", "note")
    with pytest.raises(InputError, match=r"The note .*b cannot be read"):
        read_text(tmp_path / "b", "note")


def test_templates_are_the_lines_that_say_something(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a [name]\n\n  # remark\n [filewords] \n")
    assert read_templates(tmp_path / "a") == ["a [name]", "[filewords]"]
    (tmp_path / "a").write_text("# nothing\n")
    with pytest.raises(InputError, match="holds no prompts"):
        read_templates(tmp_path / "a")
