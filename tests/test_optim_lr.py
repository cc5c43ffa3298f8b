"""Learning-rate schedules: by hand, and equal to those of diffusers and transformers."""

from __future__ import annotations

import ast
import inspect
import math

import pytest
import torch
from diffusers import optimization
from transformers import optimization as transformers_optimization

from dreambooth_core.config.sections.learning_rate import LR_SCHEDULE_CHOICES
from dreambooth_core.optim import lr
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
    return followed(schedule, optimizer)


def followed(
    schedule: torch.optim.lr_scheduler.LambdaLR, optimizer: torch.optim.SGD
) -> list[float]:
    """Return the factors of a scheduler over all steps and a few more."""
    factors = []
    for _ in range(TOTAL + 3):
        factors.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return factors


OF_DIFFUSERS = {kind.value for kind in optimization.SchedulerType} & set(LR_SCHEDULES)


@pytest.mark.parametrize("name", sorted(OF_DIFFUSERS - {"cosine"}))
def test_equals_diffusers(name: str) -> None:
    """At every step of a run with warm-up, and after its end."""
    ours = [
        lr_factor(name, step, TOTAL, warmup_steps=WARMUP, cycles=CYCLES, power=POWER)
        for step in range(TOTAL + 3)
    ]
    assert ours == pytest.approx(diffusers_factors(name), abs=1e-12)


@pytest.mark.parametrize("warmup", [0, WARMUP])
def test_inverse_sqrt_equals_transformers(warmup: int) -> None:
    """Also without a warm-up, where both take a scale of 10,000 steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = transformers_optimization.get_inverse_sqrt_schedule(optimizer, warmup)
    ours = [lr_factor("inverse_sqrt", s, TOTAL, warmup_steps=warmup) for s in range(TOTAL + 3)]
    assert ours == pytest.approx(followed(schedule, optimizer), abs=1e-12)


@pytest.mark.parametrize(("floor", "first"), [(0.0, 0), (0.25, WARMUP)])
def test_warmup_stable_decay_equals_transformers(floor: float, first: int) -> None:
    """A fifth of 50 steps are 10; where there is a floor, theirs begins the warm-up there too."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = transformers_optimization.get_wsd_schedule(
        optimizer, WARMUP, 10, num_training_steps=TOTAL, min_lr_ratio=floor
    )
    ours = [
        lr_factor(
            "warmup_stable_decay",
            step,
            TOTAL,
            warmup_steps=WARMUP,
            min_factor=floor,
            decay_share=0.2,
        )
        for step in range(TOTAL + 3)
    ]
    assert ours[first:] == pytest.approx(followed(schedule, optimizer)[first:], abs=1e-12)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, [1, 1, 1, 1, 1]), (0.5, [1, 1, 1, 0.5, 0]), (1.0, [1, 0.853553, 0.5, 0.146447, 0])],
)
def test_the_share_says_when_the_decay_begins(share: float, expected: list[float]) -> None:
    factors = [lr_factor("warmup_stable_decay", step, 4, decay_share=share) for step in range(5)]
    assert factors == pytest.approx(expected, abs=1e-6)


def test_a_decay_that_the_warm_up_reaches_into_begins_after_it() -> None:
    """8 steps, 6 of warm-up: 2 are left, although half of all would be 4."""
    factors = [
        lr_factor("warmup_stable_decay", step, 8, warmup_steps=6, decay_share=0.5)
        for step in (3, 6, 7, 8)
    ]
    assert factors == pytest.approx([0.5, 1.0, 0.5, 0.0])


def test_rex_by_the_formula_of_its_paper() -> None:
    """Equation (1 - t/T) / (1/2 + 1/2 (1 - t/T)): 1, .75/.875, .5/.75, .25/.625, 0."""
    factors = [lr_factor("rex", step, 4) for step in range(5)]
    assert factors == pytest.approx([1.0, 6 / 7, 2 / 3, 0.4, 0.0])


def test_inverse_sqrt_by_hand() -> None:
    """After 4 steps of warm-up: sqrt(4 / (4 + s)); four times the steps halve the rate."""
    factors = [lr_factor("inverse_sqrt", step, 99, warmup_steps=4) for step in (2, 4, 16)]
    assert factors == pytest.approx([0.5, 1.0, 0.5])
    assert lr_factor("inverse_sqrt", 8, 99, warmup_steps=4) == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize("name", sorted(LR_SCHEDULES))
def test_every_schedule_stays_between_the_floor_and_the_full_rate(name: str) -> None:
    factors = [
        lr_factor(name, step, TOTAL, warmup_steps=WARMUP, min_factor=0.3, cycles=2, power=3.0)
        for step in range(WARMUP, 2 * TOTAL)
    ]
    assert all(0.3 <= factor <= 1.0 for factor in factors)
    assert factors[0] == 1.0


def test_the_page_can_draw_them_without_torch() -> None:
    """The module imports the standard library only."""
    tree = ast.parse(inspect.getsource(lr))
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported == {"__future__", "math", "collections.abc", "dataclasses"}


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
