"""Settings of the optimizer that contradict each other are refused by name, before any work."""

from __future__ import annotations

from typing import Any

import pytest

from dreambooth_core.config.rules.optimizer import check_optimizer
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.sections.optimizer import EIGHT_BIT_OPTIMIZERS, SELF_TUNING_OPTIMIZERS
from dreambooth_core.config.serialize import from_dict


def problems(**settings: Any) -> dict[str, str]:
    """Return the problems by field, each with its remedy."""
    config = from_dict(TrainConfig, {"model": "ada", **settings})
    return {found.field: f"{found.message} {found.remedy}" for found in check_optimizer(config)}


RATES = {"unet": 1.0, "text_encoder": 1.0}


def test_the_defaults_are_fine() -> None:
    assert problems() == {}


@pytest.mark.parametrize("name", SELF_TUNING_OPTIMIZERS)
def test_a_tiny_rate_is_refused_where_the_rate_is_found(name: str) -> None:
    optimizer = {"name": name}
    found = problems(optimizer=optimizer, learning_rate={"unet": 1e-6, "text_encoder": 1e-6})
    assert set(found) == {"learning_rate.unet", "learning_rate.text_encoder"}
    assert f"is 1e-06, but {name} finds the rate itself" in found["learning_rate.unet"]
    assert "Set it to 1." in found["learning_rate.unet"]
    assert problems(optimizer=optimizer, learning_rate=RATES) == {}
    assert problems(optimizer=optimizer, learning_rate={"unet": 0.5, "text_encoder": 0.5}) == {}


@pytest.mark.parametrize("name", SELF_TUNING_OPTIMIZERS)
def test_one_rate_is_found_for_all_parts(name: str) -> None:
    rates = {"unet": 1.0, "text_encoder": 0.5}
    optimizer = {"name": name}
    found = problems(optimizer=optimizer, learning_rate=rates)
    assert "one rate for both" in found["learning_rate.text_encoder"]
    off = problems(optimizer=optimizer, learning_rate=rates, text_encoder={"train_ratio": 0.0})
    assert off == {}


def test_a_lora_s_own_rates_count() -> None:
    found = problems(optimizer={"name": "prodigy"}, learning_rate=RATES, lora={"enabled": True})
    assert set(found) == {"lora.unet_learning_rate", "lora.text_encoder_learning_rate"}
    rates = {"unet_learning_rate": 1.0, "text_encoder_learning_rate": 1.0}
    lora = {"enabled": True, **rates}
    assert problems(optimizer={"name": "prodigy"}, lora=lora) == {}


@pytest.mark.parametrize("name", ["lion", "adamw", "adamw_8bit", "adafactor", "came"])
def test_a_rate_of_1_is_refused_where_it_would_destroy_the_model(name: str) -> None:
    found = problems(optimizer={"name": name}, learning_rate=RATES)
    assert set(found) == {"learning_rate.unet", "learning_rate.text_encoder"}
    assert "only prodigy and dadapt_adam want a rate of about 1" in found["learning_rate.unet"]


@pytest.mark.parametrize(("beta1", "is_refused"), [(0.0, True), (0.49, True), (0.5, False)])
def test_came_needs_its_mean(beta1: float, is_refused: bool) -> None:
    found = problems(optimizer={"name": "came", "beta1": beta1})
    assert ("optimizer.beta1" in found) == is_refused
    assert "optimizer.beta1" not in problems(optimizer={"name": "adamw", "beta1": beta1})


def test_sgd_may_have_a_large_rate() -> None:
    assert problems(optimizer={"name": "sgd"}, learning_rate=RATES) == {}


@pytest.mark.parametrize("name", EIGHT_BIT_OPTIMIZERS)
def test_8_bits_are_refused_on_the_cpu(name: str) -> None:
    found = problems(optimizer={"name": name}, precision={"device": "cpu"})
    assert set(found) == {"optimizer.name"}
    assert "needs an NVIDIA GPU, but precision.device is cpu" in found["optimizer.name"]
    assert found["optimizer.name"].endswith(f"Choose {'adamw' if 'adamw' in name else 'lion'}.")
    assert problems(optimizer={"name": name}) == {}


FREE = {"name": "adamw_schedule_free"}


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"learning_rate": {"schedule": "cosine"}}, "learning_rate.schedule"),
        ({"optimizer": {**FREE, "beta1": 0.0}}, "optimizer.beta1"),
        ({"precision": {"weights": "bf16", "mixed_precision": "bf16"}}, "precision.weights"),
        ({"unet": {"freeze_spectral_norm": True}}, "unet.freeze_spectral_norm"),
    ],
)
def test_what_schedule_free_training_does_not_go_with(settings: dict[str, Any], field: str) -> None:
    found = problems(**{"optimizer": FREE, **settings})
    assert set(found) == {field}
    assert "adamw_schedule_free" in found[field]
    plain = {name: value for name, value in settings.items() if name != "optimizer"}
    assert problems(**plain) == {}


@pytest.mark.parametrize("schedule", ["constant", "constant_with_warmup"])
def test_schedules_that_hold_the_rate_go_with_schedule_free_training(schedule: str) -> None:
    assert problems(optimizer=FREE, learning_rate={"schedule": schedule}) == {}


def test_the_frozen_model_of_a_lora_may_be_in_bf16() -> None:
    precision = {"weights": "bf16", "mixed_precision": "bf16"}
    assert problems(optimizer=FREE, precision=precision, lora={"enabled": True}) == {}
