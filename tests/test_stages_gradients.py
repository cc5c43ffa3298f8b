"""Norms of gradients and clipping them, together or the text encoders' apart, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.serialize import from_dict
from dreambooth_core.stages.gradients import GradientLimits, clip, gradient_sets, norms_of


def make_optimizer(**gradients: list[float]) -> Any:
    """Groups of one weight each, with these gradients; an empty one has none."""
    groups = []
    for name, values in gradients.items():
        weight = nn.Parameter(torch.zeros(len(values) or 1))
        weight.grad = torch.tensor(values) if values else None
        groups.append({"name": name, "params": [weight]})
    return torch.optim.SGD(groups, lr=1.0)


def clipped(optimizer: Any, limits: GradientLimits) -> tuple[list[float], dict[str, list[float]]]:
    """Return the norms before, and the gradients after clipping by group."""
    sets = gradient_sets(optimizer, limits)
    norms = norms_of(sets).tolist()
    clip(sets, norms)
    grads = {g["name"]: g["params"][0].grad for g in optimizer.param_groups}
    return norms, {name: [] if grad is None else grad.tolist() for name, grad in grads.items()}


def test_all_have_one_norm_by_default() -> None:
    """3, 4 and 12: the norm is 13, and 6.5 halves them all."""
    optimizer = make_optimizer(unet=[3.0, 4.0], text_encoder=[12.0])
    norms, after = clipped(optimizer, GradientLimits(6.5))
    assert norms == [13.0]
    assert after == {"unet": [1.5, 2.0], "text_encoder": [6.0]}


def test_text_encoders_have_one_of_their_own_if_it_is_set() -> None:
    """The UNet's norm 5 is over 2.5; the encoders' sqrt(8^2 + 6^2) = 10 is over 1."""
    optimizer = make_optimizer(unet=[3.0, 4.0], text_encoder=[8.0], text_encoder_2=[6.0])
    norms, after = clipped(optimizer, GradientLimits(2.5, 1.0))
    assert norms == [5.0, 10.0]
    assert after["unet"] == [1.5, 2.0]
    assert after["text_encoder"] == pytest.approx([0.8])
    assert after["text_encoder_2"] == pytest.approx([0.6])


def test_0_leaves_gradients_as_they_are_and_so_does_a_norm_below_the_limit() -> None:
    for limits in (GradientLimits(0.0), GradientLimits(100.0), GradientLimits(0.0, 100.0)):
        optimizer = make_optimizer(unet=[3.0, 4.0], text_encoder=[12.0])
        _, after = clipped(optimizer, limits)
        assert after == {"unet": [3.0, 4.0], "text_encoder": [12.0]}


def test_a_part_without_gradients_has_no_norm() -> None:
    norms, _ = clipped(make_optimizer(unet=[3.0, 4.0], text_encoder=[]), GradientLimits(1.0, 1.0))
    assert norms == [5.0]
    norms, after = clipped(make_optimizer(text_encoder=[3.0, 4.0]), GradientLimits(1.0, 2.5))
    assert (norms, after["text_encoder"]) == ([5.0], [1.5, 2.0])


def test_a_gradient_that_is_no_number_shows_in_the_norm() -> None:
    sets = gradient_sets(make_optimizer(unet=[math.nan], text_encoder=[1.0]), GradientLimits(1, 1))
    assert not math.isfinite(math.hypot(*norms_of(sets).tolist()))


def test_the_limits_are_configured() -> None:
    changes = {"batch": {"max_grad_norm": 2.0}, "optimizer": {"text_encoder_max_grad_norm": 0.5}}
    config = from_dict(TrainConfig, {"model": "ada", **changes})
    assert GradientLimits.of(config) == GradientLimits(2.0, 0.5)
    assert GradientLimits.of(TrainConfig(model="ada")) == GradientLimits(1.0, 0.0)
