"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to resume."""

from __future__ import annotations

import math
from collections.abc import Callable


def _constant(progress: float, cycles: int, power: float) -> float:
    """Return 1 throughout."""
    return 1.0


def _linear(progress: float, cycles: int, power: float) -> float:
    """Return 1 - p."""
    return 1.0 - progress


def _cosine(progress: float, cycles: int, power: float) -> float:
    """Return (1 + cos(pi p)) / 2: half a cosine, Loshchilov & Hutter 2016 (arXiv 1608.03983)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _cosine_with_restarts(progress: float, cycles: int, power: float) -> float:
    """Return the half cosine repeated `cycles` times, each from 1 to 0 (warm restarts)."""
    return 0.0 if progress >= 1.0 else _cosine((cycles * progress) % 1.0, cycles, power)


def _polynomial(progress: float, cycles: int, power: float) -> float:
    """Return (1 - p)^power."""
    return math.pow(1.0 - progress, power)


LR_SCHEDULES: dict[str, Callable[[float, int, float], float]] = {
    "constant": _constant,
    "constant_with_warmup": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
}
"""The falling part of each schedule: (progress p in 0..1, cycles, power) -> share in 0..1."""


def lr_factor(
    name: str,
    step: int,
    total_steps: int,
    *,
    warmup_steps: int = 0,
    min_factor: float = 0.0,
    cycles: int = 1,
    power: float = 1.0,
) -> float:
    """Return what the base learning rate is multiplied by for the update number `step` (from 0).

    While step < warmup_steps: step / warmup_steps, except for "constant", which never warms up.
    Then f = min_factor + (1 - min_factor) * shape(p), p = (step - warmup) / (total - warmup)
    held within 0..1. With min_factor 0 this equals the schedules of diffusers 0.35 by name.
    """
    if name not in LR_SCHEDULES:
        raise ValueError(f"schedule is {name!r}; known are {', '.join(LR_SCHEDULES)}")
    warmup = 0 if name == "constant" else warmup_steps
    if step < warmup:
        return step / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return min_factor + (1.0 - min_factor) * LR_SCHEDULES[name](progress, cycles, power)
