"""One step that keeps nothing: what it tells is so, and no file is there after it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from dreambooth_core.config.schema import JOB_CONFIGS, TrainConfig
from dreambooth_core.job.events import Event, Notice, SampleSaved, StepDone
from dreambooth_core.job.launcher import Workspace, launch
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.stages import dry_run
from dreambooth_core.stages.dry_run import Measured, in_words
from dreambooth_core.stages.process_memory import peak_memory, reset_peak_memory
from tests.noise_pictures import write_pictures
from tests.trainings import Trainings

CPU = torch.device("cpu")
CLASSES = {
    "class_prompt": "a dog",
    "class_images_per_instance_image": 2,
    "class_steps": 1,
    "class_cfg_scale": 1.0,
}


@pytest.fixture
def trainings(tiny_model_folder: ModelFolder) -> Trainings:
    return Trainings(Workspace(tiny_model_folder.path.parents[2]))


def tried(trainings: Trainings, changes: dict[str, Any]) -> tuple[dict[str, Any], list[Event]]:
    AcceleratorState._reset_state(True)
    context, events = trainings.context("try")
    return dry_run.run(trainings.config(changes), context), events


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"concept": CLASSES, "batch": {"batch_size": 2, "gradient_accumulation_steps": 2}},
        {"images": {"cache_latents": "disk", "horizontal_flip": True}, "lora": {"enabled": True}},
    ],
)
def test_nothing_is_kept(trainings: Trainings, changes: dict[str, Any]) -> None:
    changes = {**changes, "saving": {"save_at_end": True, "save_every_steps": 1}}
    changes["previews"] = {"every_steps": 1, "steps": 1, "prompts": ["a dog"]}
    before = files_of(trainings.workspace.root)
    summary, events = tried(trainings, changes)
    assert files_of(trainings.workspace.root) == before
    assert not [event for event in events if isinstance(event, SampleSaved)]
    assert sum(isinstance(event, StepDone) for event in events) == 1
    assert summary["steps"] > 1


def test_the_step_is_the_first_one_of_the_training(trainings: Trainings) -> None:
    summary, events = tried(trainings, {})
    trained = trainings.run({})
    assert summary["loss"] == trained.losses[0]
    assert summary["steps"] == len(trained.losses)
    (step,) = [event for event in events if isinstance(event, StepDone)]
    assert (step.step, step.total_steps) == (1, len(trained.losses))


def test_with_class_images_on_the_disk_it_is_the_trainings_first_step_too(
    trainings: Trainings,
) -> None:
    changes = {"concept": CLASSES, "intervals": {"max_steps": 1}}
    trained = trainings.run(changes)
    summary, _ = tried(trainings, changes)
    assert summary["loss"] == trained.losses[0]
    assert summary["class_images_to_generate"] == 0


def test_missing_class_images_are_painted_for_the_one_step(trainings: Trainings) -> None:
    write_pictures(trainings.pictures / "wide", 2, size=(128, 64))
    changes = {"concept": CLASSES, "batch": {"class_batch_size": 3, "batch_size": 6}}
    summary, events = tried(trainings, changes)
    (step,) = [event for event in events if isinstance(event, StepDone)]
    assert step.loss_class is not None
    assert summary["class_images_to_generate"] == 12
    assert set(summary["foretold_seconds"]) == {"class images", "caching latents", "training"}


def test_a_resumed_run_is_tried_from_where_it_is(trainings: Trainings) -> None:
    trainings.run({"intervals": {"epochs": 2, "max_steps": 3}})
    summary, events = tried(trainings, {"resume": True, "intervals": {"epochs": 2}})
    rest = trainings.run({"resume": True, "intervals": {"epochs": 2}}, run_id="rest")
    assert summary["loss"] == rest.losses[0] and summary["steps"] == 5
    (step,) = [event for event in events if isinstance(event, StepDone)]
    assert step.step == 4


def test_what_is_foretold_follows_from_what_was_measured(trainings: Trainings) -> None:
    summary, events = tried(trainings, {"intervals": {"epochs": 50}})
    foretold = summary["foretold_seconds"]
    assert foretold["training"] == pytest.approx(summary["step_seconds"] * 200, rel=0.02, abs=0.2)
    assert summary["peak_memory_mb"]["training"] > 100
    notice = [event.message for event in events if isinstance(event, Notice)][-1]
    assert f"{summary['step_seconds']:.2f} s" in notice and "Nothing was kept" in notice


def test_the_report_and_the_sentence_round_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([10.0, 10.0949])
    monkeypatch.setattr(dry_run, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    rehearsal = dry_run.Rehearsal(tmp_path)
    with rehearsal.measured("training", total=200, done=1, device=CPU):
        pass
    (measured,) = rehearsal.parts.values()
    assert measured.seconds == 0.095
    assert f"{measured.seconds:.2f} s" in in_words(0.25, rehearsal.parts)


def test_words_and_times_by_hand() -> None:
    parts = {
        "class images": Measured(total=88, done=4, seconds=2.0, peak_bytes=2**30),
        "training": Measured(total=400, done=1, seconds=0.5, peak_bytes=2**31),
    }
    assert parts["class images"].foretold_seconds == 44.0
    assert Measured().foretold_seconds == 0.0
    words = in_words(0.25, parts)
    assert "loss 0.2500, 0.50 s, at most 2048 MB" in words
    assert "All 400 steps and what comes before them take about 4 min 04 s" in words


def test_a_stop_ends_it(trainings: Trainings) -> None:
    AcceleratorState._reset_state(True)
    context, _ = trainings.context("try", at_step={0: ["stop"]})
    assert dry_run.run(trainings.config(), context)["stopped"]


def test_a_peak_is_noticed_and_forgotten() -> None:
    reset_peak_memory(CPU)
    before = peak_memory(CPU)
    held = bytearray(b"x" * 2**27)
    assert peak_memory(CPU) > before + 2**26
    del held


def test_it_is_a_job_like_any_other(trainings: Trainings) -> None:
    assert JOB_CONFIGS["dry-run"] is TrainConfig
    job = launch(trainings.workspace, "dry-run", trainings.config({"intervals": {"max_steps": 2}}))
    final: Any = job.wait()
    assert final.summary["steps"] == 2 and final.summary["loss"] > 0
    model = trainings.workspace.model("tiny")
    assert not model.states_dir.exists() and not model.logging_dir.exists()
