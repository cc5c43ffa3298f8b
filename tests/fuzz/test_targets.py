"""A fixed number of cases of every target, and that the harness sees what it looks for."""

from __future__ import annotations

import mmap
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from dreambooth_core.errors import InputError
from tests.fuzz import TARGETS, harness
from tests.fuzz.harness import fuzz

SEED = 20
CASES = {
    "header": 400,
    "archive": 400,
    "side": 150,
    "captions": 300,
    "names": 300,
    "configs": 40,
    "presets": 20,
    "kohya": 150,
    "d8ahazard": 80,
    "events": 300,
    "commands": 300,
    "states": 100,
    "pictures": 200,
    "rest": 60,
}
OUTSIDE = Path(__file__).with_name("never.txt")


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_nothing_is_found(name: str) -> None:
    """Each input is taken or refused in words; more with `python -m tests.fuzz --cases 100000`."""
    found = fuzz(name, TARGETS[name], range(CASES[name]), SEED)
    assert not found, "\n".join(map(str, found))


def _raises(chance: Random, folder: Path) -> None:
    raise KeyError("no words for a person")


def _refuses_silently(chance: Random, folder: Path) -> None:
    raise InputError("")


def _writes_outside(chance: Random, folder: Path) -> None:
    (folder / "fine").touch()
    os.close(os.open(OUTSIDE, os.O_CREAT | os.O_WRONLY))
    OUTSIDE.unlink()


def _runs_a_program(chance: Random, folder: Path) -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)


def _grows(chance: Random, folder: Path) -> None:
    with mmap.mmap(-1, 20 * 2**20) as fresh:  # not what earlier tests gave back
        fresh.write(os.urandom(2**20) * 20)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (_raises, "KeyError"),
        (_refuses_silently, "InputError without words"),
        (_writes_outside, "open .*never.txt"),
        (_runs_a_program, "subprocess.Popen"),
    ],
)
def test_what_must_not_be_is_found(target: Callable[..., None], words: str) -> None:
    """And nothing else: the case after it has its own folder."""
    (found,) = fuzz("x", target, range(5, 6), 0)
    assert re.search(words, found.words), found
    assert "--target x --seed 0 --case 5" in str(found)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGALRM")
def test_what_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "MOST_SECONDS", 0.05)
    (found,) = fuzz("x", lambda chance, folder: time.sleep(60), range(1), 0)
    assert found.words == "took too long"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_what_takes_too_much_memory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "MOST_MIB", 10)
    (found,) = fuzz("x", _grows, range(1), 0)
    assert "MiB" in found.words


def test_a_case_is_the_same_again() -> None:
    """Whatever ran before it."""
    made: list[float] = []
    fuzz("x", lambda chance, folder: made.append(chance.random()), range(3), 7)
    fuzz("x", lambda chance, folder: made.append(chance.random()), range(2, 3), 7)
    assert made[2] == made[3] != made[1]
