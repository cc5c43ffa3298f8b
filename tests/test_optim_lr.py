"""Learning-rate schedules: by hand, and equal to diffusers' lambdas."""

from __future__ import annotations

import pytest
import torch
from diffusers import optimization

from dreambooth_core.config.sections.learning_rate import LR_SCHEDULE_CHOICES
from dreambooth_core.optim.lr import LR_SCHEDULES, lr_factor

TOTAL, WARMUP, CYCLES, POWER = 50, 8, 3, 2.0


def diffusers_factors(name: str) -> list[float]:
    """Return diffusers' factors over all steps; polynomial ends at exactly 0 as ours does."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    if name == "polynomial":
        schedule = optimization.get_polynomial_decay_schedule_with_warmup(
            optimizer, WARMUP, TOTAL, lr_end=0.0, power=POWER
        )
    else:
        schedule = optimization.get_scheduler(name, optimizer, None, WARMUP, TOTAL, CYCLES)
    factors = []
    for _ in range(TOTAL + 3):
        factors.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return factors


@pytest.mark.parametrize("name", sorted(set(LR_SCHEDULES) - {"cosine"}))
def test_equals_diffusers(name: str) -> None:
    """At every step of a run with warm-up, and after its end."""
    ours = [
        lr_factor(name, step, TOTAL, warmup_steps=WARMUP, cycles=CYCLES, power=POWER)
        for step in range(TOTAL + 3)
    ]
    assert ours == pytest.approx(diffusers_factors(name), abs=1e-12)


def test_cosine_equals_diffusers_half_cosine() -> None:
    """diffusers counts waves (0.5 by default) where restarts do not come into it."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = optimization.get_cosine_schedule_with_warmup(optimizer, WARMUP, TOTAL)
    factor = schedule.lr_lambdas[0]
    for step in range(TOTAL + 1):
        assert lr_factor("cosine", step, TOTAL, warmup_steps=WARMUP) == pytest.approx(factor(step))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [1.0, 0.853553, 0.5, 0.146447, 0.0]),
        ("cosine_with_restarts", [1.0, 0.5, 1.0, 0.5, 0.0]),
        ("polynomial", [1.0, 0.5625, 0.25, 0.0625, 0.0]),
    ],
)
def test_shapes_by_hand(name: str, expected: list[float]) -> None:
    """Quarters of the run: 1 - p, (1 + cos pi p) / 2, the same twice over, (1 - p)^2."""
    factors = [lr_factor(name, step, 4, cycles=2, power=2.0) for step in range(5)]
    assert factors == pytest.approx(expected, abs=1e-6)


def test_the_floor_stretches_the_fall_and_leaves_the_warm_up() -> None:
    """min_factor 0.2: 0.2 + 0.8 (1 - p); the warm-up still begins at 0."""
    factors = [
        lr_factor("linear", step, 6, warmup_steps=2, min_factor=0.2) for step in (0, 1, 2, 4, 6, 9)
    ]
    assert factors == pytest.approx([0.0, 0.5, 1.0, 0.6, 0.2, 0.2])


def test_warm_up_longer_than_the_run() -> None:
    """The rate is still rising when the run ends; nothing divides by zero."""
    assert lr_factor("linear", 3, 4, warmup_steps=10) == pytest.approx(0.3)
    assert lr_factor("cosine", 10, 4, warmup_steps=10) == 1.0


def test_defaults_are_a_straight_fall_and_one_cycle() -> None:
    """Power 1, one restart, no warm-up, down to 0."""
    assert lr_factor("polynomial", 1, 4) == 0.75
    assert lr_factor("cosine_with_restarts", 2, 4) == pytest.approx(0.5)


def test_every_choice_of_the_settings_exists() -> None:
    """The list that a person picks from and the table are one."""
    assert set(LR_SCHEDULE_CHOICES) == set(LR_SCHEDULES)


def test_an_unknown_schedule_is_named() -> None:
    """The message holds the value."""
    with pytest.raises(ValueError, match="'cosin'; known are constant"):
        lr_factor("cosin", 0, 1)
