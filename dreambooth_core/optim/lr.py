"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to resume.

Nothing here needs torch: the page draws the same curve that training follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

WITHOUT_WARMUP = ("constant",)
TIMESCALE_WITHOUT_WARMUP = 10_000
"""How slowly inverse_sqrt falls where no warm-up tells it, as transformers has it."""


@dataclass(frozen=True)
class Moment:
    """How far a schedule is, counted from the end of its warm-up, and what shapes it.

    `progress` is the share of the steps after the warm-up that are done (0..1), `steps` is their
    number; `total_steps` includes the warm-up.
    """

    progress: float
    steps: int
    total_steps: int
    warmup_steps: int
    cycles: int
    power: float
    decay_share: float


def _constant(now: Moment) -> float:
    """Return 1 throughout."""
    return 1.0


def _linear(now: Moment) -> float:
    """Return 1 - p."""
    return 1.0 - now.progress


def _half_cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _cosine(now: Moment) -> float:
    """Return (1 + cos(pi p)) / 2: half a cosine, Loshchilov & Hutter 2016 (arXiv 1608.03983)."""
    return _half_cosine(now.progress)


def _cosine_with_restarts(now: Moment) -> float:
    """Return the half cosine repeated `cycles` times, each from 1 to 0 (warm restarts)."""
    return 0.0 if now.progress >= 1.0 else _half_cosine((now.cycles * now.progress) % 1.0)


def _polynomial(now: Moment) -> float:
    """Return (1 - p)^power."""
    return math.pow(1.0 - now.progress, now.power)


def _rex(now: Moment) -> float:
    """Return (1 - p) / (1/2 + (1 - p) / 2): reflected exponential, Chen et al. 2021.

    Source: arXiv 2107.04197, section 4. It stays high for long and falls fast at the end.
    """
    left = 1.0 - now.progress
    return left / (0.5 + 0.5 * left)


def _inverse_sqrt(now: Moment) -> float:
    """Return sqrt(w / (w + s)) at step s after w warm-up steps, Vaswani et al. 2017, section 5.3.

    The rate that a run has reached does not depend on how long it will be.
    """
    scale = now.warmup_steps or TIMESCALE_WITHOUT_WARMUP
    return math.sqrt(scale / (scale + now.steps))


def _warmup_stable_decay(now: Moment) -> float:
    """Return 1, and over the last `decay_share` of all steps half a cosine down to 0.

    Source: Hu et al. 2024 (arXiv 2404.06395), section 4; the fall's shape is transformers'.
    """
    decay_steps = min(now.decay_share * now.total_steps, now.total_steps - now.warmup_steps)
    decayed = now.warmup_steps + now.steps - (now.total_steps - decay_steps)
    return 1.0 if decayed <= 0 else _half_cosine(min(1.0, decayed / decay_steps))


LR_SCHEDULES: dict[str, Callable[[Moment], float]] = {
    "constant": _constant,
    "constant_with_warmup": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
    "rex": _rex,
    "inverse_sqrt": _inverse_sqrt,
    "warmup_stable_decay": _warmup_stable_decay,
}
"""What each schedule does after its warm-up: the moment -> share in 0..1."""


def lr_factor(
    name: str,
    step: int,
    total_steps: int,
    *,
    warmup_steps: int = 0,
    min_factor: float = 0.0,
    cycles: int = 1,
    power: float = 1.0,
    decay_share: float = 0.2,
) -> float:
    """Return what the base learning rate is multiplied by for the update number `step` (from 0).

    While step < warmup_steps: step / warmup_steps, except for "constant", which never warms up.
    Then f = min_factor + (1 - min_factor) * shape(p), p = (step - warmup) / (total - warmup)
    held within 0..1. With min_factor 0 this equals the schedules of diffusers 0.35 and
    transformers 4.55 by name.
    """
    if name not in LR_SCHEDULES:
        raise ValueError(f"schedule is {name!r}; known are {', '.join(LR_SCHEDULES)}")
    warmup = 0 if name in WITHOUT_WARMUP else warmup_steps
    if step < warmup:
        return step / warmup
    steps = step - warmup
    progress = min(1.0, steps / max(1, total_steps - warmup))
    moment = Moment(progress, steps, total_steps, warmup, cycles, power, decay_share)
    return min_factor + (1.0 - min_factor) * LR_SCHEDULES[name](moment)
