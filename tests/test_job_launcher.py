from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from io import FileIO
from pathlib import Path

import pytest

from dreambooth_core.config.schema import CreateConfig, MergeConfig, SampleConfig, TrainConfig
from dreambooth_core.errors import BusyError, ConfigError, FullDiskError, InputError
from dreambooth_core.job import disk, launcher, runs
from dreambooth_core.job.commands import Command
from dreambooth_core.job.events import (
    EventWriter,
    JobFailed,
    JobFinished,
    JobStarted,
    JobStopped,
    Notice,
    PhaseProgress,
    PhaseStarted,
)
from dreambooth_core.job.history import past_runs
from dreambooth_core.job.interpreter import WorkerPython
from dreambooth_core.job.launcher import (
    Job,
    abandon,
    attach,
    begin,
    launch,
    model_lock_path,
    read_process,
    reserve,
    running_jobs,
)
from dreambooth_core.job.runs import Run, create_run_folder, last_run, read_run, run_ids, write_run
from dreambooth_core.job.workspace import ModelInfo, Workspace
from tests.tiny_header import write_header


@pytest.fixture
def ready(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with a model "ada", and workers whose stage obeys its prompt."""
    workspace.model("ada").write_info(ModelInfo("ada", "sd1", ""))
    monkeypatch.setattr(launcher, "WORKER_MODULE", "tests.fake_worker")
    return workspace


def _order(text: str, model: str = "ada") -> SampleConfig:
    return SampleConfig(model=model, prompts=[text])


def _wait_until_working(job: Job) -> None:
    for event in job.events():
        if isinstance(event, PhaseProgress):
            return
    pytest.fail("the job ended")


def test_a_job_from_start_to_end(ready: Workspace) -> None:
    job = launch(ready, "sample", _order("finish"))
    events = list(job.events())
    assert [type(event) for event in events] == [
        JobStarted,
        PhaseStarted,
        PhaseProgress,
        Notice,
        JobFinished,
    ]
    started, final = events[0], events[-1]
    assert (started.kind, started.model, started.run_id) == ("sample", "ada", job.run_id)
    assert started.pid == job.process.pid
    assert final.summary == {"paths": ["one.png", "two.png"], "cwd": str(job.folder)}
    assert events[3].message == "offline 1"
    assert job.process.returncode == 0
    assert not model_lock_path(ready, "ada").exists()
    assert job.folder.parent == ready.jobs_dir
    assert read_run(job.folder) == Run(job.run_id, "sample", ready.root, _order("finish"))


def test_a_killed_worker_is_an_event_and_the_parent_lives(ready: Workspace) -> None:
    job = launch(ready, "sample", _order("die"))
    final = job.wait()
    assert isinstance(final, JobFailed)
    assert "killed by signal 9 (SIGKILL)" in final.message
    assert "line before the end" in final.message
    assert "while working (1 of 2 things)" in final.message
    assert str(job.folder / "log.txt") in final.remedy
    assert "memory" not in final.message + final.remedy, "nothing says that it was memory"
    assert final.exit_code == 1
    # Its lock is void, and another process reads the same end.
    assert isinstance(attach(ready, job.run_id).wait(), JobFailed)
    assert isinstance(launch(ready, "sample", _order("finish")).wait(), JobFinished)


def test_kill_from_outside(ready: Workspace) -> None:
    job = launch(ready, "sample", _order("wait"))
    _wait_until_working(job)
    job.kill()
    final = job.wait()
    assert isinstance(final, JobFailed)
    assert not job.is_running()
    job.kill()  # again is no error


def test_a_worker_that_just_exits(ready: Workspace) -> None:
    final = launch(ready, "sample", _order("exit")).wait()
    assert isinstance(final, JobFailed)
    assert "exit code 3" in final.message


def test_an_exception_is_reported_with_its_trace_in_the_log(ready: Workspace) -> None:
    job = launch(ready, "sample", _order("raise"))
    final = job.wait()
    assert isinstance(final, JobFailed)
    assert (final.error, final.exit_code) == ("RuntimeError", 1)
    assert "a bug" in final.message
    assert "Traceback" in (job.folder / "log.txt").read_text()


def test_an_error_in_the_users_words_keeps_its_parts(ready: Workspace) -> None:
    job = launch(ready, "sample", _order("usage"))
    assert job.wait() == JobFailed(
        "x.safetensors is damaged.", "Get it again.", "source", "CheckpointError", 2
    )
    assert job.process.wait() == 2


def test_stop_is_obeyed(ready: Workspace) -> None:
    job = launch(ready, "sample", _order("wait"))
    _wait_until_working(job)
    assert [running.run_id for running in running_jobs(ready)] == [job.run_id]
    job.send(Command("stop"))
    assert job.wait() == JobStopped(5, {"stopped": True, "step": 5})
    assert running_jobs(ready) == []


def test_one_job_per_model(ready: Workspace) -> None:
    job = launch(ready, "sample", _order("wait"))
    with pytest.raises(BusyError, match=job.run_id):
        launch(ready, "sample", _order("finish"))
    ready.model("bob").write_info(ModelInfo("bob", "sd1", ""))
    other = launch(ready, "sample", _order("finish", "bob"))
    assert isinstance(other.wait(), JobFinished)
    job.send(Command("stop"))
    assert isinstance(job.wait(), JobStopped)
    assert isinstance(launch(ready, "sample", _order("finish")).wait(), JobFinished)
    assert len(run_ids(ready)) == 3


def test_attached_from_elsewhere(ready: Workspace) -> None:
    job = launch(ready, "sample", _order("wait"))
    _wait_until_working(job)
    seen = attach(ready, job.run_id)
    assert seen.process is None
    assert seen.is_running()
    seen.send(Command("stop"))
    assert isinstance(seen.wait(), JobStopped)
    assert isinstance(job.wait(), JobStopped)


def test_an_attached_job_that_is_killed(ready: Workspace) -> None:
    job = launch(ready, "sample", _order("wait"))
    _wait_until_working(job)
    seen = attach(ready, job.run_id)
    threading.Timer(0.2, job.kill).start()
    final = seen.wait()
    assert isinstance(final, JobFailed)
    assert "ended without finishing" in final.message


def test_a_run_that_was_never_started_is_dead_after_a_while(ready: Workspace) -> None:
    folder = create_run_folder(ready, "sample")
    write_run(folder, Run(folder.name, "sample", ready.root, _order("finish")))
    job = attach(ready, folder.name)
    assert job.is_running()
    old = time.time() - launcher.STARTING_SECONDS - 1
    os.utime(folder / "job.json", (old, old))
    assert not job.is_running()
    assert isinstance(job.wait(), JobFailed)


def test_bad_settings_write_nothing(ready: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        launch(ready, "create", CreateConfig(name="x", source=str(tmp_path / "none")))
    with pytest.raises(ConfigError):
        launch(ready, "train", TrainConfig(model="ada"))
    assert not ready.jobs_dir.exists()


def test_a_worker_that_cannot_start_leaves_no_lock(ready: Workspace) -> None:
    with pytest.raises(OSError, match="no-such-python"):
        launch(ready, "sample", _order("finish"), WorkerPython("no-such-python"))
    assert not model_lock_path(ready, "ada").exists()


def test_relative_paths_count_from_here(
    ready: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = SampleConfig(model="ada", prompts=["finish"], output="pictures")
    job = launch(ready, "sample", config)
    job.wait()
    assert read_run(job.folder).config.output == str(tmp_path / "pictures")


def test_an_unknown_run(ready: Workspace) -> None:
    with pytest.raises(InputError, match="There are none yet"):
        attach(ready, "none")
    job = launch(ready, "sample", _order("finish"))
    job.wait()
    with pytest.raises(InputError, match=job.run_id):
        attach(ready, "none")
    with pytest.raises(InputError, match="slash"):
        attach(ready, "../x")


def test_the_worker_is_in_a_process_group_of_its_own(
    ready: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, object]] = []

    class Started:
        pid = os.getpid()

        def __init__(self, command: list[str], **options: object) -> None:
            seen.append({"command": command, **options})

    monkeypatch.setattr(launcher.subprocess, "Popen", Started)
    monkeypatch.setattr(launcher.subprocess, "CREATE_NEW_PROCESS_GROUP", 0x200, raising=False)
    monkeypatch.setattr(launcher.subprocess, "CREATE_NO_WINDOW", 0x08000000, raising=False)
    folder = create_run_folder(ready, "sample")
    monkeypatch.setattr(sys, "platform", "linux")
    launcher._start_worker(folder, WorkerPython("python"))
    monkeypatch.setattr(sys, "platform", "win32")
    launcher._start_worker(folder, WorkerPython("python"))
    posix, windows = seen
    assert posix["start_new_session"] is True
    assert windows["creationflags"] == 0x08000200
    assert "start_new_session" not in windows
    assert posix["cwd"] == folder


def test_run_folders_have_names_of_their_own(ready: Workspace) -> None:
    names = [create_run_folder(ready, "train").name for _ in range(3)]
    assert len(set(names)) == 3
    assert all("-train" in name for name in names)
    assert run_ids(ready) == []  # nothing was asked of them yet


def test_the_last_run_of_a_kind_and_model(ready: Workspace) -> None:
    def write(kind: str, model: str, age: int) -> str:
        folder = create_run_folder(ready, kind)
        write_run(folder, Run(folder.name, kind, ready.root, TrainConfig(model=model)))
        moment = time.time() - age
        os.utime(folder / "job.json", (moment, moment))
        return folder.name

    newest = write("train", "ada", 10)
    write("train", "ada", 30)
    write("train", "bob", 5)
    write("class-images", "ada", 1)
    assert last_run(ready, "ada", "train").run_id == newest
    assert last_run(ready, "eve", "train") is None
    assert len(run_ids(ready)) == 4


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"kind": "x"}', '{"kind": "train"}', '{"kind": "train", "root": 3}']
)
def test_a_damaged_run_file_is_named(tmp_path: Path, text: str) -> None:
    runs.job_path(tmp_path).write_text(text)
    with pytest.raises(InputError, match=r"job\.json"):
        read_run(tmp_path)


def test_a_run_file_with_unknown_settings(tmp_path: Path) -> None:
    values = {"kind": "train", "root": "/", "run_id": "r", "config": {"model": "m", "odd": 1}}
    runs.job_path(tmp_path).write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="odd"):
        read_run(tmp_path)


def test_events_of_a_run_that_is_over_are_read_without_a_process(ready: Workspace) -> None:
    folder = create_run_folder(ready, "sample")
    write_run(folder, Run(folder.name, "sample", ready.root, _order("finish")))
    writer = EventWriter(runs.events_path(folder))
    writer.emit(Notice("info", "x"))
    writer.emit(JobFinished({}))
    writer.emit(Notice("info", "after the end"))
    assert list(attach(ready, folder.name).events()) == [Notice("info", "x"), JobFinished({})]


def test_a_reserved_run_has_the_model_until_its_worker_starts(ready: Workspace) -> None:
    job = reserve(ready, "sample", _order("finish"))
    assert read_process(job.folder).preparing
    assert [running.run_id for running in running_jobs(ready)] == [job.run_id]
    with pytest.raises(BusyError, match=job.run_id):
        reserve(ready, "sample", _order("finish"))
    job.kill()  # is not for the process that prepares, which is this one
    EventWriter(runs.events_path(job.folder)).emit(Notice("info", "getting ready"))
    begun = begin(ready, job)
    events = list(attach(ready, job.run_id).events())
    assert events[0] == Notice("info", "getting ready")
    assert isinstance(events[-1], JobFinished)
    assert begun.process.wait() == 0
    assert not read_process(job.folder).preparing
    assert not model_lock_path(ready, "ada").exists()


def test_a_reserved_run_ends_with_the_process_that_prepares_it(ready: Workspace) -> None:
    job = reserve(ready, "sample", _order("finish"))
    named = json.loads((job.folder / "process.json").read_text())
    (job.folder / "process.json").write_text(json.dumps({**named, "mark": "of an earlier start"}))
    assert not job.is_running()
    assert isinstance(job.wait(), JobFailed)


def test_an_abandoned_run_says_why_and_frees_the_model(ready: Workspace) -> None:
    job = reserve(ready, "sample", _order("finish"))
    abandon(ready, job, JobFailed("There is no network."))
    assert job.wait() == JobFailed("There is no network.")
    assert running_jobs(ready) == []
    assert isinstance(launch(ready, "sample", _order("finish")).wait(), JobFinished)


def test_a_launch_that_fails_ends_its_run(ready: Workspace) -> None:
    with pytest.raises(OSError, match="no-such-python"):
        launch(ready, "sample", _order("finish"), WorkerPython("no-such-python"))
    job = attach(ready, run_ids(ready)[-1])
    assert not job.is_running()
    assert "no-such-python" in job.wait().message


def test_a_new_file_may_be_called_as_a_model_that_is_at_work(ready: Workspace) -> None:
    for name in "abc":
        write_header(ready.checkpoints_dir / f"{name}.safetensors")
    config = MergeConfig(name="ada", primary="a", secondary="b", tertiary="c")
    jobs = [reserve(ready, "sample", _order("finish")), reserve(ready, "merge", config)]
    with pytest.raises(BusyError, match=jobs[1].run_id):
        reserve(ready, "merge", config)
    for job in jobs:
        abandon(ready, job, JobFailed("enough"))
    assert [past.run.kind for past in past_runs(ready, "ada")] == ["sample"]
    abandon(ready, reserve(ready, "merge", config), JobFailed("enough"))


@pytest.fixture
def full(ready: Workspace, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ends of the names of files that a full disk refuses."""
    names: list[str] = []
    real = disk.write

    def write(file: FileIO, data: bytes) -> None:
        if any(name in str(file.name) for name in names):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, data)

    monkeypatch.setattr(disk, "write", write)
    return names


@pytest.mark.parametrize("name", ["job.json", "process.json", ".lock"])
def test_a_job_that_a_full_disk_refuses(ready: Workspace, full: list[str], name: str) -> None:
    full.append(name)
    with pytest.raises(FullDiskError, match=f"The job cannot be written.*{name}"):
        reserve(ready, "sample", _order("finish"))
    full.clear()
    assert running_jobs(ready) == []
    abandon(ready, reserve(ready, "sample", _order("finish")), JobFailed("x"))  # it is free


def test_a_worker_that_cannot_be_named_is_ended(
    ready: Workspace, full: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = reserve(ready, "sample", _order("wait"))
    full.extend(["process.json", "events.jsonl"])
    started: list[subprocess.Popen[bytes]] = []
    real = launcher._start_worker
    monkeypatch.setattr(
        launcher, "_start_worker", lambda *given: started.append(real(*given)) or started[0]
    )
    with pytest.raises(FullDiskError, match="The job cannot be written"):
        begin(ready, job)
    assert started[0].poll() is not None, "nobody could find it"
    abandon(ready, job, JobFailed("There is no room."))
    old = time.time() - launcher.STARTING_SECONDS - 1
    os.utime(job.folder / "job.json", (old, old))
    assert not job.is_running(), "it does not stay as one that is being started"
    assert isinstance(job.wait(), JobFailed)
