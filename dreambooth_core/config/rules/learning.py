"""Rules of what is trained and how fast."""

from __future__ import annotations

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.errors import Problem


def check_learning(config: TrainConfig) -> list[Problem]:
    """Return what would keep the networks from learning, and rates that do nothing."""
    problems = []
    ratio = config.text_encoder.train_ratio
    if not config.unet.train and ratio == 0:
        problems.append(
            Problem(
                "unet.train",
                "is off and text_encoder.train_ratio is 0, so nothing is trained.",
                "Switch one of them on.",
            )
        )
    rates = config.learning_rate
    problems += _check_rates(config)
    if rates.schedule == "constant" and rates.warmup_steps:
        problems.append(
            Problem(
                "learning_rate.warmup_steps",
                "is set, but the schedule constant has no warm-up.",
                "Choose constant_with_warmup, or set it to 0.",
            )
        )
    return problems


def _check_rates(config: TrainConfig) -> list[Problem]:
    unet, text_encoder = "learning_rate.unet", "learning_rate.text_encoder"
    rates = (config.learning_rate.unet, config.learning_rate.text_encoder)
    if config.lora.enabled:
        unet, text_encoder = "lora.unet_learning_rate", "lora.text_encoder_learning_rate"
        rates = (config.lora.unet_learning_rate, config.lora.text_encoder_learning_rate)
    checks = (
        (unet, config.unet.train, rates[0], "switch off unet.train"),
        (text_encoder, config.text_encoder.train_ratio > 0, rates[1], "set train_ratio to 0"),
    )
    return [
        Problem(path, "is 0, so that part would not learn.", f"Raise it, or {otherwise}.")
        for path, trained, rate, otherwise in checks
        if trained and rate == 0
    ]
