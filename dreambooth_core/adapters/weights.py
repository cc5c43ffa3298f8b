"""What a LoRA does to a weight, as plain formulas.

Shapes: O outputs, I inputs, k k the kernel of a convolution (left out for a matrix), r the rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """One layer's LoRA: delta W = (alpha / r) up down, and DoRA's column lengths if it has them."""

    down: Tensor  # (r, I, k, k)
    up: Tensor  # (O, r, 1, 1)
    alpha: float
    dora_scale: Tensor | None = None  # (1, I, 1, 1)

    @property
    def rank(self) -> int:
        """The rank."""
        return int(self.down.shape[0])


def delta(low_rank: LowRank) -> Tensor:
    """Return (alpha / r) up down, (O, I, k, k). Hu et al. 2021 (arXiv 2106.09685), equation 3."""
    product: Tensor = low_rank.up.flatten(1) @ low_rank.down.flatten(1)  # (O, I k k)
    change: Tensor = product * (low_rank.alpha / low_rank.rank)
    shaped: Tensor = change.reshape(len(product), *low_rank.down.shape[1:])
    return shaped


def column_norms(weight: Tensor) -> Tensor:
    """Return the length of the weights of each input, (1, I, 1, 1) of (O, I, k, k)."""
    others = [axis for axis in range(weight.dim()) if axis != 1]
    norms: Tensor = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
    return norms


def with_columns_of_length(weight: Tensor, lengths: Tensor) -> Tensor:
    """Return the weight with each input's column (O, k, k) at the given length, (1, I, 1, 1).

    Liu et al. 2024 (arXiv 2402.09353), equation 5; no gradient passes through the present length
    (section 4.3). The columns are the inputs', as in the paper and in the WebUI's own code; peft's
    DoRA takes the outputs' rows, whose scales the WebUI would misread.
    """
    return weight * (lengths / column_norms(weight.detach()))


def applied(weight: Tensor, low_rank: LowRank, strength: float = 1.0) -> Tensor:
    """Return the weight as the WebUI computes it with a LoRA at a strength; shape as `weight`.

    A matrix may come with the LoRA of a convolution of one pixel, and the other way round.
    """
    change = delta(low_rank).reshape(weight.shape)
    if low_rank.dora_scale is not None:
        lengths = low_rank.dora_scale.reshape(1, -1, *[1] * (weight.dim() - 2))
        change = with_columns_of_length(weight + change, lengths) - weight
    return weight + strength * change


def nearest_low_rank(change: Tensor, rank: int) -> LowRank:
    """Return the LoRA of at most this rank that is nearest to a change of a weight (O, I, k, k).

    Its singular values are split evenly, and alpha is the rank, so that the scale is 1. Eckart &
    Young 1936: no other product of this rank is nearer in the sum of squares.
    """
    matrix = change.float().flatten(1)  # (O, I k k)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    up = left[:, :kept] * root
    down = root[:, None] * right[:kept]
    ones = [1] * (change.dim() - 2)
    return LowRank(
        down=down.reshape(kept, *change.shape[1:]).contiguous(),
        up=up.reshape(len(up), kept, *ones).contiguous(),
        alpha=float(kept),
    )
