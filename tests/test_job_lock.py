from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from dreambooth_core.errors import BusyError
from dreambooth_core.job import lock, process
from dreambooth_core.job.lock import Holder, acquire, hand_over, read_holder, release
from dreambooth_core.job.process import end_process_tree, is_running, start_mark


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing for a while, in a group of its own."""
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True
    )
    yield child
    child.kill()
    child.wait()


def _me(run_id: str = "run") -> Holder:
    return Holder(os.getpid(), start_mark(os.getpid()), run_id, "train")


def test_a_process_is_known_by_its_mark(sleeper: subprocess.Popen[bytes]) -> None:
    mark = start_mark(sleeper.pid)
    assert mark
    assert mark != start_mark(os.getpid())
    assert is_running(sleeper.pid, mark)
    assert is_running(sleeper.pid, "")
    assert not is_running(sleeper.pid, "another start")
    end_process_tree(sleeper.pid)
    sleeper.wait()
    assert not is_running(sleeper.pid, mark)
    end_process_tree(sleeper.pid)  # gone already: no error


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="zombies are seen in /proc")
def test_a_zombie_does_not_run(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    deadline = time.monotonic() + 30
    while start_mark(sleeper.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(sleeper.pid, "")


def test_without_proc_the_signal_decides(
    monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]
) -> None:
    monkeypatch.setattr(process.Path, "exists", lambda self: False)
    assert start_mark(os.getpid()) == "unknown"
    sleeper.kill()
    sleeper.wait()
    assert start_mark(sleeper.pid) == ""


def test_a_foreign_process_counts_as_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(process.Path, "exists", lambda self: False)
    monkeypatch.setattr(os, "kill", refuse)
    assert is_running(1, "unknown")


def test_ending_a_tree_ends_its_children(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time;"
        "c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(c.pid) + '\\n'); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    pid_file = tmp_path / "pid"
    deadline = time.monotonic() + 30
    while not (pid_file.exists() and pid_file.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child = int(pid_file.read_text())
    end_process_tree(parent.pid)
    assert parent.wait() == -signal.SIGKILL
    while is_running(child, ""):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "ada.lock"
    acquire(path, _me(), "ada")
    assert read_holder(path) == _me()
    with pytest.raises(BusyError, match=r"'ada' is in use by run run \(train") as caught:
        acquire(path, _me("other"), "ada")
    assert caught.value.remedy == "Wait for it, or end it with: stop run"
    release(path, "other")
    assert path.exists()
    release(path, "run")
    assert not path.exists()
    release(path, "run")
    acquire(path, _me("other"), "ada")


def test_a_lock_of_a_dead_process_is_void(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    path = tmp_path / "ada.lock"
    acquire(path, Holder(sleeper.pid, start_mark(sleeper.pid), "old", "train"), "ada")
    with pytest.raises(BusyError):
        acquire(path, _me(), "ada")
    sleeper.kill()
    sleeper.wait()
    acquire(path, _me(), "ada")
    assert read_holder(path) == _me()
    assert sorted(os.listdir(tmp_path)) == [".guard", "ada.lock"]


def test_a_reused_process_id_does_not_hold_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "ada.lock"
    acquire(path, Holder(os.getpid(), "an earlier process", "old", "train"), "ada")
    acquire(path, _me(), "ada")
    assert read_holder(path) == _me()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_lock_that_says_nothing_is_void(tmp_path: Path, content: str) -> None:
    path = tmp_path / "ada.lock"
    path.write_text(content)
    acquire(path, _me(), "ada")
    assert read_holder(path) == _me()


@pytest.mark.parametrize("version", ["x", True, None, 1.5, -1, []])
def test_a_version_that_is_none_does_not_hide_who_has_a_lock(tmp_path: Path, version: Any) -> None:
    path = tmp_path / "ada.lock"
    acquire(path, _me(), "ada")
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": version}))
    assert read_holder(path) == _me()
    with pytest.raises(BusyError, match="run run"):
        acquire(path, _me("other"), "ada")


def test_a_guard_that_is_not_given_back_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "GUARD_SECONDS", 0.0)
    path = tmp_path / "ada.lock"
    with FileLock(tmp_path / ".guard"):
        for attempt in (lambda: acquire(path, _me(), "ada"), lambda: release(path, "run")):
            with pytest.raises(BusyError, match=r"\.guard locked for 0 s") as caught:
                attempt()
            assert "Try again" in caught.value.remedy
    acquire(path, _me(), "ada")


def test_handing_over(tmp_path: Path) -> None:
    path = tmp_path / "ada.lock"
    acquire(path, _me("starting"), "ada")
    hand_over(path, _me("another"))  # not of this run: nothing is taken from it
    assert read_holder(path) == _me("starting")
    hand_over(path, _me("run"), before="starting")
    assert read_holder(path) == _me("run")
    release(path, "run")
    hand_over(path, _me("run"))  # the worker was faster, and ended
    assert not path.exists()


@pytest.mark.parametrize("attempt_number", range(20))
def test_of_many_only_one_gets_it(tmp_path: Path, attempt_number: int) -> None:
    path = tmp_path / "ada.lock"
    acquire(path, Holder(os.getpid(), "an earlier process", "old", "train"), "ada")
    won, barrier = [], threading.Barrier(8)

    def attempt(number: int) -> None:
        barrier.wait()
        try:
            acquire(path, _me(f"run{number}"), "ada")
        except BusyError:
            return
        won.append(number)

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert read_holder(path) == _me(f"run{won[0]}")
