"""Whether the weights of a network move, from a few numbers of each of its tensors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

NUMBERS_PER_TENSOR = 256
"""Of SDXL's UNet, which has 1,680 tensors, that is 1.7 MB."""


class WeightSample:
    """Evenly spaced numbers of every tensor, kept as they were at first."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        """Keep what the tensors hold now; of a small tensor that is all."""
        self._tensors = list(tensors)
        self.is_coarse = any(t.dtype in (torch.bfloat16, torch.float16) for t in self._tensors)
        self._first = self._now()
        self._first_norm = self._norm(self._first)

    def __len__(self) -> int:
        """Return how many numbers are looked at."""
        return self._first.numel()

    def moved(self) -> bool:
        """Whether any of the numbers is another than at first."""
        return not torch.equal(self._now(), self._first)

    def growth(self) -> float:
        """Return how many times their norm at first the numbers' norm is; 1 if they were all 0."""
        return self._norm(self._now()) / self._first_norm if self._first_norm else 1.0

    @torch.no_grad()
    def _now(self) -> Tensor:
        """Return the numbers in fp32, which holds every value of the 16-bit formats."""
        return torch.cat([_spread(t.detach()).float() for t in self._tensors])

    @staticmethod
    def _norm(numbers: Tensor) -> float:
        return float(numbers.double().norm())


def _spread(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    return flat[:: -(-flat.numel() // NUMBERS_PER_TENSOR) or 1]
