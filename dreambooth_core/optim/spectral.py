"""Weights whose spectral norm stays what it was: the most by which a layer stretches its input.

Shapes: O outputs, I inputs (of a convolution times the kernel's places), K directions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FIRST_DIRECTIONS = 32
DIRECTIONS = 8
NOTHING_NEW = 1e-5
"""The share of a vector that rounding leaves of one that lies in the space already."""


class SpectralNorms:
    """Scales weights W back to their first spectral norm: W <- W * s(W_0) / s(W).

    s(W) is the largest singular value of the (O, I) matrix, as in Miyato et al. 2018
    (arXiv 1802.05957), found by Lanczos' method. It begins at the direction found for W_0, near
    which that of a finetuned W stays; so nothing has to be remembered between steps. Where
    d8ahazard's extension computes with s(W_0) W / s(W) in every forward pass, here the weights
    themselves are scaled after each update.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Take the norms of the weights as they are; those of fewer than 2 dimensions have none."""
        self._directions, self._norms = dict[str, Tensor](), dict[str, Tensor]()
        for name, weight in weights.items():
            if weight.dim() > 1:
                _, direction = largest_stretch(weight, _start(weight), FIRST_DIRECTIONS)
                self._directions[name] = direction
                self._norms[name], _ = largest_stretch(weight, direction)

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Scale these weights in place back to their first norms."""
        for name, weight in weights.items():
            if name in self._norms:
                present, _ = largest_stretch(weight, self._directions[name])
                weight.mul_((self._norms[name] / present).nan_to_num(nan=1.0, posinf=1.0))


@torch.no_grad()
def largest_stretch(
    weight: Tensor, start: Tensor, directions: int = DIRECTIONS
) -> tuple[Tensor, Tensor]:
    """Return about the largest singular value, a scalar, and its right singular vector (I).

    It is the largest in the Krylov space of W^T W over `start` (I), whose basis is kept orthogonal:
    Golub & Van Loan, Matrix Computations, 10.1. From below, and far closer than power iteration.
    """
    matrix = weight.flatten(1).float()  # (O, I)
    basis = start[None]  # (K, I)
    for _ in range(min(directions, *matrix.shape) - 1):
        basis = torch.cat([basis, _next_direction(matrix, basis)[None]])
    images = matrix @ basis.t()  # (O, K)
    squares, mixtures = torch.linalg.eigh(images.t() @ images)
    return squares[-1].clamp_min(0).sqrt(), _unit(mixtures[:, -1] @ basis)


def _next_direction(matrix: Tensor, basis: Tensor) -> Tensor:
    """Return what W^T W makes of the last direction and no other one has, of length 1 or 0, (I)."""
    image = matrix.t() @ (matrix @ basis[-1])
    rest = image
    for _ in range(2):  # the second time removes what rounding left
        rest = rest - (basis @ rest) @ basis
    return torch.where(rest.norm() > NOTHING_NEW * image.norm(), _unit(rest), 0.0)


def _start(weight: Tensor) -> Tensor:
    """Return a direction (I) that is the same for the same shape."""
    generator = torch.Generator().manual_seed(0)
    return _unit(torch.randn(weight[0].numel(), generator=generator)).to(weight.device)


def _unit(vector: Tensor) -> Tensor:
    unit: Tensor = vector / vector.norm().clamp_min(torch.finfo(vector.dtype).tiny)
    return unit
