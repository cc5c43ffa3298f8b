"""Tests of the parts that a run is put together from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.serialize import from_dict, to_dict
from dreambooth_core.data.dataset import TrainingSet
from dreambooth_core.data.examples import Example
from dreambooth_core.errors import CheckpointError
from dreambooth_core.optim.build import build_optimizer, parameter_groups
from dreambooth_core.stages.network_setup import prepare_networks, trained_networks
from dreambooth_core.stages.optimizer_setup import (
    optimizer_memory,
    prepare_optimizer,
    restore_optimizer,
)
from dreambooth_core.stages.saved_states import Progress
from dreambooth_core.stages.training_plan import make_plan
from dreambooth_core.stages.training_setup import (
    changed_settings,
    prepare_ema,
    step_batches,
)
from dreambooth_core.stages.training_state import TrainingState
from tests.trainings import same


def make_config(**changes: Any) -> TrainConfig:
    """A configuration with some settings changed."""
    return from_dict(TrainConfig, {"model": "tiny", **changes})


def make_parts() -> dict[str, nn.Module]:
    """Two small networks with fixed weights."""
    torch.manual_seed(0)
    return {"unet": nn.Linear(3, 2), "text_encoder": nn.Linear(2, 2)}


def make_optimizer(parts: dict[str, nn.Module], name: str = "adamw", **settings: float) -> Any:
    """An optimizer with a group for each part."""
    rates = dict.fromkeys(parts, 0.1)
    section = make_config(optimizer={"name": name, **settings}).optimizer
    return build_optimizer(section, parameter_groups(parts, rates, dict.fromkeys(parts, 0.0)))


def learn(parts: dict[str, nn.Module], optimizer: Any, steps: int) -> None:
    """Some updates with gradients that depend on the weights."""
    for _ in range(steps):
        sum(p.square().sum() + p.sum() for m in parts.values() for p in m.parameters()).backward()
        optimizer.step()
        optimizer.zero_grad()


def make_state(settings: dict[str, Any], **changes: Any) -> TrainingState:
    """A state of nothing but settings."""
    values: dict[str, Any] = {"weights": {}, "ema": {}, "optimizer": {}, **changes}
    return TrainingState(Progress(4, 1, 0), seed=1, settings=settings, **values)


# -- the optimizer's memory


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_a_restored_optimizer_goes_on_as_the_old_one(name: str) -> None:
    straight = make_parts()
    optimizer = make_optimizer(straight, name)
    learn(straight, optimizer, 4)

    parts = make_parts()
    first = make_optimizer(parts, name)
    learn(parts, first, 2)
    memory = optimizer_memory(first)
    second = make_optimizer(parts, name)
    restore_optimizer(second, memory)
    learn(parts, second, 2)
    for key, network in parts.items():
        assert same(dict(network.named_parameters()), dict(straight[key].named_parameters()))
    assert same(optimizer_memory(second), optimizer_memory(optimizer))


def test_memory_goes_to_the_group_of_its_name() -> None:
    parts = make_parts()
    optimizer = make_optimizer(parts)
    learn(parts, optimizer, 1)
    memory = optimizer_memory(optimizer)
    assert list(memory) == ["unet", "text_encoder"]
    alone = make_optimizer({"text_encoder": parts["text_encoder"]})
    restore_optimizer(alone, memory)
    restored = optimizer_memory(alone)
    assert list(restored) == ["text_encoder"]
    assert same(restored["text_encoder"], memory["text_encoder"])
    both = make_optimizer(parts)
    restore_optimizer(both, {"unet": memory["unet"]})
    assert optimizer_memory(both)["text_encoder"] == [{}, {}]


def test_memory_leaves_todays_settings_alone() -> None:
    parts = make_parts()
    optimizer = make_optimizer(parts)
    learn(parts, optimizer, 1)
    other = make_optimizer(parts, beta1=0.5)
    restore_optimizer(other, optimizer_memory(optimizer))
    assert other.param_groups[0]["betas"] == (0.5, 0.99)


# -- what learns


class Network(nn.Linear):
    """A network with the switches that a UNet and a text encoder have."""

    checkpointing = False

    def enable_gradient_checkpointing(self) -> None:
        """Note that the switch was used."""
        self.checkpointing = True

    def gradient_checkpointing_enable(self, settings: Any) -> None:
        """Note that the switch was used."""
        self.checkpointing = True


class Model:
    """The networks of a model."""

    def __init__(self, *more: str, paints_in: bool = False) -> None:
        self.unet, self.vae, self.text_encoder = Network(1, 1), Network(1, 1), Network(1, 1)
        self.more = {name: Network(1, 1) for name in more}
        self.paints_in = paints_in

    def modules(self) -> dict[str, nn.Module]:
        """The networks by name."""
        return {"unet": self.unet, "vae": self.vae, **self.text_encoders()}

    def text_encoders(self) -> dict[str, nn.Module]:
        """The text encoders by name."""
        return {"text_encoder": self.text_encoder, **self.more}

    def paints_into_pictures(self) -> bool:
        """Whether it is an inpainting model."""
        return self.paints_in


def plan_of(config: TrainConfig, start: Progress | None = None) -> Any:
    """A plan of ten steps, each an epoch."""
    return make_plan(
        config, instance_images=1, class_images=0, steps_per_epoch=1, start=start or Progress()
    )


@pytest.mark.parametrize(
    ("ratio", "train_unet", "step", "learning"),
    [
        (0.5, True, 0, {"unet", "text_encoder"}),
        (0.5, True, 5, {"unet"}),
        (0.0, True, 0, {"unet"}),
        (0.5, False, 5, {"text_encoder"}),
    ],
)
def test_only_what_learns_gets_gradients(
    ratio: float, train_unet: bool, step: int, learning: set[str]
) -> None:
    config = make_config(
        text_encoder={"train_ratio": ratio},
        unet={"train": train_unet},
        intervals={"epochs": 10},
    )
    model: Any = Model()
    plan = plan_of(config, Progress(step, step, 0))
    parts = prepare_networks(config, model, plan, None, torch.device("cpu"))
    for name, network in model.modules().items():
        assert {p.requires_grad for p in network.parameters()} == {name in learning}
        assert network.training == (name in learning)
    assert learning <= set(parts)
    assert model.unet.checkpointing  # gradients of the text encoder pass through it too
    assert model.text_encoder.checkpointing == ("text_encoder" in learning)


def test_all_text_encoders_learn_in_groups_of_their_own() -> None:
    config = make_config(
        text_encoder={"train_ratio": 0.5},
        intervals={"epochs": 10},
        learning_rate={"unet": 0.5, "text_encoder": 0.25},
        optimizer={"name": "adamw", "weight_decay": 0.1, "text_encoder_weight_decay": 0.2},
    )
    model: Any = Model("text_encoder_2")
    plan = plan_of(config)
    parts = prepare_networks(config, model, plan, None, torch.device("cpu"))
    assert list(parts) == ["unet", "text_encoder", "text_encoder_2"]
    assert all(model.modules()[name].checkpointing for name in parts)
    optimizer = prepare_optimizer(config, Accelerator(cpu=True), parts, None)
    groups = {g["name"]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups}
    text = (0.25, 0.2)
    assert groups == {"unet": (0.5, 0.1), "text_encoder": text, "text_encoder_2": text}


@pytest.mark.parametrize("paints_in", [False, True])
def test_the_vae_stays_at_hand_for_inpainting_models_alone(paints_in: bool) -> None:
    config, model = make_config(), Model(paints_in=paints_in)
    plan: Any = plan_of(config)
    prepare_networks(config, model, plan, None, torch.device("meta"))  # type: ignore[arg-type]
    assert model.unet.weight.device.type == "meta"
    assert model.vae.weight.device.type == ("meta" if paints_in else "cpu")


def test_what_was_trained_before_stays_a_part() -> None:
    config = make_config(text_encoder={"train_ratio": 0.0}, intervals={"epochs": 10})
    model: Any = Model()
    weights = {"text_encoder": dict(Network(1, 1).named_parameters())}
    state = make_state(to_dict(config), weights=weights)
    parts = prepare_networks(config, model, plan_of(config), state, torch.device("cpu"))
    assert list(parts) == ["unet", "text_encoder"]
    assert list(trained_networks(config, model, plan_of(config), None)) == ["unet"]
    assert torch.equal(model.text_encoder.weight, weights["text_encoder"]["weight"])
    assert not model.text_encoder.weight.requires_grad


@pytest.mark.parametrize(
    "weights", [{"scale": torch.ones(1, 1)}, {"weight": torch.ones(9, 9), "bias": torch.ones(1)}]
)
def test_weights_of_another_model_are_refused(weights: dict[str, torch.Tensor]) -> None:
    config, model = make_config(), Model()
    state = make_state(to_dict(config), weights={"unet": weights})
    with pytest.raises(CheckpointError, match="another model than unet"):
        prepare_networks(config, model, plan_of(config), state, torch.device("cpu"))  # type: ignore[arg-type]


def test_an_average_is_restored_and_begun_where_the_state_has_none() -> None:
    parts, config = make_parts(), make_config()
    known = {f"unet.{key}": torch.full_like(p, 7.0) for key, p in parts["unet"].named_parameters()}
    ema = prepare_ema(config, parts, make_state(to_dict(config), ema=known))
    assert ema is not None
    average = ema.state_dict()
    assert average["unet.weight"].unique().tolist() == [7.0]
    assert torch.equal(average["text_encoder.weight"], parts["text_encoder"].weight)
    assert prepare_ema(make_config(ema={"enabled": False}), parts, None) is None


# -- order of the steps


def test_steps_go_on_within_their_epoch() -> None:
    pictures = [Example(path=f"{n}.png", prompt=str(n), bucket=(64, 64)) for n in range(3)]  # type: ignore[arg-type]
    training_set = TrainingSet(pictures, seed=1)
    whole = step_batches(training_set, Progress())
    expected = [next(whole) for _ in range(9)]
    later = step_batches(training_set, Progress(step=4, epoch=1, position=1))
    assert [next(later) for _ in range(5)] == expected[4:]
    assert {step.epoch for step in expected[3:6]} == {1}


# -- changed settings


def test_unchanged_settings_are_not_worth_a_notice() -> None:
    config = make_config(resume=True)
    assert changed_settings(config, make_state(to_dict(make_config()))) is None


def test_changed_settings_are_named_with_both_values() -> None:
    config = make_config(seed=2, optimizer={"name": "adamw"})
    notice = changed_settings(config, make_state(to_dict(make_config(seed=1))))
    assert notice is not None and notice.level == "warning"
    assert "seed 1 to 2" in notice.message
    assert "optimizer.name 'lion' to 'adamw'" in notice.message
    assert notice.message.endswith("begins without memory.")
    quiet = changed_settings(make_config(seed=2), make_state(to_dict(make_config(seed=1))))
    assert quiet is not None and "without memory" not in quiet.message
