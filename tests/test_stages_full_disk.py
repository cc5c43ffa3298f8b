"""A disk without room for a training's files: it waits, leaves them out, or ends, as is set."""

from __future__ import annotations

import errno
import shutil
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.errors import FullDiskError
from dreambooth_core.job import disk
from dreambooth_core.job.commands import CommandReader
from dreambooth_core.job.events import CheckpointSaved, Notice, PhaseStarted, StateSaved
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.stages import disk as space
from dreambooth_core.stages import full_disk
from dreambooth_core.stages.full_disk import PHASE, Room
from dreambooth_core.stages.requests import Requests
from tests.trainings import Trained, Trainings, same

SETTINGS: dict[str, Any] = {"intervals": {"epochs": 1}}
"""Four steps: there are four pictures."""


class FullFolder:
    """A folder on a disk that is full until `waits` looks at it are over."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, waits: int = 99) -> None:
        self.folder, self.waits, self.refused = str(folder), waits, 0
        self._write = disk.write
        monkeypatch.setattr(disk, "write", self.write)
        monkeypatch.setattr(full_disk.time, "sleep", self.sleep)

    def write(self, file: FileIO, data: Any) -> None:
        """Write a part and refuse the rest."""
        if self.waits and str(file.name).startswith(self.folder):
            self.refused += 1
            self._write(file, memoryview(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        self._write(file, data)

    def sleep(self, seconds: float) -> None:
        """Let a look go by; the last one finds room."""
        assert seconds == full_disk.LOOK_SECONDS
        self.waits = max(0, self.waits - 1)


@pytest.fixture(scope="module")
def whole(module_folder: Path) -> tuple[Path, Trained]:
    """A workspace with a model, and what came of a training on a large disk."""
    from tests.tiny import tiny_model

    tiny_model(Workspace(module_folder), "tiny")
    return module_folder, Trainings(Workspace(module_folder)).run(SETTINGS, "whole")


@pytest.fixture
def trainings(whole: tuple[Path, Trained]) -> Trainings:
    """Trainings of the model without anything that another has written."""
    trainings = Trainings(Workspace(whole[0]))
    model = trainings.workspace.model("tiny")
    for folder in (model.states_dir, model.samples_dir, model.cache_dir, model.class_images_dir):
        shutil.rmtree(folder, ignore_errors=True)
    return trainings


def choosing(choice: str, **more: Any) -> dict[str, Any]:
    saving = {"on_full_disk": choice, "save_at_end": False, **more.pop("saving", {})}
    return {**SETTINGS, "saving": saving, **more}


def notices(trained: Trained) -> list[str]:
    return [notice.message for notice in trained.events_of(Notice)]


def no_half_file(trainings: Trainings) -> bool:
    return not [path for path in trainings.workspace.root.rglob("*") if ".tmp" in path.name]


@pytest.mark.turns("train.saving.on_full_disk")
def test_pause_waits_and_goes_on(
    whole: tuple[Path, Trained], trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = trainings.workspace.checkpoints_dir
    monkeypatch.setattr(full_disk, "LOOKS_BEFORE_TRYING", 2)
    full = FullFolder(monkeypatch, checkpoints, waits=3)
    trained = trainings.run(choosing("pause", saving={"save_every_steps": 4}))
    assert full.refused == 2, "tried again after two looks, and after the third there was room"
    waiting, over = (line for line in notices(trained) if "room" in line or "full" in line)
    assert waiting.startswith("The checkpoint of step 4 cannot be written: the disk is full (")
    assert str(checkpoints) in waiting and "Free some space" in waiting and "Stop" in waiting
    assert over == "There is room again: The checkpoint of step 4 is written."
    phases = [event.phase for event in trained.events_of(PhaseStarted)]
    assert phases.count(PHASE) == 2
    assert len(trained.events_of(CheckpointSaved)) == 1
    assert same(trained.weights, whole[1].weights) and no_half_file(trainings)


def test_continue_leaves_out_what_is_not_the_last(
    whole: tuple[Path, Trained], trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trainings.workspace.model("tiny")
    full = FullFolder(monkeypatch, model.path, waits=1)
    previews = {"every_steps": 2, "prompts": ["zwx dog"], "steps": 1}
    images = {"cache_latents": "disk"}
    trained = trainings.run(choosing("continue", previews=previews, images=images))
    assert [line.partition(". ")[0] for line in notices(trained) if "left out" in line] == [
        "A picture's latents is left out",
        "A preview of step 2 is left out",
        "A preview of step 4 is left out",
    ]
    assert [event.step for event in trained.events_of(StateSaved)] == [4], "which it waited for"
    assert full.waits == 0
    assert same(trained.weights, whole[1].weights) and no_half_file(trainings)
    assert "stopped" not in trained.summary


def test_stop_ends_and_what_is_there_stays(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    FullFolder(monkeypatch, trainings.workspace.checkpoints_dir)
    with pytest.raises(OSError, match="No space left") as caught:
        trainings.run(choosing("stop", saving={"save_every_steps": 2}))
    assert str(trainings.workspace.checkpoints_dir) in str(caught.value.filename)
    states = trainings.workspace.model("tiny").states_dir
    assert [path.name for path in states.glob("run/step_*")] == ["step_00000002"], "of that step"
    assert no_half_file(trainings)
    monkeypatch.setattr(space, "SPARE_BYTES", 2**60)
    with pytest.raises(FullDiskError, match="The training state needs"):
        trainings.run({**choosing("stop"), "resume": True}, "resumed")
    assert len(list(states.glob("run/step_*"))) == 1 and not list(states.glob("resumed/*"))


@pytest.mark.parametrize("choice", ["pause", "continue"])
def test_a_stop_ends_the_waiting(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    asked: list[str] = []
    full = FullFolder(monkeypatch, trainings.workspace.model("tiny").states_dir)
    looks: list[int] = []

    def sleep(seconds: float) -> None:
        looks.append(1)
        assert len(looks) < 9
        if len(looks) == 2:
            asked.append("stop")

    monkeypatch.setattr(full_disk.time, "sleep", sleep)
    wants = Requests.wants
    monkeypatch.setattr(Requests, "wants", lambda self, name: name in asked or wants(self, name))
    trained = trainings.run(choosing(choice))
    assert full.refused
    assert trained.summary["stopped"] is True and trained.summary["state"] == ""
    assert len(looks) == 2, "a stop ends it at the next look"
    assert any("The training state of step 4 is left out" in line for line in notices(trained))
    assert no_half_file(trainings)


@pytest.mark.parametrize("choice", ["pause", "continue"])
def test_class_images(trainings: Trainings, monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    folder = trainings.workspace.model("tiny").class_images_dir
    full = FullFolder(monkeypatch, folder, waits=0)
    write = full.write

    def until_two(file: FileIO, data: Any) -> None:
        painted = len(list(folder.rglob("*.png"))) + len(list(folder.rglob("*.tmp")))
        if painted > 2 and not full.refused:
            full.waits = 1
        write(file, data)

    monkeypatch.setattr(disk, "write", until_two)
    concept = {"class_images_per_instance_image": 1, "class_steps": 1}
    trained = trainings.run(choosing(choice, concept=concept))
    pictures = len(list(folder.rglob("*.png")))
    if choice == "pause":
        assert pictures == 4 and full.refused == 1
        assert any("A class image cannot be written" in line for line in notices(trained))
    else:
        assert pictures == 2
        assert "Concept 1 has 2 of 4 class images." in notices(trained)
    assert len(trained.steps) == 4 and trained.steps[-1].loss_class is not None


def test_what_no_room_is_for_at_all(trainings: Trainings, monkeypatch: pytest.MonkeyPatch) -> None:
    FullFolder(monkeypatch, trainings.workspace.model("tiny").class_images_dir)
    concept = {"class_images_per_instance_image": 1, "class_steps": 1}
    with pytest.raises(FullDiskError, match="Concept 1 has no class image"):
        trainings.run(choosing("continue", concept=concept))


def test_other_errors_are_not_waited_for(workspace: Workspace) -> None:
    room = Room("pause", lambda event: None, Requests(CommandReader(workspace.root / "none")))

    def refused() -> None:
        raise PermissionError(errno.EACCES, "denied")

    with pytest.raises(PermissionError):
        room.write("A file", refused)
