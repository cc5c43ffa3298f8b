"""What was not finite in a run, what it may come from, and what to do: looked up on the spot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.errors import NonFiniteError
from dreambooth_core.stages.health import MOST_GROWTH, NAMES
from dreambooth_core.stages.optimizer_setup import GROUP_MEMORY, learning_rates
from dreambooth_core.stages.training_setup import Trainer

MOST_PICTURES = 8
"""So many pictures of a step are named, and the rest counted."""

LARGE_LATENT = 50.0
"""Latents are scaled to a deviation of about 1."""


@dataclass(frozen=True)
class Fault:
    """What happened at a step (counted from 1), in words; `causes` has the likeliest first.

    It is `hopeless` if the same would happen again from wherever the run goes on.
    """

    step: int
    message: str
    causes: tuple[str, ...]
    remedy: str
    field: str
    hopeless: bool = False

    def why(self) -> str:
        """Return the causes as a sentence, or ""."""
        if len(self.causes) < 2:
            return "".join(f"It comes most likely from {cause}." for cause in self.causes)
        numbered = [f"({number}) {cause}" for number, cause in enumerate(self.causes, 1)]
        return f"It may come from, likeliest first: {'; '.join(numbered)}."


def look_into(trainer: Trainer, error: NonFiniteError) -> Fault | None:
    """Return what is behind an error; None if the training is sound and only the error's is not.

    So it is where weights that are finite are too large for the number format of a file.
    """
    broken, is_base = _broken_tensor(trainer)
    if not broken and not error.what:
        return None
    untouched = trainer.progress == trainer.plan.start
    if broken and (is_base or untouched):
        return Fault(
            trainer.progress.step + 1,
            f"{broken} holds NaN or infinite numbers before any step.",
            (),
            "Create the model anew from an intact checkpoint.",
            "model",
            hopeless=True,
        )
    step = trainer.progress.step + bool(error.what)
    return Fault(
        step,
        _message(trainer, error, broken, step),
        _causes(trainer, error),
        _remedy(trainer),
        _rate_field(trainer.config),
    )


def _message(trainer: Trainer, error: NonFiniteError, broken: str, step: int) -> str:
    if broken:
        noticed = (
            f"; noticed as the {error.what} of step {step} is not finite" if error.what else ""
        )
        return (
            f"{broken} holds NaN or infinite numbers after step {trainer.progress.step}{noticed}."
        )
    pictures = [str(sample.example.path) for sample in trainer.current]
    told = f"{error.message} Its pictures: {_listed(pictures)}."
    guilty = [pictures[number] for number in error.examples]
    if guilty and len(guilty) < len(pictures):
        told += f" Not finite is the loss of {_listed(guilty)}."
    return told


def _causes(trainer: Trainer, error: NonFiniteError) -> tuple[str, ...]:
    """Return what it may come from: first what is seen, then what is usual."""
    broken, largest = _latents(trainer)
    seen = [f"broken latents of {_listed(broken)}"] if broken else []
    for name, times in trainer.health.growth().items():
        if MOST_GROWTH < times < float("inf"):
            seen.append(f"the weights of {name}, whose norm is {times:.3g} times that at first")
    if largest > LARGE_LATENT:
        seen.append(f"a picture that the VAE makes odd numbers of (up to {largest:.3g})")
    if trainer.config.precision.mixed_precision == "fp16":
        every = ", also at the smallest loss scale" if error.what == "gradient" else ""
        seen.append(f"an overflow of fp16, whose largest number is 65504{every}")
    return (*seen, f"a learning rate that is too high ({_rates(trainer)})")


def _rates(trainer: Trainer) -> str:
    """Return the last step's learning rates, and what the set ones were multiplied by."""
    as_set = learning_rates(trainer.config, trainer.parts)
    factor = trainer.session.retreats.factor
    told = []
    for group in trainer.optimizer.param_groups:
        name, rate = group["name"], group["lr"]
        words = f"{NAMES[name].removeprefix('the ')} {rate:g}"
        if rate != as_set[name]:
            words += f", which is {as_set[name]:g} times {rate / as_set[name] / factor:.3g}"
            words += " by the schedule"
            words += f" times {factor:g} since the run went back" if factor != 1 else ""
        told.append(words)
    return "; ".join(told)


def _rate_field(config: TrainConfig) -> str:
    """Return the setting of the learning rate, of the UNet's if it learns."""
    name = "unet" if config.unet.train else "text_encoder"
    return f"lora.{name}_learning_rate" if config.lora.enabled else f"learning_rate.{name}"


def _remedy(trainer: Trainer) -> str:
    lower = "Lower the learning rate"
    if trainer.config.precision.mixed_precision == "fp16":
        return f"Train with mixed precision bf16 or no, or: {lower.lower()}."
    return f"{lower}, or raise learning_rate.warmup_steps."


def _latents(trainer: Trainer) -> tuple[list[str], float]:
    """Return which of the step's pictures have latents that are not finite, and the largest one."""
    broken, largest = [], 0.0
    for sample in trainer.current:
        peak = max(float(part.abs().max()) for part in trainer.latents.latents(sample))
        if peak < float("inf"):
            largest = max(largest, peak)
        else:
            broken.append(str(sample.example.path))
    return broken, largest


def _broken_tensor(trainer: Trainer) -> tuple[str, bool]:
    """Return the first tensor that is not finite, in words, and whether it is of the base model."""
    for name, tensor, is_base in _tensors(trainer):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return name, is_base
    return "", False


def _tensors(trainer: Trainer) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Yield all that could be broken, in words, and whether it is of the base model."""
    learnt = {id(p) for part in trainer.parts.values() for _, p in part.named_parameters()}
    for component in ("unet", *trainer.components.text_encoders()):
        for name, p in trainer.components.modules()[component].named_parameters():
            yield f"The weight {name} of {NAMES[component]}", p.detach(), id(p) not in learnt
    if trainer.ema is not None:
        for name, shadow in trainer.ema.state_dict().items():
            yield f"The running average of {name}", shadow, False
    for name, value in _remembered(trainer):
        yield f"What the optimizer remembers ({name})", value, False


def _remembered(trainer: Trainer) -> Iterator[tuple[str, torch.Tensor]]:
    for memory in (*trainer.optimizer.state.values(), *trainer.optimizer.param_groups):
        for name, value in memory.items():
            if torch.is_tensor(value):
                yield name, value
            elif isinstance(value, float) and name in GROUP_MEMORY:
                yield name, torch.tensor(value)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MOST_PICTURES
    return ", ".join(names[:MOST_PICTURES]) + (f" and {more} more" if more > 0 else "")
