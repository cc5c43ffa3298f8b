"""`launch.py ui`: who may come in, and where the page works."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from dreambooth_core.errors import InputError, UsageError
from dreambooth_core.ui import __main__ as ui


def options(*words: str) -> argparse.Namespace:
    return ui.build_parser().parse_args(words)


@pytest.fixture(autouse=True)
def _no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ui.PASSWORD_VARIABLE, raising=False)


def test_at_home_no_password_is_needed() -> None:
    assert ui.password_for(options(), None) == ""


def test_listening_asks_for_a_password_and_refuses_without_one() -> None:
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return "longenough"

    assert ui.password_for(options("--listen"), answer) == "longenough"
    assert len(asked) == 1
    with pytest.raises(UsageError, match="needs a password"):
        ui.password_for(options("--listen"), None)
    with pytest.raises(UsageError, match="needs a password"):
        ui.password_for(options("--listen"), lambda question: "")


def test_a_given_password_is_taken_and_must_be_long(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ui.password_for(options("--listen", "--password", "12345678"), None) == "12345678"
    with pytest.raises(UsageError, match="fewer"):
        ui.password_for(options("--password", "1234567"), None)
    monkeypatch.setenv(ui.PASSWORD_VARIABLE, "from the environment")
    assert ui.password_for(options("--listen"), None) == "from the environment"


def test_the_folder_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ui.root_of(options("--root", str(tmp_path))) == tmp_path
    monkeypatch.chdir(tmp_path)
    assert ui.root_of(options()) == tmp_path
    with pytest.raises(InputError, match="does not exist"):
        ui.root_of(options("--root", str(tmp_path / "nowhere")))


def test_a_refusal_is_told_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert ui.main(["--root", "/nowhere/at/all"]) == 2
    assert "error: The folder" in capsys.readouterr().err
