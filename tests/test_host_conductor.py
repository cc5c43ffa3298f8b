from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth_core.config.schema import CreateConfig
from dreambooth_core.errors import BusyError, ConfigError, OverlayError
from dreambooth_core.host import base
from dreambooth_core.host import conductor as conducting
from dreambooth_core.host.conductor import INSTALLING, STARTING, WAITING, Conductor, conductor
from dreambooth_core.host.standalone import StandaloneHost
from dreambooth_core.job import claims, launcher
from dreambooth_core.job.commands import Command
from dreambooth_core.job.events import (
    Event,
    JobFailed,
    JobFinished,
    JobStarted,
    JobStopped,
    PhaseProgress,
    PhaseStarted,
    read_events,
)
from dreambooth_core.job.interpreter import WorkerPython
from dreambooth_core.job.launcher import Job, launch, model_lock_path, read_process, running_jobs
from dreambooth_core.job.process import start_mark
from dreambooth_core.job.runs import events_path, read_run, run_ids
from dreambooth_core.job.workspace import ModelInfo, Workspace
from tests.host_fixtures import PATIENCE, ReadyOverlay, end_jobs, order, running, until

ROOT = Path(__file__).resolve().parents[1]


class FakeHost(StandaloneHost):
    """Notes what is asked of it."""

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace)
        self.calls: list[str] = []
        self.needed: ReadyOverlay | None = None
        self.error: BaseException | None = None

    def overlay(self) -> ReadyOverlay | None:
        return self.needed

    def release_memory(self) -> None:
        self.calls.append("release")
        if self.error:
            raise self.error

    def reclaim_memory(self) -> None:
        self.calls.append("reclaim")

    def checkpoint_saved(self, path: Path, sha256: str) -> None:
        self.calls.append(path.name)
        if path.name == "bad.safetensors":
            raise RuntimeError("the host's list is broken")


@pytest.fixture
def host(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    for name in ("ada", "bob"):
        workspace.model(name).write_info(ModelInfo(name, "sd1", ""))
    monkeypatch.setattr(launcher, "WORKER_MODULE", "tests.host_standin.worker")
    return FakeHost(workspace)


@pytest.fixture
def ours(host: FakeHost) -> Iterator[Conductor]:
    made = Conductor(host)
    yield made
    end_jobs(made)


def _so_far(job: Job) -> list[Event]:
    return read_events(events_path(job.folder))[0]


def _has(job: Job, kind: type[Event]) -> bool:
    return any(isinstance(event, kind) for event in _so_far(job))


def _wait_until_working(job: Job) -> None:
    until(lambda: any(isinstance(e, PhaseProgress) and e.phase == "working" for e in _so_far(job)))


def test_a_job_from_start_to_end(ours: Conductor, host: FakeHost) -> None:
    assert ours.job() is None
    job = ours.start("sample", order("save a.safetensors b.safetensors finish"))
    assert isinstance(job.wait(), JobFinished)
    assert ours.wait(PATIENCE)
    assert sorted(host.calls) == ["a.safetensors", "b.safetensors", "reclaim", "release"]
    assert (host.calls[0], host.calls.count("reclaim")) == ("release", 1)
    kinds = [(type(e), getattr(e, "phase", "")) for e in _so_far(job)][:3]
    assert kinds == [(PhaseStarted, WAITING), (PhaseStarted, STARTING), (JobStarted, "")]
    assert (ours.preparing(), ours.problem) == ("", None)
    assert ours.job().run_id == job.run_id


def test_only_heavy_jobs_take_the_memory(
    ours: Conductor, host: FakeHost, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ours.start("create", CreateConfig(name="eve", source=str(tiny_checkpoint)))
    assert ours.job().run_id == job.run_id
    job.wait()
    assert ours.wait(PATIENCE)
    assert host.calls == []


def test_bad_settings_are_told_at_once(ours: Conductor, host: FakeHost) -> None:
    with pytest.raises(ConfigError, match="prompts"):
        ours.start("sample", order(" "))
    assert host.calls == []
    assert ours.job() is None


def test_one_job_at_a_time(ours: Conductor, host: FakeHost) -> None:
    job = ours.start("sample", order("wait"))
    with pytest.raises(BusyError, match=job.run_id):
        ours.start("sample", order("finish", "bob"))
    _wait_until_working(job)
    with pytest.raises(BusyError, match=job.run_id):
        Conductor(host).start("sample", order("finish", "bob"))
    job.send(Command("stop"))
    assert isinstance(job.wait(), JobStopped)
    again = ours.start("sample", order("finish"))
    assert isinstance(again.wait(), JobFinished)


def test_a_worker_that_is_slow_to_go_away_does_not_count(ours: Conductor, host: FakeHost) -> None:
    job = launch(host.workspace(), "sample", order("finish"))
    assert isinstance(job.wait(), JobFinished)
    here = {"pid": os.getpid(), "mark": start_mark(os.getpid())}
    (job.folder / "process.json").write_text(json.dumps(here))
    assert Job(job.run_id, job.folder).is_running()
    assert isinstance(ours.start("sample", order("finish")).wait(), JobFinished)


def test_a_job_of_the_command_line_counts_and_can_be_adopted(
    ours: Conductor, host: FakeHost
) -> None:
    job = launch(host.workspace(), "sample", order("save a.safetensors wait"))
    _wait_until_working(job)
    with pytest.raises(BusyError, match=job.run_id):
        ours.start("sample", order("finish", "bob"))
    assert [adopted.run_id for adopted in ours.adopt()] == [job.run_id]
    assert [adopted.run_id for adopted in ours.adopt()] == [job.run_id]
    until(lambda: "a.safetensors" in host.calls)
    assert ours.job().run_id == job.run_id
    job.send(Command("stop"))
    assert isinstance(job.wait(), JobStopped)
    assert ours.wait(PATIENCE)
    assert host.calls == ["release", "a.safetensors", "reclaim"]
    assert ours.adopt() == []


def test_packages_are_installed_first(ours: Conductor, host: FakeHost) -> None:
    overlay = host.needed = ReadyOverlay()
    overlay.kind = "missing"
    job = ours.start("sample", order("finish"))
    assert isinstance(job.wait(), JobFinished)
    assert overlay.made == 1
    phases = [e for e in _so_far(job) if getattr(e, "phase", "") == INSTALLING]
    assert phases == [
        PhaseStarted(INSTALLING, 2, "steps"),
        PhaseProgress(INSTALLING, 1, 2),
        PhaseProgress(INSTALLING, 2, 2),
    ]
    assert ours.wait(PATIENCE)
    assert isinstance(ours.start("sample", order("finish")).wait(), JobFinished)
    assert overlay.made == 1


class SlowOverlay(ReadyOverlay):
    """Goes on until a report is refused or it is let go."""

    def __init__(self, error: OverlayError | None = None) -> None:
        super().__init__()
        self.kind, self.error, self.go = "missing", error, False

    def make(self, report) -> None:
        until(lambda: report("numbers", 3, 17) or self.go)
        if self.error:
            raise self.error
        self.kind = "ready"


def test_a_job_that_is_being_prepared_runs_already(ours: Conductor, host: FakeHost) -> None:
    overlay = host.needed = SlowOverlay()
    job = ours.start("sample", order("finish"))
    assert until(ours.preparing) == f"{INSTALLING}: 3 of 17 (numbers)"
    assert job.is_running()
    assert ours.job().run_id == job.run_id
    assert read_process(job.folder).preparing
    job.kill()  # does not reach this process
    with pytest.raises(BusyError, match=job.run_id):
        ours.start("sample", order("finish", "bob"))
    with pytest.raises(BusyError, match=job.run_id):
        launch(host.workspace(), "sample", order("finish"))
    assert ours.adopt() == [job]
    overlay.go = True
    assert isinstance(job.wait(), JobFinished)
    assert sum(e == PhaseProgress(INSTALLING, 3, 17) for e in _so_far(job)) == 1


def test_stop_while_preparing(ours: Conductor, host: FakeHost) -> None:
    host.needed = SlowOverlay()
    job = ours.start("sample", order("finish"))
    until(ours.preparing)
    job.send(Command("stop"))
    assert isinstance(job.wait(), JobStopped)
    assert ours.wait(PATIENCE)
    assert not _has(job, JobStarted)
    assert running_jobs(host.workspace()) == []
    host.needed = None
    assert isinstance(ours.start("sample", order("finish")).wait(), JobFinished)


def test_packages_that_cannot_be_installed(ours: Conductor, host: FakeHost) -> None:
    problem = OverlayError("There is no network.", remedy="Connect.")
    overlay = host.needed = SlowOverlay(problem)
    overlay.go = True
    job = ours.start("sample", order("finish"))
    final = job.wait()
    assert final == JobFailed("There is no network.", "Connect.", error="OverlayError")
    assert ours.wait(PATIENCE)
    assert ours.problem is problem
    assert host.calls == []
    assert not job.is_running()
    assert not model_lock_path(host.workspace(), "ada").exists()
    host.needed = None
    assert isinstance(ours.start("sample", order("finish")).wait(), JobFinished)
    assert ours.problem is None


def test_a_torch_that_cannot_be_used(ours: Conductor, host: FakeHost) -> None:
    overlay = host.needed = ReadyOverlay()
    overlay.kind, overlay.message, overlay.remedy = "unsupported_torch", "Torch 1.", "Use 2."
    with pytest.raises(OverlayError, match=r"Torch 1\. Use 2\."):
        ours.start("sample", order("finish"))
    assert ours.job() is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_host_that_breaks_ends_the_job_in_plain_words(ours: Conductor, host: FakeHost) -> None:
    host.error = AttributeError("model_data")
    job = ours.start("sample", order("finish"))
    final = job.wait()
    assert isinstance(final, JobFailed)
    assert "AttributeError: model_data" in final.message
    assert ours.wait(PATIENCE)
    assert host.calls == ["release", "reclaim"]
    assert ours.problem.message == final.message
    assert running_jobs(host.workspace()) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_cannot_start(
    ours: Conductor, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "worker", lambda: WorkerPython("no-such-python"))
    job = ours.start("sample", order("finish"))
    assert isinstance(job.wait(), JobFailed)
    assert ours.wait(PATIENCE)
    assert "no-such-python" in ours.problem.message
    assert sum(isinstance(event, JobFailed) for event in _so_far(job)) == 1
    assert running_jobs(host.workspace()) == []
    assert host.calls == ["release", "reclaim"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_list_that_cannot_be_refreshed_does_not_end_the_job(
    ours: Conductor, host: FakeHost
) -> None:
    job = ours.start("sample", order("save bad.safetensors good.safetensors finish"))
    assert isinstance(job.wait(), JobFinished)
    assert ours.wait(PATIENCE)
    assert {"bad.safetensors", "good.safetensors"} < set(host.calls)


def test_a_killed_worker(ours: Conductor, host: FakeHost) -> None:
    job = ours.start("sample", order("wait"))
    _wait_until_working(job)
    ours.job().kill()
    assert ours.wait(PATIENCE)
    final = _so_far(job)[-1]
    assert isinstance(final, JobFailed)
    assert final.error == "WorkerDied"
    assert host.calls == ["release", "reclaim"]
    assert isinstance(ours.start("sample", order("finish")).wait(), JobFinished)


def test_a_quiet_job_is_not_the_job_and_makes_way(
    ours: Conductor, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (conducting, claims):
        monkeypatch.setattr(module, "LOOKING_KINDS", ("sample",))
    monkeypatch.setattr(conducting, "HEAVY_KINDS", ())
    overlay = host.needed = ReadyOverlay()
    overlay.kind = "missing"
    quiet = ours.start("sample", order("wait"))
    _wait_until_working(quiet)
    assert ours.job() is None
    newer = ours.start("sample", order("wait"))
    assert isinstance(quiet.wait(), JobFailed)
    _wait_until_working(newer)
    assert overlay.made == 0
    assert host.calls == []


def test_old_runs_that_only_looked_are_deleted(
    ours: Conductor, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only they, and none that goes on: others are what the models came from."""
    monkeypatch.setattr(conducting, "LOOKS_KEPT", 2)
    jobs = host.workspace().jobs_dir
    others = ["20260101-000000-train", "my-plan", "20260101-000000-planned", "20260101-000000-plan"]
    for number, name in enumerate(others):
        (jobs / name).mkdir(parents=True)
        (jobs / name / "job.json").write_text("{}")
        os.utime(jobs / name / "job.json", (number, number))
    process = {"pid": os.getpid(), "mark": start_mark(os.getpid()), "preparing": False}
    (jobs / others[3] / "process.json").write_text(json.dumps(process))
    monkeypatch.setattr(conducting, "LOOKING_KINDS", ("sample", "plan"))
    started = []
    for _ in range(4):
        started.append(ours.start("sample", order("finish")).run_id)
        assert ours.wait(PATIENCE)
    assert set(run_ids(host.workspace())) == {*others, *started[-2:]}


def test_a_quiet_job_ends_even_if_its_process_is_named_late(
    ours: Conductor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (conducting, claims):
        monkeypatch.setattr(module, "LOOKING_KINDS", ("sample",))
    name_process = launcher._name_process

    def late(folder: Path, pid: int, mark: str, preparing: bool = False) -> None:
        time.sleep(0 if preparing else 3)
        name_process(folder, pid, mark, preparing)

    monkeypatch.setattr(launcher, "_name_process", late)
    quiet = ours.start("sample", order("wait"))
    _wait_until_working(quiet)
    ours.start("sample", order("finish"))
    assert isinstance(quiet.wait(), JobFailed)


def test_there_is_one_conductor(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_CHOSEN", [host])
    conductor.cache_clear()
    try:
        assert conductor() is conductor()
        assert conductor().host is host
    finally:
        conductor.cache_clear()


def test_a_job_keeps_the_folders_that_are_elsewhere(
    host: FakeHost, tmp_path: Path, workspace: Workspace
) -> None:
    models, files = tmp_path / "models here", tmp_path / "files here"
    elsewhere = Workspace(workspace.root, models, files)
    elsewhere.model("ada").write_info(ModelInfo("ada", "sd1", ""))
    ours = Conductor(FakeHost(elsewhere))
    job = ours.start("sample", order("save a.safetensors finish"))
    assert isinstance(job.wait(), JobFinished)
    assert ours.wait(PATIENCE)
    assert job.folder.parent == models / ".jobs"
    assert (files / "a.safetensors").is_file()
    assert read_run(job.folder).workspace == elsewhere


def test_the_host_is_killed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job goes on without the host, and the new one finds it and lists its files."""
    with running("a1111", tmp_path, monkeypatch):
        pass  # the folder is prepared
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "STANDIN_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.host_standin.main", "save a.safetensors wait"]
    first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    run_id = first.stdout.readline().strip()
    job = Job(run_id, tmp_path / "models" / "dreambooth" / ".jobs" / run_id)
    try:
        _wait_until_working(job)
    finally:
        first.kill()
        first.communicate()
    assert first.returncode == (1 if sys.platform == "win32" else -signal.SIGKILL)
    assert job.is_running()
    with running("a1111", tmp_path, monkeypatch) as webui:
        assert conductor().job().run_id == run_id
        until(lambda: "calculate_shorthash a.safetensors" in webui.calls)
        until(lambda: webui.module("shared").state.job == "dreambooth")
        webui.reload_ui()
        webui.reload_ui()
        assert webui.errors() == []
        assert [found.run_id for found in conductor().adopt()] == [run_id]
        conductor().job().send(Command("stop"))
        assert isinstance(job.wait(), JobStopped)
        assert conductor().wait(PATIENCE)
        assert webui.module("processing").txt2img().device == "cuda"
        assert [c for c in webui.calls if "shorthash" in c] == ["calculate_shorthash a.safetensors"]
