"""A disk that runs full during a training, as the tab shows it: a small one is mounted for it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

gradio = pytest.importorskip("gradio", reason="gradio is not installed")
pytest.importorskip("torch", reason="a training needs torch")

from dreambooth_core.config.schema import TrainConfig  # noqa: E402
from dreambooth_core.host.conductor import Conductor  # noqa: E402
from dreambooth_core.host.standalone import StandaloneHost  # noqa: E402
from dreambooth_core.job import launcher  # noqa: E402
from dreambooth_core.job.claims import LOCKS_FOLDER  # noqa: E402
from dreambooth_core.job.commands import Command  # noqa: E402
from dreambooth_core.job.events import (  # noqa: E402
    CheckpointSaved,
    Event,
    JobFailed,
    JobFinished,
    JobStopped,
    Notice,
    PhaseStarted,
    StepDone,
)
from dreambooth_core.job.launcher import Job  # noqa: E402
from dreambooth_core.job.workspace import ModelFolder, Workspace  # noqa: E402
from dreambooth_core.stages.full_disk import PHASE  # noqa: E402
from dreambooth_core.ui.run import build_run_panel  # noqa: E402
from tests.host_fixtures import PATIENCE, end_jobs  # noqa: E402
from tests.trainings import trainings_in  # noqa: E402

DISK_BYTES = 160 * 2**20
WITHOUT_SPARE = "tests.host.worker_without_spare"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own in the test's folder; skips where none can be mounted."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("A small disk is mounted by root on Linux only.")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"No small disk can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Tab:
    """The run panel in a page, and a training that it follows on a small disk."""

    def __init__(self, workspace: Workspace, config: TrainConfig) -> None:
        self.workspace, self.config = workspace, config
        self.conductor = Conductor(StandaloneHost(workspace))
        with gradio.Blocks(analytics_enabled=False):
            self.panel = build_run_panel(self.conductor.host, lambda: self.conductor)

    def train(self) -> tuple[Job, Iterator[Event]]:
        """Start the training and follow it to its first step."""
        job = self.conductor.start("train", self.config)
        events = job.events()
        next_of(StepDone, events)
        return job, events

    def shown(self) -> str:
        """What the panel says to a page that was just opened."""
        seen: dict[str, Any] = {}
        return str(self.panel.refresh(seen)[self.panel.progress]["value"])

    def files(self) -> dict[str, str]:
        """The digests of all files that must outlive a full disk, by path."""
        model = self.workspace.model(self.config.model)
        found = self.workspace.checkpoints_dir.rglob("*")
        paths = [p for p in found if p.is_file() and LOCKS_FOLDER not in p.parts]
        kept = ("layout.json", "extras.safetensors", "unet/*", "vae/*", "text_encoder/*")
        paths += [path for pattern in kept for path in model.path.glob(pattern)]
        return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def next_of(kind: type[Event], events: Iterator[Event]) -> Any:
    """The next event of a kind."""
    seen = []
    for event in events:
        if isinstance(event, kind):
            return event
        seen.append(event)
    return pytest.fail(f"no {kind.__name__}; the last was {seen[-1:]}")


@pytest.fixture
def tab(
    small_disk: Path,
    tiny_model_folder: ModelFolder,
    workspace: Workspace,
    request: pytest.FixtureRequest,
) -> Iterator[Tab]:
    """The panel of a folder on the small disk, and an endless training without planned files.

    It ends on a full disk, unless the test asks for another choice.
    """
    trainings = trainings_in(small_disk, workspace.root)
    saving = {"on_full_disk": getattr(request, "param", "stop")}
    config = trainings.config({"intervals": {"epochs": 10_000}, "saving": saving})
    tab = Tab(trainings.workspace, config)
    yield tab
    end_jobs(tab.conductor)


@pytest.mark.parametrize(
    ("worker", "cause"),
    [(launcher.WORKER_MODULE, "has 0.0 GB free."), (WITHOUT_SPARE, "The disk is full (")],
    ids=["seen in time", "while writing"],
)
def test_a_full_disk_is_told_and_nothing_is_lost(
    tab: Tab, monkeypatch: pytest.MonkeyPatch, worker: str, cause: str
) -> None:
    monkeypatch.setattr(launcher, "WORKER_MODULE", worker)
    job, events = tab.train()
    job.send(Command("save"))
    saved = next_of(CheckpointSaved, events)
    before = tab.files()
    assert saved.path in before

    filler = tab.workspace.root / "filler"
    take_room(filler, leave=saved.size // 2)
    job.send(Command("save"))
    final = job.wait()
    shown = tab.shown()
    assert cause in shown, shown
    assert "Free some space" in shown and 'role="alert"' in shown
    assert str(tab.workspace.checkpoints_dir) in shown, "the place is named"
    assert isinstance(final, JobFailed) and final.error in ("FullDiskError", "OSError")
    assert any(str(saved.path) in line for line in final.kept), "what there is to keep"
    assert tab.files() == before
    assert list(tab.workspace.root.rglob("*.tmp")) == []

    filler.unlink()
    assert isinstance(tab.conductor.start("plan", tab.config).wait(), JobFinished)
    assert tab.conductor.wait(PATIENCE)
    assert tab.workspace.model("tiny").read_info().checkpoints == [saved.path]


@pytest.mark.parametrize("tab", ["pause"], indirect=True)
def test_a_training_waits_for_room(tab: Tab) -> None:
    job, events = tab.train()
    job.send(Command("save"))
    saved = next_of(CheckpointSaved, events)
    before = tab.files()

    filler = tab.workspace.root / "filler"
    take_room(filler, leave=saved.size // 2)
    job.send(Command("save"))
    waiting = next_of(Notice, events)
    while next_of(PhaseStarted, events).phase != PHASE:
        pass
    shown = tab.shown()
    assert "The checkpoint needs" in waiting.message and "waits" in waiting.message
    assert "The checkpoint needs" in shown and PHASE in shown and "Running" in shown
    assert tab.files() == before and list(tab.workspace.root.rglob("*.tmp")) == []

    filler.unlink()
    assert next_of(CheckpointSaved, events).step > saved.step
    next_of(StepDone, events)
    job.send(Command("stop"))
    assert isinstance(job.wait(), JobStopped)
    assert before.items() <= tab.files().items()


def take_room(filler: Path, leave: int) -> None:
    """Fill the disk but for so many bytes."""
    size = shutil.disk_usage(filler.parent).free - leave
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
