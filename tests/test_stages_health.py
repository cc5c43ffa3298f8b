"""Tests of what a run notices of itself: a loss that rises, weights that stand still or grow."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
from torch import nn

from dreambooth_core.stages.divergence import LossWatch
from dreambooth_core.stages.health import (
    COARSE_PATIENCE_STEPS,
    GROWTH_EVERY_STEPS,
    PATIENCE_STEPS,
    Health,
)
from dreambooth_core.stages.movement import NUMBERS_PER_TENSOR, WeightSample

# Both recorded: the embedded world's model learning its subject bob at batch size 1 with Lion, one
# thread of an x86 CPU, torch 2.13, seed 420420; rates 8e-5 (well) and 3e-3 (too high).
WELL = """
.17 .019 .037 .1 .058 .021 .037 .023 .025 .01 .023 .032 .23 .038 .031 .068 .31 .015 .024 .035 .012
.011 .018 .014 .012 .046 .0044 .38 .0039 .012 .0082 .032 .0055 .007 .0038 .0075 .015 .048 .0063
.0069 .038 .26 .24 .0085 .028 .005 .017 .023 .068 .52 .06 .0035 .0026 .021 .072 .02 .093 .0085 .013
.0095 .08 .0069 .0034 .04 .0051 .011 .045 .023 .021 .021 .37 .0036 .13 .0036 .0089 .11 .22 .012
.039 .088 .085 .024 .015 .16 .038 .011 .024 .018 .014 .021 .0082 .0052 .02 .043 .019 .072 .0063
.0047 .0061 .037 .04 .01 .13 .0069 .043 .0071 .14 .058 .045 .01 .017 .03 .044 .097 .013 .014 .022
.0079 .01 .016 .0053 .019 .0061 .045 .0032 .036 .2 .052 .056 .089 .0095 .011 .087 .031 .015 .27
.0055 .013 .029 .068 .0037 .0098 .0083 .021 .033 .0048 .012 .24 .028 .025 .0088 .027 .05 .0052 .011
.013 .0076 .013 .011 .023 .13 .0042 .0079 .0051 .0061 .0053 .032 .036 .027 .0032 .015 .016 .0087
.033 .21 .096 .014 .08 .0047 .0072 .0051 .022 .15 .014 .021 .0099 .23 .043 .041 .017 .039 .014 .035
.014 .0047 .011 .02 .031 .13 .032 .31 .012 .14 .16 .012 .0074 .073 .0041 .025 .041 .038 .012 .028
.035 .13 .031 .0098 .0078 .056 .027 .0073 .024 .0058 .0061 .013 .004 .079 .013 .015 .0085 .0038
.012 .017 .0067 .015 .0038 .0042 .016 .0076 .011 .0074 .35 .011 .14 .028 .052 .035 .0071 .015 .035
"""
TOO_HIGH = """
.17 .064 .22 .54 .36 .092 .21 .23 .12 .073 .58 .83 .91 .56 .26 .81 1.1 .84 .64 1 .6 .52 .68 .88 .57
.9 1 1 1 1 1.8 1.1 1.1 1.1 1.2 1 1.1 1.1 1.2 1.1 1.1 1.1 1.3 1.1 1 1.1 1.1 1.1 1.2 .99 1.1 1.1 1.1 1
1.1 1 1.1 1.1 1.1 .94 1.2 1.1 1.1 .97 1.2 1 1.2 1.1 1.1 1.1 1.1 1.1 1.1 1.1 1.1 1.1 .98 1 1 1.1 1.1
"""

STEPS = 4000


def numbers(text: str) -> list[float]:
    return [float(word) for word in text.split()]


def alarms(losses: list[float]) -> list[int]:
    """The steps, from 1, at which the watch speaks."""
    watch = LossWatch()
    return [step for step, loss in enumerate(losses, 1) if watch.add(loss)]


def by_timestep(draw: random.Random) -> float:
    """A loss that falls 300-fold from the first timestep to the last, as that of the noise does."""
    return 0.003 + 0.9 * math.exp(-6 * draw.random()) * draw.lognormvariate(0, 0.3)


NOISES: dict[str, Callable[[random.Random], float]] = {
    "by timestep": by_timestep,
    "tenfold between steps": lambda draw: draw.lognormvariate(-3, 1.15),
    "a square": lambda draw: draw.gauss(0, 1) ** 2,
    "calm": lambda draw: draw.lognormvariate(0, 0.05),
    "without any noise": lambda draw: 0.5,
}

# -- the loss


def test_recorded_trainings_are_told_apart() -> None:
    well = numbers(WELL)
    assert len(well) == 250 and max(well) / min(well) > 100
    assert alarms(well) == []
    assert alarms(numbers(TOO_HIGH)) == [79]


@pytest.mark.parametrize("name", NOISES)
def test_no_noise_is_taken_for_a_rise_and_a_rise_is_told_once(name: str) -> None:
    draw = random.Random(name)
    usual = [NOISES[name](draw) for _ in range(STEPS)]
    assert alarms(usual) == []
    level = math.exp(sum(map(math.log, usual)) / STEPS)
    spoilt = [1000 * level * draw.lognormvariate(0, 0.1) for _ in range(200)]
    (step,) = alarms([*usual[:400], *spoilt])
    assert 400 < step < 480


def test_a_few_wild_steps_a_slow_trend_and_empty_batches_are_no_rise() -> None:
    draw = random.Random(1)
    usual = [by_timestep(draw) for _ in range(STEPS)]
    wild = [loss * (1e4 if 200 <= step < 210 else 1) for step, loss in enumerate(usual)]
    slow = [loss * 2 ** (step / STEPS) for step, loss in enumerate(usual)]
    assert alarms(wild) == alarms(slow) == alarms([0.0] * 200) == []


# -- the weights


def network(numbers: torch.Tensor) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(numbers)
    return module


@pytest.mark.parametrize("shape", [(3,), (NUMBERS_PER_TENSOR,), (7, 1000), ()])
def test_a_sample_is_spread_over_each_tensor_and_bounded(shape: tuple[int, ...]) -> None:
    tensor = torch.ones(shape)
    sample = WeightSample([tensor, torch.ones(2)])
    assert 3 <= len(sample) <= NUMBERS_PER_TENSOR + 2
    assert not sample.moved() and sample.growth() == 1
    tensor.view(-1)[0] += 1e-6
    assert sample.moved()
    tensor.mul_(30)
    assert sample.growth() > 10 or tensor.numel() < 3


def after(health: Health, steps: int, rate: float = 1e-3, gradient: float = 1.0) -> list[str]:
    """What is told in so many steps, from the first on."""
    said: list[str] = []
    for step in range(1, steps + 1):
        said += health.after_step(step, 0.5, {"unet": rate}, gradient)
    return said


def test_weights_that_stand_still_are_told_after_some_steps_and_at_the_end() -> None:
    health = Health.of({"unet": network(torch.ones(5)), "text_encoder": network(torch.ones(5))})
    assert after(health, PATIENCE_STEPS - 1) == []
    (told,) = health.after_step(PATIENCE_STEPS, 0.5, {"unet": 1e-3}, 1.0)
    assert told.startswith(f"Step {PATIENCE_STEPS}: None of the 5 weights of the UNet")
    assert "too small for the number format" in told
    assert after(health, 50) == []
    (at_end,) = health.stillness()
    assert "has changed in 60 steps" in at_end, "the text encoder took no part"


@pytest.mark.parametrize(
    ("rate", "gradient", "words"),
    [(0.0, 1.0, "learning rate was 0"), (1e-3, 0.0, "every gradient was 0")],
)
def test_it_is_told_why_they_stand_still(rate: float, gradient: float, words: str) -> None:
    health = Health.of({"unet": network(torch.ones(5))})
    after(health, PATIENCE_STEPS, rate, gradient)
    (told,) = health.stillness()
    assert words in told


def test_a_warm_up_from_0_and_weights_that_move_are_no_alarm() -> None:
    module = network(torch.ones(5))
    health = Health.of({"unet": module})
    assert after(health, 3, rate=0.0) == []
    with torch.no_grad():
        module.weight += 1e-6
    assert after(health, 3 * PATIENCE_STEPS) == health.stillness() == []


def test_16_bits_are_waited_for_longer() -> None:
    health = Health.of({"unet": network(torch.ones(5, dtype=torch.bfloat16))})
    assert after(health, COARSE_PATIENCE_STEPS - 1) == health.stillness() == []
    (told,) = health.after_step(COARSE_PATIENCE_STEPS, 0.5, {"unet": 1e-9}, 1.0)
    assert "fp32" in told and health.stillness()


def test_weights_that_grow_tenfold_are_told_once() -> None:
    module = network(torch.ones(5))
    health = Health.of({"unet": module})
    with torch.no_grad():
        module.weight *= 11
    (told,) = after(health, 3 * GROWTH_EVERY_STEPS)
    assert told.startswith(f"Step {GROWTH_EVERY_STEPS}: The weights of the UNet have grown to 11 ")


def test_a_loss_that_rises_is_told_with_step_and_remedy() -> None:
    health = Health()
    told: list[str] = []
    for step, loss in enumerate(numbers(TOO_HIGH), 1):
        told += health.after_step(step, loss, {}, 1.0)
    assert len(told) == 1
    assert told[0].startswith("Step 79: The loss has left its course")
    assert "5.8 times" in told[0] and "lower the learning rate" in told[0]


def test_frozen_weights_are_not_looked_at() -> None:
    frozen = network(torch.ones(5)).requires_grad_(False)
    assert Health.of({"unet": frozen}).parts == {}
