"""Memory that runs out in a training: what is rescued, what is told, and what would fit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth_core import worker
from dreambooth_core.config.memory_savers import with_changes
from dreambooth_core.config.schema import SampleConfig, TrainConfig
from dreambooth_core.job.events import Event, JobFailed, Notice, StateSaved
from dreambooth_core.job.kept import Kept
from dreambooth_core.job.memory_errors import GPU, Shortage
from dreambooth_core.job.runs import Run
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.stages import out_of_memory, training_output, training_step
from dreambooth_core.stages.out_of_memory import Fitting, what_fits
from dreambooth_core.stages.plan import foresee, look_at_concepts
from dreambooth_core.stages.preflight import memory
from dreambooth_core.stages.preflight.machine import Machine
from dreambooth_core.stages.preflight.memory import Estimate
from tests.trainings import Trained, Trainings, same

CUDA_WORDS = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB of"
    " which 512.00 MiB is free. Including non-PyTorch memory, this process has 7.00 GiB memory in"
    " use. Of the allocated memory 6.50 GiB is allocated by PyTorch."
)
SETTINGS: dict[str, Any] = {"intervals": {"epochs": 1}, "ema": {"enabled": True}}
"""Four steps: there are four pictures."""


class OutOfMemoryError(RuntimeError):
    """Named as torch names it."""


@pytest.fixture(scope="module")
def whole(module_folder: Path) -> tuple[Path, Trained]:
    """A workspace with a model, and what came of a training that had all its memory."""
    from tests.tiny import tiny_model

    tiny_model(Workspace(module_folder), "tiny")
    trained = Trainings(Workspace(module_folder)).run(SETTINGS, "whole")
    return module_folder, trained


@pytest.fixture
def trainings(whole: tuple[Path, Trained]) -> Trainings:
    """Trainings of the model without any state."""
    trainings = Trainings(Workspace(whole[0]))
    shutil.rmtree(trainings.workspace.model("tiny").states_dir, ignore_errors=True)
    return trainings


def failing(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, call: int) -> None:
    """Let a function run out of memory the `call`-th time, counted from 1."""
    real, calls = getattr(place, name), iter(range(1, 10**6))

    def run(*given: Any, **more: Any) -> Any:
        if next(calls) == call:
            raise OutOfMemoryError(CUDA_WORDS)
        return real(*given, **more)

    monkeypatch.setattr(place, name, run)


def failed_run(trainings: Trainings, changes: dict[str, Any]) -> tuple[JobFailed, list[Event]]:
    """Train until it fails, and return the event that the worker tells it with."""
    from accelerate.state import AcceleratorState

    from dreambooth_core.stages import train

    AcceleratorState._reset_state(True)
    context, events = trainings.context("short")
    config = trainings.config(changes)
    with pytest.raises(RuntimeError) as caught:
        train.run(config, context)
    kept = Kept()
    for event in events:
        kept.take(event)
    run = Run("short", "train", trainings.workspace.root, config)
    return worker.failure(caught.value, kept, run), events


@pytest.mark.parametrize(
    ("place", "name", "call", "where", "step"),
    [
        (training_step, "predict", 3, "in training step 3 of 4", 2),
        (training_output, "save_checkpoint", 1, "while saving a checkpoint after step 2 of 4", 2),
    ],
)
def test_finished_steps_are_kept_and_resumed_from(
    whole: tuple[Path, Trained],
    trainings: Trainings,
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    name: str,
    call: int,
    where: str,
    step: int,
) -> None:
    saving = {"saving": {"save_every_steps": 2}}
    with monkeypatch.context() as patched:
        failing(patched, place, name, call)
        final, events = failed_run(trainings, {**SETTINGS, **saving})
    assert final.message == (
        f"GPU memory ran out {where} (2.0 GB asked for, 7.0 GB in use, 7.5 GB there at most)."
    )
    states = [event for event in events if isinstance(event, StateSaved)]
    assert [state.step for state in states] == [step]
    assert final.kept[0] == (
        f"The newest training state is of step {step}: {states[0].path}. Resume goes on from it."
    )
    assert final.error == "OutOfMemoryError" and final.exit_code == 1
    resumed = trainings.run({**SETTINGS, "resume": True}, "resumed")
    assert same(resumed.weights, whole[1].weights)
    assert resumed.state is not None and whole[1].state is not None
    assert same(resumed.state.ema, whole[1].state.ema)
    assert same(resumed.state.optimizer, whole[1].state.optimizer)


def test_nothing_is_written_of_half_updated_weights(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, torch.optim.AdamW, "step", 3)
    final, events = failed_run(trainings, SETTINGS)
    assert "in training step 3 of 4" in final.message
    assert "nothing was written of that step" in final.message
    assert final.kept == []
    assert not any(isinstance(event, StateSaved) for event in events)


def test_a_state_for_which_there_is_no_memory_either(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, training_step, "predict", 2)
    failing(monkeypatch, training_output, "save_state", 1)
    final, _ = failed_run(trainings, SETTINGS)
    assert "in training step 2 of 4" in final.message, "the first shortage is told"
    assert final.kept == []


def test_training_goes_on_without_a_preview(
    whole: tuple[Path, Trained], trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, training_output, "generate", 1)
    drawn: list[int] = []
    real = training_output.save_png
    monkeypatch.setattr(
        training_output, "save_png", lambda *given: (drawn.append(1), real(*given))[1]
    )
    previews = {"every_steps": 2, "prompts": ["zwx dog"], "steps": 1}
    trained = trainings.run({**SETTINGS, "previews": previews}, "previews")
    (warning,) = [e.message for e in trained.events_of(Notice) if "left out" in e.message]
    assert warning.startswith("Previews of step 2 are left out, as memory ran out (2.0 GB asked")
    assert "EMA on the cpu" in warning, "what would help"
    assert len(drawn) == 1, "the next one is drawn again"
    assert same(trained.weights, whole[1].weights)


BIG: dict[str, Any] = {
    "batch": {"batch_size": 4, "gradient_accumulation_steps": 2, "gradient_checkpointing": False},
    "precision": {"device": "auto"},
    "ema": {"enabled": True},
    "images": {"cache_latents": "disk"},
}
MACHINE = Machine("NVIDIA Something", 24 * 2**30, 64 * 2**30)


def needed_on_gpu(trainings: Trainings, config: TrainConfig) -> int:
    """The estimate of a training's steps."""
    context, _ = trainings.context("look")
    foreseen = foresee(config, context, list(look_at_concepts(config, context)))
    phases = Estimate(foreseen, MACHINE).phases()
    return next(phase.gpu_bytes for phase in phases if phase.phase == "training")


def test_settings_that_fit_are_found_in_order(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out_of_memory, "find_machine", lambda device: MACHINE)
    monkeypatch.setattr(memory, "GPU_CONTEXT", 0)
    config = trainings.config(BIG)

    def fitting(there: int) -> Fitting:
        shortage = Shortage(GPU, there=there)
        found = what_fits(shortage, config, trainings.workspace, "training")
        assert found is not None
        return found

    now = needed_on_gpu(trainings, config)
    one = fitting(now - 1)
    assert one.changes == {"batch.gradient_checkpointing": True} and one.fits
    two = fitting(one.needed - 1)
    assert list(two.changes)[:2] == ["batch.gradient_checkpointing", "batch.batch_size"]
    for found in (one, two):
        assert needed_on_gpu(trainings, with_changes(config, found.changes)) == found.needed
        assert found.needed <= found.there
    hopeless = fitting(1)
    assert not hopeless.fits
    assert hopeless.changes["batch.batch_size"] == 1
    assert hopeless.changes["batch.gradient_accumulation_steps"] == 8, "as many pictures a step"
    assert hopeless.changes["lora.enabled"] is True
    assert "saving.ema_keys" not in hopeless.changes
    seemed_to_fit = what_fits(Shortage(GPU), config, trainings.workspace, "training")
    assert seemed_to_fit is not None and seemed_to_fit.changes, "smaller than what ran out"
    assert seemed_to_fit.there <= 0.9 * now


def test_remedies_of_jobs_that_do_not_train(trainings: Trainings) -> None:
    run = Run("r", "sample", trainings.workspace.root, SampleConfig(model="tiny", prompts=["x"]))
    kept = Kept(phase="drawing", done=1, total=3, unit="images")
    final = worker.failure(MemoryError(), kept, run)
    assert final.message == "Main memory ran out while drawing (1 of 3 images)."
    assert (final.remedy, final.changes) == ("Lower the batch size, or the width and height.", {})


def test_a_training_whose_pictures_are_gone(trainings: Trainings, tmp_path: Path) -> None:
    config = trainings.config({"concept": {"instance_folder": str(tmp_path / "gone")}})
    run = Run("r", "train", trainings.workspace.root, config)
    final = worker.failure(MemoryError(), Kept(phase="training", step=3), run)
    assert final.remedy and final.changes == {}
