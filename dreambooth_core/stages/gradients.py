"""The gradients of a step: their norms, and clipping them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor

from dreambooth_core.config.schema import TrainConfig


@dataclass(frozen=True)
class GradientLimits:
    """The largest norms that gradients may have; 0 leaves them as they are.

    The text encoders' have a norm of their own if `text_encoder` is set; otherwise there is one
    norm of all gradients together, and the limit is `together`.
    """

    together: float
    text_encoder: float = 0.0

    @classmethod
    def of(cls, config: TrainConfig) -> GradientLimits:
        """Return the limits that are configured."""
        return cls(config.batch.max_grad_norm, config.optimizer.text_encoder_max_grad_norm)


@dataclass(frozen=True)
class GradientSet:
    """Gradients that have one norm and one limit."""

    gradients: list[Tensor]
    max_norm: float


def gradient_sets(optimizer: AcceleratedOptimizer, limits: GradientLimits) -> list[GradientSet]:
    """Return the gradients of all groups, those that are clipped together in one set."""
    apart: list[Tensor] = []
    together: list[Tensor] = []
    for group in optimizer.param_groups:
        is_apart = limits.text_encoder > 0 and group.get("name", "unet") != "unet"
        found = [p.grad for p in group["params"] if p.grad is not None]
        (apart if is_apart else together).extend(found)
    sets = (GradientSet(together, limits.together), GradientSet(apart, limits.text_encoder))
    return [members for members in sets if members.gradients]


def norms_of(sets: Sequence[GradientSet]) -> Tensor:
    """Return the norm of each set's gradients together, (S,)."""
    return torch.stack([torch.stack(torch._foreach_norm(s.gradients)).norm() for s in sets])


def clip(sets: Sequence[GradientSet], norms: Sequence[float]) -> None:
    """Scale the gradients of each set so that their norm is at most the set's limit.

    Pascanu et al. 2012 (arXiv 1211.5063), algorithm 1. The norms are on the host already, so the
    usual step, which is not clipped, is spared a pass over all gradients.
    """
    for members, norm in zip(sets, norms, strict=True):
        if 0 < members.max_norm < norm:
            torch._foreach_mul_(members.gradients, members.max_norm / norm)
