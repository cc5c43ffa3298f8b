"""Settings of the loss in whole trainings: they reach the step, and the files tell of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dreambooth_core.config.schema import CreateConfig, SaveConfig, TrainConfig
from dreambooth_core.config.serialize import from_dict
from dreambooth_core.errors import ConfigError
from dreambooth_core.families import load_checkpoint, load_components
from dreambooth_core.job.events import StepDone
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.stages import create, save, train
from dreambooth_core.stages.noise_setup import check_schedule, training_schedule
from dreambooth_core.stages.save_lora import load_state_components
from dreambooth_core.stages.side_settings import side_settings
from dreambooth_core.stages.training_setup import changed_settings
from dreambooth_core.stages.training_step import example_losses
from tests.noise_pictures import write_pictures
from tests.tiny import VARIANTS, stage_context, tiny_model
from tests.trainings import Trained, Trainings, merged, trainings_in

ONE_STEP: dict[str, Any] = {"intervals": {"max_steps": 1}, "batch": {"batch_size": 2}}
SHORT: dict[str, Any] = {"intervals": {"epochs": 2}, "batch": {"batch_size": 4}}
"""Two steps of all four pictures."""


@pytest.fixture(scope="module")
def trainings(module_folder: Path, _created_model: Path) -> Trainings:
    """One workspace with a tiny model for all tests of this module."""
    return trainings_in(module_folder / "loss", _created_model)


@pytest.fixture(scope="module")
def plain(trainings: Trainings) -> Trained:
    """The short training without any setting changed."""
    return trainings.run(SHORT, "plain")


@pytest.mark.parametrize(
    "loss",
    [
        {"multires_noise_iterations": 6, "multires_noise_discount": 0.5},
        {"input_perturbation": 0.1},
        {"debiased_estimation": True},
        {"loss_type": "huber"},
        {"loss_type": "pseudo_huber", "huber_schedule": "exponential"},
        {"max_timestep": 300},
        {"dream": True},
    ],
    ids=lambda loss: "-".join(loss),
)
def test_a_changed_loss_changes_every_step(
    trainings: Trainings, plain: Trained, loss: dict[str, Any]
) -> None:
    run = trainings.run({**SHORT, "loss": loss}, "-".join(loss))
    assert all(a != b for a, b in zip(run.losses, plain.losses, strict=True))


def test_dream_learns_in_16_bits_too(trainings: Trainings) -> None:
    """Its first guess, made without gradients, must not take those of the prediction away."""
    changes = {**ONE_STEP, "precision": {"mixed_precision": "bf16"}}
    plain = trainings.run(changes, "bf16")
    dream = trainings.run({**changes, "loss": {"dream": True}}, "bf16 dream")
    assert dream.steps[0].grad_norm == pytest.approx(plain.steps[0].grad_norm, rel=0.5)


def test_training_goes_on_from_a_state_as_if_it_had_not_ended(trainings: Trainings) -> None:
    """The new random streams belong to the step, and a scaled prior weight to the epoch."""
    concept = {"class_images_per_instance_image": 1, "class_prompt": "dog", "class_steps": 1}
    loss = {
        "multires_noise_iterations": 4,
        "input_perturbation": 0.1,
        "dream": True,
        "min_snr_gamma": 5.0,
        "prior_loss_scale": True,
        "prior_loss_target": 2,
    }
    changes = merged(SHORT, {"concept": concept, "loss": loss})
    whole = trainings.run(changes, "whole")
    trainings.run({**changes, "intervals": {"max_steps": 1}}, "first")
    rest = trainings.run({**changes, "resume": True}, "rest")
    assert rest.losses == whole.losses[1:]
    first, second = whole.steps
    assert first.loss_class is not None and second.loss_class is not None
    expected = (first.loss_instance + 0.75 * first.loss_class) / 1.75
    assert first.loss == pytest.approx(expected, rel=1e-6)
    weight = (0.75 + 0.1) / 2  # half way to the minimum after one of two epochs
    expected = (second.loss_instance + weight * second.loss_class) / (1 + weight)
    assert second.loss == pytest.approx(expected, rel=1e-6)


def test_a_state_of_a_version_without_these_settings_had_their_defaults(plain: Trained) -> None:
    assert plain.state is not None
    settings = json.loads(json.dumps(plain.state.settings))
    config = from_dict(TrainConfig, settings)
    for name in ("dream", "loss_type", "max_timestep", "zero_terminal_snr"):
        del settings["loss"][name]
    del settings["concepts"][0]["loss_weight"]
    older = replace(plain.state, settings=settings)
    assert changed_settings(config, older) is None
    config.loss.dream = True
    told = changed_settings(config, older)
    assert told is not None and "loss.dream False to True" in told.message


# -- weights of concepts and pictures


def two_concepts(trainings: Trainings, weights: tuple[float, float], **changes: Any) -> TrainConfig:
    """One step over two concepts of other pictures with these weights."""
    config = trainings.config({"intervals": {"max_steps": 1}, "batch": {"batch_size": 8}})
    other = trainings.workspace.root / "others"
    if not other.exists():
        write_pictures(other, 4, seed=9)
    config.concepts = [
        type(config.concepts[0])(instance_folder=str(folder), loss_weight=weight, **changes)
        for folder, weight in zip((trainings.pictures, other), weights, strict=True)
    ]
    return config


def losses_of_step(
    trainings: Trainings, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, run: str
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """The loss that a step reports, and the losses and weights of its examples."""
    losses: list[torch.Tensor] = []
    weights: list[torch.Tensor] = []

    def spied(objective: Any, batch: Any, streams: Any) -> torch.Tensor:
        losses.append(example_losses(objective, batch, streams))
        weights.append(batch.weights)
        return losses[-1]

    with monkeypatch.context() as patch:
        patch.setattr("dreambooth_core.stages.training_step.example_losses", spied)
        context, events = trainings.context(run)
        train.run(config, context)
    (step,) = [event for event in events if isinstance(event, StepDone)]
    return step.loss, torch.cat(losses).detach(), torch.cat(weights)


@pytest.mark.turns("train.concepts.loss_weight")
def test_a_concepts_weight_is_what_its_pictures_count(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, losses, weights = losses_of_step(
        trainings, two_concepts(trainings, (1.0, 3.0)), monkeypatch, "weights 1 3"
    )
    assert sorted(weights.tolist()) == [1.0] * 4 + [3.0] * 4
    assert loss == pytest.approx(float((weights * losses).sum() / 16), rel=1e-6)
    equal, same, _ = losses_of_step(
        trainings, two_concepts(trainings, (3.0, 3.0)), monkeypatch, "weights 3 3"
    )
    assert torch.equal(same, losses)
    assert equal == pytest.approx(float(losses.mean()), rel=1e-6)
    assert loss != pytest.approx(equal, rel=1e-4)


def test_a_concepts_weight_goes_for_its_class_images_too(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = two_concepts(
        trainings,
        (1.0, 2.0),
        class_images_per_instance_image=1,
        class_prompt="dog",
        class_steps=1,
    )
    config.loss.prior_loss_weight = 0.5
    _, _, weights = losses_of_step(trainings, config, monkeypatch, "class weights")
    assert sorted(weights.tolist()) == [0.5] * 4 + [1.0] * 8 + [2.0] * 4


def test_a_pictures_weight_is_read_from_the_file_beside_it(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_pictures(trainings.workspace.root / "weighed", 4)
    (folder / "c red dog.weight.txt").write_text("0.25", encoding="utf-8")
    config = trainings.config({"intervals": {"max_steps": 1}, "batch": {"batch_size": 4}})
    config.concepts[0].instance_folder = str(folder)
    loss, losses, weights = losses_of_step(trainings, config, monkeypatch, "picture weight")
    assert sorted(weights.tolist()) == [0.25, 1.0, 1.0, 1.0]
    assert loss == pytest.approx(float((weights * losses).sum() / 3.25), rel=1e-6)


def test_masks_and_the_weight_of_the_rest_reach_the_loss(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_pictures(trainings.workspace.root / "masked", 2)
    half = Image.new("L", (64, 64))
    half.paste(255, (0, 0, 32, 64))
    half.save(folder / "a red dog.mask.png")
    losses = {}
    for weight in (0.0, 0.1, 1.0):
        config = trainings.config({"intervals": {"max_steps": 1}, "batch": {"batch_size": 2}})
        config.concepts[0].instance_folder = str(folder)
        config.images.masks = "files"
        config.loss.unmasked_weight = weight
        name = f"unmasked {weight}"
        losses[weight] = losses_of_step(trainings, config, monkeypatch, name)[1]
    config.images.masks = "none"
    unmasked = losses_of_step(trainings, config, monkeypatch, "unmasked")[1]
    torch.testing.assert_close(losses[1.0], unmasked)
    changed = losses[0.0] != unmasked
    assert changed.sum() == 1  # the other picture has no mask
    between = (losses[0.0] + 0.1 * (2 * unmasked - losses[0.0])) / 1.1
    torch.testing.assert_close(losses[0.1][changed], between[changed], rtol=1e-5, atol=1e-6)


# -- zero terminal SNR


@pytest.fixture(scope="module")
def velocity(module_folder: Path) -> Trainings:
    """A workspace with a model of v-prediction that was not made with zero terminal SNR."""
    workspace = Workspace(module_folder / "velocity")
    tiny_model(workspace, variant=VARIANTS["sd2-v"])
    return Trainings(workspace)


ZERO: dict[str, Any] = {
    **ONE_STEP,
    "loss": {"zero_terminal_snr": True},
    "saving": {"save_at_end": True},
    "ema": {"enabled": False},
}


@pytest.fixture(scope="module")
def ending_in_noise(velocity: Trainings) -> Trained:
    """A training of that model with zero terminal SNR."""
    return velocity.run(ZERO, "zero")


def rescaled(alphas: torch.Tensor) -> torch.Tensor:
    """sqrt(alpha-bar) shifted and scaled to keep its first value and end at 0, by hand."""
    roots = alphas.double().sqrt()
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])).square().float()


def test_a_schedule_that_ends_in_noise_is_the_papers(velocity: Trainings) -> None:
    components = load_components(velocity.workspace.model("tiny"))
    before = components.noise_scheduler.alphas_cumprod.clone()
    training_schedule(velocity.config().loss, components)
    assert torch.equal(components.noise_scheduler.alphas_cumprod, before)
    after = training_schedule(velocity.config(ZERO).loss, components)
    assert after[-1] == 0 and after[0] == pytest.approx(before[0].item(), rel=1e-6)
    torch.testing.assert_close(after, rescaled(before), rtol=1e-3, atol=1e-6)
    again = training_schedule(velocity.config(ZERO).loss, components)
    torch.testing.assert_close(again, after)


@pytest.mark.turns("train.loss.zero_terminal_snr")
def test_zero_terminal_snr_changes_the_loss_and_marks_the_file(
    velocity: Trainings, ending_in_noise: Trained
) -> None:
    plain = velocity.run({**ZERO, "loss": {}}, "plain")
    assert ending_in_noise.losses != plain.losses
    model = velocity.workspace.model("tiny")
    (ours,), (theirs,) = (run.summary["checkpoints"] for run in (ending_in_noise, plain))
    for path, ends in ((ours, True), (theirs, False)):
        config = load_checkpoint(Path(path), model).noise_scheduler.config
        assert bool(config.get("rescale_betas_zero_snr")) is ends
        assert (config["timestep_spacing"] == "trailing") is ends
    assert not load_components(model).noise_scheduler.config.get("rescale_betas_zero_snr")


def test_a_model_made_of_that_file_ends_in_noise(
    velocity: Trainings, ending_in_noise: Trained
) -> None:
    source = ending_in_noise.summary["checkpoints"][0]
    create.run(CreateConfig(name="next", source=source), stage_context(velocity.workspace))
    alphas = load_components(velocity.workspace.model("next")).noise_scheduler.alphas_cumprod
    assert alphas[-1] == 0


def test_saving_and_drawing_from_the_state_know_it_too(
    velocity: Trainings, ending_in_noise: Trained
) -> None:
    model = velocity.workspace.model("tiny")
    config = SaveConfig(model="tiny", run="zero", name="later")
    path = Path(save.run(config, stage_context(velocity.workspace))["path"])
    scheduler = load_checkpoint(path, model).noise_scheduler
    assert scheduler.alphas_cumprod[-1] == 0
    state = Path(ending_in_noise.summary["state"])
    assert load_state_components(model, state, False).noise_scheduler.alphas_cumprod[-1] == 0
    model.kept_side_file.rename(model.kept_side_file.with_suffix(".away"))
    try:
        told = side_settings(model, True)
    finally:
        model.kept_side_file.with_suffix(".away").rename(model.kept_side_file)
    assert told is not None and b"zero_terminal_snr: true" in told


def test_a_lora_is_drawn_with_the_schedule_that_it_learnt(velocity: Trainings) -> None:
    lora = {"lora": {"enabled": True, "rank": 2}, "saving": {"save_at_end": False}}
    run = velocity.run(merged(ZERO, lora), "zero lora")
    model = velocity.workspace.model("tiny")
    components = load_state_components(model, Path(run.summary["state"]), False)
    assert components.noise_scheduler.alphas_cumprod[-1] == 0


def test_what_a_models_schedule_cannot_do_is_refused(velocity: Trainings) -> None:
    components = load_components(velocity.workspace.model("tiny"))
    components.prediction_type = "epsilon"
    loss = velocity.config().loss
    loss.debiased_estimation = True
    check_schedule(loss, components)
    training_schedule(velocity.config(ZERO).loss, components)
    with pytest.raises(ConfigError) as caught:
        check_schedule(loss, components)
    assert [problem.field for problem in caught.value.problems] == ["loss.debiased_estimation"]
    loss.max_timestep = 998
    check_schedule(loss, components)
    components.noise_scheduler.alphas_cumprod = torch.linspace(0.9, 0.1, 100)
    loss.min_timestep = 100
    with pytest.raises(ConfigError) as caught:
        check_schedule(loss, components)
    assert [problem.field for problem in caught.value.problems] == ["loss.min_timestep"]
