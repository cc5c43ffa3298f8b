from __future__ import annotations

import errno
import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core import worker
from dreambooth_core.config.schema import JOB_CONFIGS, CreateConfig, SampleConfig, TrainConfig
from dreambooth_core.errors import BusyError, ConfigError, FullDiskError, Problem
from dreambooth_core.job import launcher, lock
from dreambooth_core.job.events import (
    EventWriter,
    JobFailed,
    JobFinished,
    JobStarted,
    JobStopped,
    read_events,
)
from dreambooth_core.job.interpreter import module_command, worker_environment
from dreambooth_core.job.launcher import model_lock_path
from dreambooth_core.job.runs import Run, create_run_folder, events_path, write_run
from dreambooth_core.job.workspace import ModelInfo, Workspace
from dreambooth_core.worker import block_packages, failure, outcome


class OutOfMemoryError(RuntimeError):
    """Named as torch names it."""


def _folder(workspace: Workspace, config: Any, kind: str) -> Path:
    folder = create_run_folder(workspace, kind)
    write_run(folder, Run(folder.name, kind, workspace.root, config))
    return folder


def _run_worker(folder: Path) -> int:
    return subprocess.run(
        [sys.executable, "-m", "dreambooth_core.worker", str(folder)],
        cwd=folder,
        env=worker_environment({"PATH": "", "SYSTEMROOT": ""}),
        capture_output=True,
        check=False,
    ).returncode


def test_every_kind_of_job_has_its_stage() -> None:
    assert set(worker.STAGES) == set(JOB_CONFIGS)
    for module in worker.STAGES.values():
        assert importlib.util.find_spec(module) is not None, module


def test_a_real_failure_from_end_to_end(workspace: Workspace, tmp_path: Path) -> None:
    config = CreateConfig(name="ada", source=str(tmp_path / "none.safetensors"))
    folder = _folder(workspace, config, "create")
    lock.acquire(
        model_lock_path(workspace, "ada"), lock.Holder(1, "", folder.name, "create"), "ada"
    )
    assert _run_worker(folder) == 2
    started, failed = read_events(events_path(folder))[0]
    assert isinstance(started, JobStarted)
    assert isinstance(failed, JobFailed)
    assert (failed.error, failed.exit_code, failed.field) == ("ConfigError", 2, "source")
    assert "none.safetensors" in failed.message
    assert not model_lock_path(workspace, "ada").exists()
    assert not workspace.model("ada").path.exists()


def test_a_damaged_job_file_is_reported(workspace: Workspace) -> None:
    folder = create_run_folder(workspace, "create")
    (folder / "job.json").write_text("{")
    assert _run_worker(folder) == 2
    (failed,) = read_events(events_path(folder))[0]
    assert "job.json" in failed.message


def test_unknown_settings_in_a_job_file_are_reported(workspace: Workspace) -> None:
    folder = create_run_folder(workspace, "create")
    values = {"run_id": "r", "kind": "create", "root": str(workspace.root), "config": {"nam": 1}}
    (folder / "job.json").write_text(json.dumps(values))
    assert _run_worker(folder) == 2
    (failed,) = read_events(events_path(folder))[0]
    assert "Did you mean name?" in failed.message


def test_the_settings_are_checked_again_in_the_worker(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.model("ada").write_info(ModelInfo("ada", "sd1", ""))
    config = SampleConfig(model="ada", prompts=["finish"], steps=0)
    folder = _folder(workspace, config, "sample")
    writer = EventWriter(events_path(folder))
    with pytest.raises(ConfigError, match="steps"):
        worker.run_job(Run(folder.name, "sample", workspace.root, config), folder, writer)


def test_an_outcome_is_finished_or_stopped() -> None:
    assert outcome({"step": 3}) == JobFinished({"step": 3})
    assert outcome({"stopped": False}) == JobFinished({"stopped": False})
    stopped = {"stopped": True, "step": 3}
    assert outcome(stopped) == JobStopped(3, stopped)
    assert outcome({"stopped": True}).step == 0
    assert outcome({"stopped": True, "steps": 3}).step == 3


@pytest.mark.parametrize(
    ("error", "words", "exit_code"),
    [
        (BusyError("In use.", remedy="Wait."), "In use.", 2),
        (ConfigError([Problem("a", "is 1.")]), "a: is 1.", 2),
        (OutOfMemoryError("CUDA out of memory"), "GPU memory ran out before the work began.", 1),
        (MemoryError(), "Main memory ran out before the work began.", 1),
        (FullDiskError("No room.", remedy="Make some."), "No room.", 2),
        (OSError(errno.ENOSPC, "No space left", "/x/y"), "The disk is full (/x/y).", 1),
        (OSError(errno.EDQUOT, "Quota exceeded"), "The disk is full.", 1),
        (OSError(errno.EACCES, "denied", "/x/y"), "/x/y: denied.", 1),
        (OSError("odd"), "Something that should not happen did: OSError: odd", 1),
        (KeyError("x"), "Something that should not happen did: KeyError: 'x'", 1),
        (SystemExit(3), "SystemExit", 1),
    ],
)
def test_failures_in_words(error: BaseException, words: str, exit_code: int) -> None:
    event = failure(error)
    assert words in event.message
    assert event.exit_code == exit_code
    assert event.error == type(error).__name__
    assert event.remedy or isinstance(error, ConfigError)


def test_blocked_packages_look_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "broken_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('built for another torch')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert importlib.util.find_spec("broken_package") is not None
    monkeypatch.setitem(sys.modules, "broken_package", None)
    del sys.modules["broken_package"]
    block_packages(["broken_package"])
    assert importlib.util.find_spec("broken_package") is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("broken_package")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("broken_package.part")


@pytest.mark.parametrize(("attention", "wanted"), [("xformers", {"xformers"}), ("default", set())])
def test_a_package_is_taken_from_the_host_only_if_the_settings_name_it(
    attention: str, wanted: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(model="ada")
    config.precision.attention = attention
    blocked: list[str] = []
    monkeypatch.setattr(worker, "block_packages", blocked.extend)
    monkeypatch.setattr(worker, "put_first", lambda name, folders: None)
    worker.separate_from_host(worker.wanted_packages(config))
    assert set(worker.BLOCKED_PACKAGES) - set(blocked) == wanted
    assert worker.wanted_packages(SampleConfig(model="ada")) == set()


def test_broken_packages_of_the_host_do_no_harm(tmp_path: Path) -> None:
    for name in worker.BLOCKED_PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('for another torch')")
        (tmp_path / f"{name}-9.9.dist-info").mkdir()
        (tmp_path / f"{name}-9.9.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n"
        )
    spec = importlib.util.find_spec("diffusers")
    assert spec is not None and spec.origin is not None
    packages = str(Path(spec.origin).parents[1])
    # Every stage is loaded, and something is computed, with the stubs first on the path.
    done = subprocess.run(
        module_command(sys.executable, "dreambooth_core.worker", "--self-test", packages),
        env=worker_environment({"PATH": "", "SYSTEMROOT": ""}, [tmp_path]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    alone = subprocess.run(
        module_command(sys.executable, "xformers"),
        env=worker_environment({"PATH": "", "SYSTEMROOT": ""}, [tmp_path]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "for another torch" in alone.stderr, "else the stubs prove nothing"


def test_a_namespace_that_a_path_file_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("host", "overlay"):
        (tmp_path / place / "claimed").mkdir(parents=True)
        (tmp_path / place / "claimed" / "part.py").write_text(f"place = {place!r}")
    (tmp_path / "host" / "claimed" / "other.py").write_text("")
    claimed = types.ModuleType("claimed")
    claimed.__path__ = [str(tmp_path / "host" / "claimed")]
    monkeypatch.setitem(sys.modules, "claimed", claimed)
    worker.put_first("claimed", [str(tmp_path / "none")])
    assert claimed.__path__ == [str(tmp_path / "host" / "claimed")]
    for _ in range(2):
        worker.put_first("claimed", [str(tmp_path / "overlay"), str(tmp_path / "none")])
    assert importlib.import_module("claimed.part").place == "overlay"
    assert importlib.import_module("claimed.other") is not None
    assert len(claimed.__path__) == 2
    worker.put_first("a_package_that_is_nowhere", [str(tmp_path)])  # and none is asked for


def test_only_training_is_recorded(workspace: Workspace) -> None:
    config = SampleConfig(model="ada", prompts=["x"])
    assert worker._record_folder(workspace, Run("r", "sample", workspace.root, config)) is None
    folder = worker._record_folder(workspace, Run("r", "train", workspace.root, config))
    assert folder == workspace.model("ada").logging_dir / "r"


def test_the_launcher_starts_this_worker() -> None:
    assert worker.__name__ == launcher.WORKER_MODULE
