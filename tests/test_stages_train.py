"""Tests of training as a whole: its numbers, its reproducibility, resuming, commands and faults."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch.nn import functional
from torch.nn.utils import parameters_to_vector

from dreambooth_core.data.dataset import Sample
from dreambooth_core.diffusion.noise import stream
from dreambooth_core.errors import InputError, NonFiniteError
from dreambooth_core.families import FAMILIES, load_components
from dreambooth_core.families.sd1 import StableDiffusion1
from dreambooth_core.job.events import (
    CheckpointSaved,
    Notice,
    PhaseProgress,
    PhaseStarted,
    PlanMade,
    StateSaved,
)
from dreambooth_core.stages.class_image_plan import ClassImage
from dreambooth_core.stages.saved_states import Progress, latest_state
from dreambooth_core.stages.training_pictures import arrange, class_example, find_instances
from tests.noise_pictures import write_pictures
from tests.trainings import Trained, Trainings, same, trainings_in

STEPS = 8
PRIOR = 0.75
EIGHT_STEPS: dict[str, Any] = {
    "intervals": {"epochs": 4},
    "batch": {"batch_size": 2, "max_grad_norm": 1.0},
    "loss": {"prior_loss_weight": PRIOR},
}

# Made with `plain_losses` below, one thread of an x86 CPU, torch 2.13; training gave the same to
# six digits. The last digits move with the CPU's instruction set.
GOLDEN_LOSSES = [1.371995, 1.194588, 0.998197, 1.003014, 0.963976, 0.878669, 0.922262, 0.877337]


@pytest.fixture(scope="module")
def trainings(module_folder: Path, _created_model: Path) -> Trainings:
    """One workspace with a tiny model for all tests of this module."""
    return trainings_in(module_folder, _created_model)


@pytest.fixture(scope="module")
def with_prior(trainings: Trainings) -> dict[str, Any]:
    """Settings of eight steps with four class pictures of one's own."""
    folder = write_pictures(trainings.workspace.root / "class", 4, seed=1)
    concept = {
        "class_folder": str(folder),
        "class_images_per_instance_image": 1,
        "class_prompt": "a [filewords]",
    }
    return {**EIGHT_STEPS, "concept": concept}


@pytest.fixture(scope="module")
def straight(trainings: Trainings, with_prior: dict[str, Any]) -> Trained:
    """The eight steps in one go."""
    return trainings.run(with_prior, "straight")


# -- an independent plain loop


def plain_losses(trainings: Trainings, settings: dict[str, Any]) -> tuple[list[float], Any]:
    """Train with nothing but diffusers, transformers and torch; return the losses and the model.

    Only the order of the pictures and the seeds of the random numbers are the product's.
    """
    config = trainings.config(settings)
    model = load_components(trainings.workspace.model("tiny"))
    model.vae.requires_grad_(False)
    networks = [model.unet, model.text_encoder]
    parameters = [p for network in networks for p in network.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01
    )
    losses = []
    for step, samples in enumerate(_samples_of_steps(config, model)):
        latents = _plain_latents(model, samples, step)
        noise = torch.randn(latents.shape, generator=stream(config.seed, "noise", step))
        generator = stream(config.seed, "timesteps", step)
        timesteps = torch.randint(0, 1000, (len(samples),), generator=generator)
        noisy = model.noise_scheduler.add_noise(latents, noise, timesteps)
        hidden = _plain_encoding(model, [sample.prompt for sample in samples])
        predicted = model.unet(noisy, timesteps, hidden).sample
        errors = functional.mse_loss(predicted, noise, reduction="none").mean((1, 2, 3))
        of_class = torch.tensor([sample.example.is_class for sample in samples])
        instance, prior = errors[~of_class], errors[of_class]
        loss = (instance.sum() + PRIOR * prior.sum()) / (len(instance) + PRIOR * len(prior))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model


def _samples_of_steps(config: Any, model: Any) -> Iterator[list[Sample]]:
    folder = Path(config.concepts[0].class_folder)
    pictures = [ClassImage(p, f"a {p.stem}") for p in sorted(folder.glob("*.png"))]
    classes = [class_example(picture, [(64, 64)], PRIOR) for picture in pictures]
    training_set = arrange(
        config, find_instances(config, FAMILIES[model.family].quantum(model)), classes
    )
    for epoch in range(STEPS // training_set.steps_per_epoch):
        for step_batch in training_set.epoch_batches(epoch):
            (micro_batch,) = step_batch.micro_batches
            yield list(micro_batch.samples)


def _plain_latents(model: Any, samples: list[Sample], step: int) -> torch.Tensor:
    arrays = [numpy.asarray(Image.open(sample.example.path)) for sample in samples]
    pixels = torch.from_numpy(numpy.stack(arrays)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        posterior = model.vae.encode(pixels).latent_dist
    draw = torch.randn(posterior.mean.shape, generator=stream(420420, "latents", step))
    return (posterior.mean + posterior.std * draw) * 0.18215


def _plain_encoding(model: Any, prompts: list[str]) -> torch.Tensor:
    ids = model.tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt")
    return model.text_encoder(ids.input_ids)[0]


def test_losses_and_weights_are_those_of_a_plain_loop(
    trainings: Trainings, with_prior: dict[str, Any], straight: Trained
) -> None:
    losses, model = plain_losses(trainings, with_prior)
    assert straight.losses == pytest.approx(losses, rel=1e-5)
    assert len({*losses}) == STEPS
    base = load_components(trainings.workspace.model("tiny")).modules()
    for name, network in (("unet", model.unet), ("text_encoder", model.text_encoder)):
        expected = parameters_to_vector(network.parameters())
        trained = parameters_to_vector(straight.weights[name].values())
        moved = expected - parameters_to_vector(base[name].parameters())
        # AdamW turns the rounding of a gradient near 0 into a step, so a few weights differ.
        assert (trained - expected).norm() < 1e-2 * moved.norm()


def test_golden_losses_of_eight_steps(straight: Trained) -> None:
    assert straight.losses == pytest.approx(GOLDEN_LOSSES, rel=2e-4)


# -- reproducible and resumable, to the bit


def test_the_same_seed_gives_the_same_run_to_the_bit(
    trainings: Trainings, with_prior: dict[str, Any], straight: Trained
) -> None:
    torch.manual_seed(1)  # what the process drew before must not matter
    again = trainings.run(with_prior, "again")
    assert again.losses == straight.losses
    assert same(again.weights, straight.weights)


@pytest.mark.turns("train.seed")
def test_another_seed_gives_another_run(trainings: Trainings, straight: Trained) -> None:
    other = trainings.run({**EIGHT_STEPS, "seed": 7, "intervals": {"max_steps": 2}}, "seed 7")
    base = trainings.run({**EIGHT_STEPS, "intervals": {"max_steps": 2}}, "seed")
    assert all(a != b for a, b in zip(other.losses, base.losses, strict=True))


@pytest.mark.turns("train.resume")
@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_four_steps_are_two_and_two_resumed(trainings: Trainings, optimizer: str) -> None:
    settings = {
        "batch": {"batch_size": 2},
        "intervals": {"epochs": 2},
        "optimizer": {"name": optimizer},
        "learning_rate": {"schedule": "cosine", "warmup_steps": 1},
        "text_encoder": {"train_ratio": 0.75},
        "loss": {"offset_noise": 0.1, "min_snr_gamma": 5.0},
        "captions": {"dropout": 0.5},
        "images": {"horizontal_flip": True},
    }
    whole = trainings.run(settings, f"{optimizer} whole")
    first = trainings.run(settings, f"{optimizer} first", at_step={2: ["stop"]})
    rest = trainings.run({**settings, "resume": True}, f"{optimizer} rest")
    assert first.summary["stopped"] is True
    assert "stopped" not in rest.summary
    assert [step.step for step in rest.steps] == [3, 4]
    assert first.losses + rest.losses == whole.losses
    assert whole.state is not None and rest.state is not None
    assert same(rest.state.weights, whole.state.weights)
    assert same(rest.state.ema, whole.state.ema)
    assert same(rest.state.optimizer, whole.state.optimizer)
    assert rest.state.progress == whole.state.progress == Progress(step=4, epoch=2, position=0)


def test_a_damaged_state_is_passed_over_when_resuming(trainings: Trainings) -> None:
    settings = {"batch": {"batch_size": 2}, "intervals": {"epochs": 4}}
    states = {"saving": {"state_every_epochs": 1, "keep_states": 5}}
    run = trainings.run({**settings, **states}, "damaged", at_step={4: ["stop"]})
    (run.states / "step_00000004" / "unet.safetensors").write_bytes(b"cut short")
    rest = trainings.run({**settings, "resume": True, "intervals": {"max_steps": 3}}, "healed")
    assert [step.step for step in rest.steps] == [3]
    assert any(str(run.states / "step_00000002") in n.message for n in rest.events_of(Notice))


def test_resuming_without_a_state_says_so(trainings: Trainings, tmp_path: Path) -> None:
    fresh = trainings_in(tmp_path, trainings.workspace.root)
    with pytest.raises(InputError) as caught:
        fresh.run({"resume": True})
    assert caught.value.field == "resume"


def test_resuming_with_other_settings_names_them(trainings: Trainings) -> None:
    trainings.run({"intervals": {"max_steps": 1}}, "before")
    changes = {"resume": True, "intervals": {"max_steps": 2}, "optimizer": {"name": "lion"}}
    run = trainings.run(changes, "after")
    (message,) = [n.message for n in run.events_of(Notice) if n.level == "warning"]
    assert "intervals.max_steps 1 to 2" in message
    assert "optimizer.name 'adamw' to 'lion'" in message
    assert "begins without memory" in message
    assert run.steps[0].step == 2


def test_a_finished_run_has_nothing_to_resume(trainings: Trainings) -> None:
    trainings.run({"intervals": {"max_steps": 1}}, "finished")
    with pytest.raises(InputError, match="all that the settings ask for"):
        trainings.run({"resume": True, "intervals": {"max_steps": 1}}, "too late")


# -- what a run leaves alone


def _digests(folder: Path) -> dict[str, str]:
    names = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    files = [p for name in names for p in (folder / name).rglob("*") if p.is_file()]
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_training_never_changes_the_base_components(trainings: Trainings) -> None:
    folder = trainings.workspace.model("tiny").path
    before = _digests(folder)
    assert len(before) > 5
    trainings.run({"intervals": {"max_steps": 1}, "saving": {"save_at_end": True}}, "untouched")
    assert _digests(folder) == before


def test_the_model_remembers_how_far_it_is_trained(trainings: Trainings) -> None:
    run = trainings.run({"intervals": {"epochs": 1}, "saving": {"save_at_end": True}}, "info")
    info = trainings.workspace.model("tiny").read_info()
    assert (info.steps, info.epochs, info.last_run) == (4, 1, "info")
    assert info.checkpoints[-1] == run.summary["checkpoints"][-1]


def test_the_plan_comes_first_and_the_summary_says_what_was_done(straight: Trained) -> None:
    (plan,) = straight.events_of(PlanMade)
    before = straight.events[: straight.events.index(plan)]
    assert all(isinstance(event, Notice | PhaseStarted | PhaseProgress) for event in before)
    assert "4 instance images and 4 class images" in plan.lines[0]
    expected = {"model": "tiny", "run_id": "straight", "steps": 8, "epochs": 4, "total_steps": 8}
    assert {name: straight.summary[name] for name in expected} == expected
    assert straight.summary["loss"] == straight.losses[-1]
    assert "stopped" not in straight.summary


def test_every_step_reports_itself(straight: Trained) -> None:
    assert [step.step for step in straight.steps] == list(range(1, 9))
    assert [step.epoch for step in straight.steps] == [0, 0, 1, 1, 2, 2, 3, 3]
    for step in straight.steps:
        share = (2 * step.loss_instance + 2 * PRIOR * (step.loss_class or 0)) / (2 + 2 * PRIOR)
        assert step.loss == pytest.approx(share, rel=1e-6)
        assert step.grad_norm > 0
        assert step.steps_per_second > 0
        assert step.memory_mb > 0
        expected = (8 - step.step) / step.steps_per_second
        assert step.eta_seconds == pytest.approx(expected)


# -- commands


def test_stop_finishes_the_step_and_saves_state_and_checkpoint(trainings: Trainings) -> None:
    run = trainings.run({"saving": {"save_at_end": False}}, "stop", at_step={1: ["stop"]})
    assert len(run.steps) == 1
    assert run.summary["stopped"] is True
    assert [event.step for event in run.events_of(StateSaved)] == [1]
    assert [event.step for event in run.events_of(CheckpointSaved)] == [1]
    assert Path(run.summary["checkpoints"][0]).is_file()


@pytest.mark.turns("train.saving.save_on_stop")
def test_stop_saves_no_checkpoint_if_not_wanted(trainings: Trainings) -> None:
    settings = {"saving": {"save_at_end": True, "save_on_stop": False}}
    run = trainings.run(settings, "stop unsaved", at_step={1: ["stop"]})
    assert run.events_of(CheckpointSaved) == []
    assert [event.step for event in run.events_of(StateSaved)] == [1]


def test_stop_after_epoch_ends_with_the_epoch(trainings: Trainings) -> None:
    settings = {"batch": {"batch_size": 2}, "intervals": {"epochs": 3}}
    run = trainings.run(settings, "epoch", at_step={1: ["stop_after_epoch"]})
    assert [step.step for step in run.steps] == [1, 2]
    assert run.summary["epochs"] == 1
    assert run.summary["stopped"] is True


def test_save_and_sample_on_command_and_go_on(trainings: Trainings) -> None:
    settings = {"intervals": {"max_steps": 2}, "previews": {"prompts": ["a dog"], "steps": 1}}
    run = trainings.run(settings, "asked", at_step={1: ["save", "sample"]})
    assert [event.step for event in run.events_of(CheckpointSaved)] == [1]
    pictures = sorted((trainings.workspace.model("tiny").samples_dir / "asked").glob("*.png"))
    assert [path.name for path in pictures] == ["step_00000001_00.png"]
    assert len(run.steps) == 2


def test_sampling_without_prompts_says_so(trainings: Trainings) -> None:
    settings = {"intervals": {"max_steps": 1}}
    run = trainings.run(settings, "no prompts", at_step={0: ["sample"]})
    assert "no preview prompts" in run.events_of(Notice)[0].message


def test_a_stop_before_the_first_step_writes_nothing(trainings: Trainings) -> None:
    run = trainings.run({}, "at once", at_step={0: ["stop"]})
    assert run.steps == []
    assert run.summary["steps"] == 0
    assert run.summary["stopped"] is True
    assert not run.states.exists()


# -- faults


def test_a_loss_that_is_no_number_ends_the_run_and_spares_the_last_state(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = StableDiffusion1.predict
    calls = 0

    def break_third(self: Any, *parts: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return predict(self, *parts) * (math.nan if calls == 3 else 1.0)

    monkeypatch.setattr(StableDiffusion1, "predict", break_third)
    settings = {
        "batch": {"batch_size": 2},
        "intervals": {"epochs": 4},
        "saving": {"state_every_epochs": 1},
        "learning_rate": {"retries": 0},
    }
    with pytest.raises(NonFiniteError, match="loss of step 3 "):
        trainings.run(settings, "nan")
    state = latest_state(trainings.workspace.model("tiny"), "nan")
    assert state is not None and state.name == "step_00000002"
    monkeypatch.undo()
    rest = trainings.run({**settings, "resume": True, "intervals": {"max_steps": 3}}, "after nan")
    assert [step.step for step in rest.steps] == [3]


def test_pictures_that_are_no_pictures_are_named_before_training(
    trainings: Trainings, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"broken\.png"):
        trainings.run({"concept": {"instance_folder": str(tmp_path)}}, "broken")
