from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth_core.errors import InputError
from dreambooth_core.job.interpreter import (
    PACKAGE_ROOT,
    WorkerPython,
    module_command,
    visible_gpu,
    worker_environment,
)


def test_the_workers_environment() -> None:
    made = worker_environment(
        {"PYTHONPATH": "/host", "PythonHome": "/host", "OMP_NUM_THREADS": "3", "PATH": "p"}
    )
    assert made == {
        "PATH": "p",
        "OMP_NUM_THREADS": "3",
        "PYTHONPATH": str(PACKAGE_ROOT),
        "PYTHONNOUSERSITE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        "HF_HUB_OFFLINE": "1",
    }
    assert (PACKAGE_ROOT / "dreambooth_core" / "worker.py").is_file()


def test_own_packages_come_before_ours() -> None:
    made = worker_environment({"PYTHONPATH": "/host"}, [Path("/one"), Path("/two")])
    assert made["PYTHONPATH"].split(os.pathsep) == [
        str(Path("/one")),
        str(Path("/two")),
        str(PACKAGE_ROOT),
    ]


def test_one_core_is_left_to_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert worker_environment({})["OMP_NUM_THREADS"] == "7"
    assert worker_environment({"OMP_NUM_THREADS": "3"})["OMP_NUM_THREADS"] == "3"
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert worker_environment({})["OMP_NUM_THREADS"] == "1"


def test_the_gpu_is_as_it_was_unless_one_is_chosen() -> None:
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment({})
    assert worker_environment({"CUDA_VISIBLE_DEVICES": "2,3"})["CUDA_VISIBLE_DEVICES"] == "2,3"
    chosen = worker_environment({"CUDA_VISIBLE_DEVICES": "2,3"}, device_id="1")
    assert chosen["CUDA_VISIBLE_DEVICES"] == "3"
    assert worker_environment({}, device_id="1")["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize(
    ("device_id", "visible", "expected"),
    [
        ("0", "", "0"),
        ("1", "5, 7 ,9", "7"),
        ("0", "GPU-6b1f", "GPU-6b1f"),
        ("GPU-77aa", "0,1", "GPU-77aa"),
        ("-1", "0,1", "-1"),
    ],
)
def test_the_host_counts_the_gpus_it_sees(device_id: str, visible: str, expected: str) -> None:
    assert visible_gpu(device_id, visible) == expected


def test_a_gpu_that_the_host_does_not_see() -> None:
    with pytest.raises(InputError, match="shows only 2") as caught:
        visible_gpu("2", "0,1")
    assert "--device-id" in caught.value.remedy


def test_a_worker_needs_nothing_but_this_python_by_itself() -> None:
    assert WorkerPython() == WorkerPython(sys.executable, (), "")


def _portable_python(folder: Path) -> str:
    """A Python that, as one with a `._pth` file does, ignores PYTHONPATH and the current folder."""
    if sys.platform == "win32":
        pytest.skip("a stand-in for a portable Python is a shell script")
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "$@"\n')
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize("portable", [False, True])
def test_a_module_is_started_with_our_paths_first(tmp_path: Path, portable: bool) -> None:
    python = _portable_python(tmp_path) if portable else sys.executable
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "colorsys.py").write_text("place = 'own'")
    (tmp_path / "own" / "begin.py").write_text(
        "import colorsys, os, sys, dreambooth_core\n"
        "print(__name__, __spec__.name, sys.argv[1:], colorsys.place, sys.flags.utf8_mode)\n"
        "print(sys.modules['__main__'].__dict__ is globals(), '' in sys.path)\n"
        "print(sys.path.count(os.environ['PYTHONPATH'].split(os.pathsep)[0]))\n"
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "colorsys.py").write_text("raise RuntimeError('of the run folder')")
    done = subprocess.run(
        module_command(python, "begin", "a b", "--c"),
        cwd=tmp_path / "run",
        env=worker_environment(os.environ, [tmp_path / "own"]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "__main__ begin ['a b', '--c'] own 1",
        "True False",
        "1",
    ]
