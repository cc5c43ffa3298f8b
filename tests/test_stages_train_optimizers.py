"""Trainings with every optimizer: resumed to the bit, with the weights that they mean."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from dreambooth_core.config.schema import OPTIMIZER_CHOICES
from dreambooth_core.config.sections.optimizer import EIGHT_BIT_OPTIMIZERS, SELF_TUNING_OPTIMIZERS
from dreambooth_core.errors import ConfigError
from dreambooth_core.job.events import Notice, PlanMade, StepDone
from dreambooth_core.stages import train, training_output
from dreambooth_core.stages.saved_states import Progress
from tests.trainings import Trained, Trainings, merged, same, trainings_in

TRIED_ELSEWHERE = ("lion", "adamw", *EIGHT_BIT_OPTIMIZERS)
"""The first two are resumed in test_stages_train.py, the others run on a GPU alone."""
RESUMED = [name for name in OPTIMIZER_CHOICES if name not in TRIED_ELSEWHERE]
FREE = "adamw_schedule_free"


@pytest.fixture(scope="module")
def trainings(module_folder: Path, _created_model: Path) -> Trainings:
    """One workspace with a tiny model for all tests of this module."""
    return trainings_in(module_folder, _created_model)


def settings_for(name: str, **more: Any) -> dict[str, Any]:
    """Four steps of two pictures, the text encoder in the first three, at a rate that fits."""
    rate = 1.0 if name in SELF_TUNING_OPTIMIZERS else 1e-3
    schedule = "constant_with_warmup" if name == FREE else "cosine"
    settings: dict[str, Any] = {
        "batch": {"batch_size": 2},
        "intervals": {"epochs": 2},
        "optimizer": {"name": name, "d0": 1e-4},
        "learning_rate": {"unet": rate, "text_encoder": rate, "schedule": schedule},
        "text_encoder": {"train_ratio": 0.75},
        "images": {"horizontal_flip": True},
    }
    return merged(settings, more)


@pytest.mark.parametrize("name", RESUMED)
def test_four_steps_are_two_and_two_resumed(trainings: Trainings, name: str) -> None:
    settings = settings_for(name, learning_rate={"warmup_steps": 1})
    whole = trainings.run(settings, f"{name} whole")
    first = trainings.run(settings, f"{name} first", at_step={2: ["stop"]})
    rest = trainings.run({**settings, "resume": True}, f"{name} rest")
    assert [step.step for step in rest.steps] == [3, 4]
    assert first.losses + rest.losses == whole.losses
    assert [s.learning_rates for s in first.steps + rest.steps] == [
        s.learning_rates for s in whole.steps
    ]
    assert whole.state is not None and rest.state is not None
    assert same(rest.state.weights, whole.state.weights)
    assert same(rest.state.ema, whole.state.ema)
    assert same(rest.state.optimizer, whole.state.optimizer)
    assert rest.state.progress == whole.state.progress == Progress(step=4, epoch=2, position=0)


def test_writing_on_the_way_changes_nothing_of_what_follows(trainings: Trainings) -> None:
    """Where the weights that are written are not those that are trained."""
    quiet = trainings.run(settings_for(FREE), "quiet")
    busy = trainings.run(
        settings_for(
            FREE,
            saving={"state_every_epochs": 1, "save_every_epochs": 1},
            previews={"every_epochs": 1, "prompts": ["a dog"], "steps": 1},
        ),
        "busy",
    )
    assert busy.losses == quiet.losses
    assert same(busy.weights, quiet.weights)


@pytest.mark.parametrize("name", SELF_TUNING_OPTIMIZERS)
def test_the_rate_that_is_told_is_the_one_that_was_found(trainings: Trainings, name: str) -> None:
    """The first is d0, and both parts have one, times what the schedule says: 1, 3/4, 1/2, 1/4."""
    run = trainings.run(settings_for(name, learning_rate={"schedule": "linear"}), f"{name} rate")
    rates = [step.learning_rates for step in run.steps]
    assert rates[0] == {"unet": 1e-4, "text_encoder": 1e-4}
    assert all(rate["text_encoder"] == rate["unet"] for rate in rates[:3])
    found = [rate["unet"] / (1 - step / 4) for step, rate in enumerate(rates)]
    assert found == sorted(found)
    assert run.state is not None
    (last,) = run.state.optimizer["unet:whole"]
    assert last["d"] >= found[-1]


# -- schedule-free: y is trained, x is what has been learnt


@pytest.fixture(scope="module")
def free(trainings: Trainings) -> Trained:
    """Four steps, with an average that keeps nothing of what was before."""
    changes = settings_for(FREE, ema={"enabled": True, "decay": 0.0})
    return trainings.run(changes, "free")


def parts_of(run: Trained) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield x from the state's weights, y and z from the optimizer's memory, of the UNet."""
    assert run.state is not None
    entries = run.state.optimizer["unet"]
    for x, entry in zip(run.weights["unet"].values(), entries, strict=True):
        yield x, entry["learning"], entry["z"]


def test_the_weights_of_a_state_are_those_that_were_learnt(free: Trained) -> None:
    """Y = 0.9 x + 0.1 z, and they differ."""
    for x, y, z in parts_of(free):
        assert torch.allclose(y, 0.9 * x + 0.1 * z, atol=1e-6)
    assert any(not torch.equal(x, y) for x, y, _ in parts_of(free))


def test_the_average_follows_what_was_learnt(free: Trained) -> None:
    assert free.state is not None
    for key, x in free.weights["unet"].items():
        assert torch.equal(free.state.ema[f"unet.{key}"], x)


def test_a_text_encoder_that_retires_stays_as_learnt(trainings: Trainings) -> None:
    """Its weights after its last step are those that a run which ends there saves."""
    ended = trainings.run(settings_for(FREE), "free ended", at_step={3: ["stop"]})
    whole = trainings.run(settings_for(FREE), "free whole")
    assert same(whole.weights["text_encoder"], ended.weights["text_encoder"])
    assert whole.state is not None
    assert set(whole.state.optimizer) == {"unet", "unet:whole"}


def test_checkpoints_and_previews_are_of_what_was_learnt(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[dict[str, Tensor]] = []
    drawn: list[Tensor] = []
    save, generate = training_output.save_checkpoint, training_output.generate

    def spied_save(model: Any, path: Path, weights: Any, *more: Any) -> Any:
        saved.append({key: value.clone() for key, value in weights["unet"].items()})
        return save(model, path, weights, *more)

    def spied_generate(components: Any, *more: Any, **options: Any) -> Iterator[Image.Image]:
        drawn.append(components.unet.conv_in.weight.detach().clone())
        return generate(components, *more, **options)

    monkeypatch.setattr(training_output, "save_checkpoint", spied_save)
    monkeypatch.setattr(training_output, "generate", spied_generate)
    run = trainings.run(
        settings_for(
            FREE,
            ema={"enabled": False},
            saving={"save_at_end": True},
            previews={"every_epochs": 2, "prompts": ["a dog"], "steps": 1},
        ),
        "free saved",
    )
    assert same(saved, [run.weights["unet"]])
    assert torch.equal(drawn[-1], run.weights["unet"]["conv_in.weight"])


# -- resuming with other settings


def test_other_weights_that_learn_begin_without_memory_and_that_is_told(
    trainings: Trainings,
) -> None:
    settings = settings_for("adamw", text_encoder={"train_ratio": 0.0})
    trainings.run(settings, "all", at_step={2: ["stop"]})
    changed = {**settings, "resume": True, "unet": {"parts": "cross_attention"}}
    rest = trainings.run(changed, "cross attention")
    assert [step.step for step in rest.steps] == [3, 4]
    (notice,) = (n for n in rest.events_of(Notice) if n.level == "warning")
    assert notice.message.endswith("The optimizer begins without memory.")


@pytest.mark.parametrize("name", EIGHT_BIT_OPTIMIZERS)
def test_8_bits_are_refused_on_the_cpu_before_any_work(trainings: Trainings, name: str) -> None:
    """By the worker too, as the page cannot know which device auto will be."""
    context, events = trainings.context(f"{name} refused")
    with pytest.raises(ConfigError, match="needs an NVIDIA GPU") as caught:
        train.run(trainings.config(settings_for(name)), context)
    assert caught.value.field == "optimizer.name"
    assert not any(isinstance(event, PlanMade | StepDone) for event in events)
