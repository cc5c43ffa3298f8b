"""How a worker ended that is gone without a word; for memory once really, in a group of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.job import ended, oom_kills
from dreambooth_core.job.ended import Traces, how_it_ended
from dreambooth_core.job.events import (
    CheckpointSaved,
    EventWriter,
    JobFailed,
    PhaseProgress,
    PhaseStarted,
    Resumed,
    SampleSaved,
    StateSaved,
    StepDone,
    spare_path,
)
from dreambooth_core.job.kept import Kept, read_kept
from dreambooth_core.job.launcher import Job
from dreambooth_core.job.oom_kills import LIKELY, SURE, UNKNOWN, killed_since, note_kills
from dreambooth_core.job.process import start_mark
from dreambooth_core.job.runs import Run, create_run_folder, events_path, write_run
from dreambooth_core.job.workspace import ModelInfo, Workspace

LIMIT_BYTES = 300 * 2**20
ROOT = Path(__file__).resolve().parents[1]

LAUNCH = """
import sys
from pathlib import Path
from dreambooth_core.config.schema import SampleConfig
from dreambooth_core.job import launcher
from dreambooth_core.job.events import to_json
from dreambooth_core.job.workspace import Workspace
import json, os
Path(sys.argv[2], "cgroup.procs").write_text(str(os.getpid()))
launcher.WORKER_MODULE = "tests.fake_worker"
job = launcher.launch(Workspace(Path(sys.argv[1])), "sample",
                      SampleConfig(model="ada", prompts=["eat"]))
final = job.wait()
again = launcher.attach(Workspace(Path(sys.argv[1])), job.run_id).wait()
print(json.dumps([to_json(final), to_json(again)]))
"""


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A group of processes with little memory; skips where none can be made."""
    parents = [folder for _, folder in oom_kills.memory_groups() if folder.is_dir()]
    if sys.platform != "linux" or os.geteuid() != 0 or not parents:
        pytest.skip("A group with a limit is made by root on Linux only.")
    group = parents[0] / f"dreambooth-test-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
        old = group / "memory.limit_in_bytes"
        limit = old if old.exists() else group / "memory.max"
        limit.write_text(str(LIMIT_BYTES))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"No group with a limit can be made here: {error}")
    try:
        yield group
    finally:
        group.rmdir()


def test_the_kernel_really_ends_a_worker(workspace: Workspace, small_group: Path) -> None:
    workspace.model("ada").write_info(ModelInfo("ada", "sd1", ""))
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, str(workspace.root), str(small_group)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for final in json.loads(done.stdout):  # with the exit code, and without it
        assert final["message"].startswith(
            "The system ended the worker because memory ran out, in training step 4 of 9."
        )
        assert final["error"] == "WorkerDied"
        assert "newest training state is of step 3: state/run/step_00000003" in final["kept"][0]
        assert "Close other programs" in final["remedy"] and "log.txt" in final["remedy"]


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for /proc and /sys/fs/cgroup."""
    monkeypatch.setattr(oom_kills, "PROC", tmp_path / "proc")
    monkeypatch.setattr(oom_kills, "GROUPS", tmp_path / "groups")
    (tmp_path / "proc" / "7").mkdir(parents=True)
    write(tmp_path / "proc/vmstat", "nr_free_pages 3\noom_kill 5\n")
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("groups", "counter"),
    [
        ("5:cpu:/x\n4:memory:/a/b\n0::/\n", "memory/a/b/memory.oom_control"),
        ("4:memory:/outside/of/the/container\n", "memory/memory.oom_control"),
        ("0::/user.slice/app\n", "user.slice/app/memory.events"),
        ("0::/\n", "memory.events"),
    ],
)
def test_the_counter_of_the_group(kernel: Path, groups: str, counter: str) -> None:
    write(kernel / "proc/7/cgroup", groups)
    path = write(kernel / "groups" / counter, "low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    noted = note_kills(7)
    assert noted == {str(path): 2}
    write(kernel / "proc/vmstat", "oom_kill 6\n")
    assert killed_since(noted) == UNKNOWN, "that was of another group"
    write(path, "oom_kill 3\n")
    assert killed_since(noted) == SURE
    path.unlink()
    assert killed_since(noted) == UNKNOWN


def test_the_counter_of_the_machine(kernel: Path) -> None:
    noted = note_kills(7)
    assert noted == {str(kernel / "proc/vmstat"): 5}
    write(kernel / "proc/vmstat", "oom_kill 6\n")
    assert killed_since(noted) == LIKELY
    (kernel / "proc/vmstat").unlink()
    assert note_kills(7) == {}
    assert killed_since({}) == UNKNOWN


@pytest.fixture
def run_folder(workspace: Workspace) -> Path:
    """The folder of a training that was gone in its 13th step."""
    folder = create_run_folder(workspace, "train")
    config = TrainConfig(model="ada")
    config.batch.batch_size, config.precision.device = 4, "cpu"
    config.images.cache_latents = "disk"
    write_run(folder, Run(folder.name, "train", workspace.root, config))
    writer = EventWriter(events_path(folder))
    writer.emit(PhaseStarted("class images", 2, "images"))
    writer.emit(SampleSaved("class/1.png", "a dog", 1))
    writer.emit(Resumed("earlier", 0))
    writer.emit(PhaseProgress("caching latents", 7, 8))
    writer.emit(PhaseStarted("training", 200, "steps"))
    for step in range(1, 13):
        writer.emit(StepDone(step, 200, 0, 0.5, 0.5))
        if step == 10:
            writer.emit(StateSaved("state/run/step_00000010", 10))
            writer.emit(CheckpointSaved("ada_10.safetensors", 10, 1, "", 3))
    return folder


def test_what_is_told_of_a_killed_training(
    run_folder: Path, kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = note_kills(7)
    neutral = how_it_ended(run_folder, Traces("", noted, -9))
    assert neutral.message == (
        "The worker process was killed by signal 9 (SIGKILL) without finishing, in training step"
        " 13 of 200."
    )
    assert neutral.kept == [
        "1 class images of this run are kept.",
        "The latents of 7 pictures are kept.",
        "The newest training state is of step 10: state/run/step_00000010. Resume goes on from it.",
        "The newest checkpoint or LoRA is of step 10: ada_10.safetensors.",
    ]
    assert "memory" not in neutral.remedy
    write(kernel / "proc/vmstat", "oom_kill 6\n")
    for code in (-9, None):
        likely = how_it_ended(run_folder, Traces("", noted, code))
        assert "most likely ended by the system because memory ran out" in likely.message
        assert "batch.batch_size 1, batch.gradient_accumulation_steps 4; " in likely.remedy
        assert likely.remedy.index("batch_size") < likely.remedy.index("lora.enabled on")
        assert likely.kept == neutral.kept
    crashed = how_it_ended(run_folder, Traces("", noted, -11))
    assert "killed by signal 11 (SIGSEGV)" in crashed.message, "the kernel ends with signal 9"


def test_what_is_told_after_a_restart_of_the_machine(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = start_mark(os.getpid())
    if "/" not in mark:
        pytest.skip("The system does not tell one start of the machine from another.")
    assert "ended without finishing" in how_it_ended(run_folder, Traces(mark)).message
    final = how_it_ended(run_folder, Traces(f"another-{mark}"))
    assert final.message == (
        "The machine was restarted while the worker ran, in training step 13 of 200."
    )
    assert len(final.kept) == 4


def test_a_full_disk_is_why_nothing_was_told(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ended, "ROOM_FOR_EVENTS", 2**80)
    final = how_it_ended(run_folder, Traces(code=1))
    assert "ended with exit code 1 without finishing" in final.message
    assert f"The disk of {run_folder} is full" in final.message


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (None, "ended"),
        (-11, "was killed by signal 11 (SIGSEGV)"),
        (-200, "was killed by signal 200"),
        (1, "ended with exit code 1"),
    ],
)
def test_exit_codes_in_words(code: int | None, words: str) -> None:
    assert ended._end_in_words(code) == words


def test_how_far_a_run_came(tmp_path: Path, run_folder: Path) -> None:
    assert read_kept(tmp_path / "none.jsonl") == Kept()
    assert Kept().where() == "before the work began"
    path = events_path(run_folder)
    path.write_bytes(path.read_bytes() + b'{"torn": ')
    kept = read_kept(path)
    assert (kept.phase, kept.step, kept.total_steps, kept.class_images) == ("training", 12, 200, 1)
    assert kept.where("while saving a checkpoint") == (
        "while saving a checkpoint after step 12 of 200"
    )
    kept.take(PhaseStarted("previews", 3, "images"))
    assert kept.where() == "in previews (0 of 3 images) after step 12 of 200"
    assert Kept().lines() == []
    assert Kept(resumed="r", resumed_step=8).lines()[0].startswith("The state that the run went on")
    assert isinstance(how_it_ended(run_folder, Traces()), JobFailed)


def test_where_no_kills_are_counted_memory_is_named_as_a_guess(tmp_path: Path) -> None:
    killed = how_it_ended(tmp_path, Traces(code=-9))
    assert ended.OFTEN_MEMORY in killed.remedy
    assert ended.OFTEN_MEMORY not in how_it_ended(tmp_path, Traces(code=3)).remedy
    counted = Traces(kills={str(tmp_path / "counter"): 0}, code=-9)
    assert ended.OFTEN_MEMORY not in how_it_ended(tmp_path, counted).remedy


def test_the_room_that_a_killed_worker_kept_is_given_back(tmp_path: Path) -> None:
    spare = spare_path(events_path(tmp_path))
    spare.write_bytes(bytes(1000))
    assert Job("run", tmp_path).death().error == "WorkerDied"
    assert not spare.exists()
