"""Rules of the optimizer: rates that fit it, and what does not go together with it."""

from __future__ import annotations

from collections.abc import Iterator

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.sections.optimizer import (
    EIGHT_BIT_OPTIMIZERS,
    SCHEDULE_FREE_OPTIMIZERS,
    SELF_TUNING_OPTIMIZERS,
)
from dreambooth_core.errors import Problem

LEAST_FACTOR = 0.01
"""Below this a learning rate is meant as one, not as the factor that self-tuning ones want."""

MOST_RATE = 0.1
"""From this on a learning rate is meant as a factor; as one it would destroy any model."""

LEAST_CAME_BETA1 = 0.5
"""At a rate of 0.001 three steps of noise move a weight by 0.5 with this, by 36 with 0.01 and by
3e7 with 0."""

HOLDING_SCHEDULES = ("constant", "constant_with_warmup")


def check_optimizer(config: TrainConfig) -> list[Problem]:
    """Return learning rates that do not fit the optimizer, and settings that contradict it."""
    name = config.optimizer.name
    if name in SELF_TUNING_OPTIMIZERS:
        return [*_check_factors(config)]
    problems = [*_check_rates(config)]
    if name in EIGHT_BIT_OPTIMIZERS and config.precision.device == "cpu":
        problems.append(
            Problem(
                "optimizer.name",
                f"is {name}, which needs an NVIDIA GPU, but precision.device is cpu.",
                f"Choose {name.removeprefix('paged_').removesuffix('_8bit')}.",
            )
        )
    if name == "came" and config.optimizer.beta1 < LEAST_CAME_BETA1:
        problems.append(
            Problem(
                "optimizer.beta1",
                f"is {config.optimizer.beta1:g}, but came divides by how far steps are from their"
                " mean, which is next to nothing then: the weights would blow up.",
                f"Set it to 0.9, or at least to {LEAST_CAME_BETA1:g}.",
            )
        )
    if name in SCHEDULE_FREE_OPTIMIZERS:
        problems += _check_schedule_free(config)
    return problems


def learning_rate_fields(config: TrainConfig) -> dict[str, float]:
    """Return the fields that hold the rates of what is trained, and the rates."""
    rates = {
        "learning_rate.unet": config.learning_rate.unet,
        "learning_rate.text_encoder": config.learning_rate.text_encoder,
    }
    if config.lora.enabled:
        rates = {
            "lora.unet_learning_rate": config.lora.unet_learning_rate,
            "lora.text_encoder_learning_rate": config.lora.text_encoder_learning_rate,
        }
    trained = (config.unet.train, config.text_encoder.train_ratio > 0)
    return {
        field: rate
        for (field, rate), is_trained in zip(rates.items(), trained, strict=True)
        if is_trained
    }


def _check_factors(config: TrainConfig) -> Iterator[Problem]:
    name, rates = config.optimizer.name, learning_rate_fields(config)
    for field, rate in rates.items():
        if 0 < rate < LEAST_FACTOR:
            problem = f"is {rate:g}, but {name} finds the rate itself and multiplies it by this."
            yield Problem(field, problem, "Set it to 1.")
    if len(set(rates.values())) > 1:
        (first, unet), (second, text_encoder) = rates.items()
        yield Problem(
            second,
            f"is {text_encoder:g} and {first} is {unet:g}, but {name} finds one rate for both.",
            "Set both to the same, usually 1.",
        )


def _check_rates(config: TrainConfig) -> Iterator[Problem]:
    name = config.optimizer.name
    for field, rate in learning_rate_fields(config).items():
        if rate >= MOST_RATE and name != "sgd":
            yield Problem(
                field,
                f"is {rate:g}; with {name} that would destroy the model in a few steps.",
                f"Lower it: only {' and '.join(SELF_TUNING_OPTIMIZERS)} want a rate of about 1.",
            )


def _check_schedule_free(config: TrainConfig) -> Iterator[Problem]:
    name, schedule = config.optimizer.name, config.learning_rate.schedule
    if schedule not in HOLDING_SCHEDULES:
        problem = f"is {schedule}, but {name} takes the place of a schedule that falls."
        yield Problem("learning_rate.schedule", problem, "Choose constant_with_warmup.")
    if config.optimizer.beta1 == 0:
        problem = f"is 0, but {name} averages the weights by it."
        yield Problem("optimizer.beta1", problem, "Set it to 0.9.")
    if config.precision.weights == "bf16" and not config.lora.enabled:
        problem = f"is bf16, which is too coarse for the average that {name} keeps."
        yield Problem("precision.weights", problem, "Set it to fp32, or choose another optimizer.")
    if config.unet.freeze_spectral_norm:
        problem = f"is on, but what {name} has learnt is not what is scaled after a step."
        yield Problem("unet.freeze_spectral_norm", problem, "Switch it off.")
