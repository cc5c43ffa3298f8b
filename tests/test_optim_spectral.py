"""Tests of weights whose spectral norm stays what it was."""

from __future__ import annotations

import pytest
import torch

from dreambooth_core.optim.spectral import SpectralNorms


def weights() -> dict[str, torch.Tensor]:
    """A matrix, a convolution and a bias."""
    generator = torch.Generator().manual_seed(0)
    return {
        "matrix": torch.randn(12, 7, generator=generator),
        "convolution": torch.randn(6, 4, 3, 3, generator=generator),
        "bias": torch.randn(6, generator=generator),
    }


def largest(weight: torch.Tensor) -> float:
    """The largest singular value, from torch's own decomposition."""
    return float(torch.linalg.matrix_norm(weight.flatten(1), ord=2))


def test_a_diagonal_matrix_by_hand() -> None:
    matrix = torch.diag(torch.tensor([3.0, 1.0]))
    norms = SpectralNorms({"matrix": matrix})
    matrix.copy_(torch.diag(torch.tensor([6.0, 1.0])))
    norms.restore({"matrix": matrix})
    assert torch.allclose(matrix, torch.diag(torch.tensor([3.0, 0.5])))


@pytest.mark.parametrize("name", ["matrix", "convolution"])
def test_the_norm_after_a_change_is_the_one_before(name: str) -> None:
    given = weights()
    before = largest(given[name])
    norms = SpectralNorms(given)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        given[name].add_(0.02 * torch.randn(given[name].shape, generator=generator)).mul_(1.05)
        norms.restore(given)
    assert largest(given[name]) == pytest.approx(before, rel=0.01)


def test_only_the_length_is_changed_and_biases_are_left_alone() -> None:
    given = weights()
    norms = SpectralNorms(given)
    changed = {name: weight * 2 + 0.01 for name, weight in given.items()}
    restored = {name: weight.clone() for name, weight in changed.items()}
    norms.restore(restored)
    assert torch.equal(restored["bias"], changed["bias"])
    ratio = restored["matrix"] / changed["matrix"]
    assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio))


def test_nothing_is_remembered_between_steps() -> None:
    given = weights()
    changed = {name: weight + 0.1 for name, weight in given.items()}
    used = SpectralNorms(given)
    used.restore({name: weight * 3 for name, weight in given.items()})
    results = []
    for norms in (used, SpectralNorms(given)):
        results.append({name: weight.clone() for name, weight in changed.items()})
        norms.restore(results[-1])
    assert all(torch.equal(results[0][name], results[1][name]) for name in given)


def test_a_weight_of_zeros_stays_one() -> None:
    given = {"matrix": torch.zeros(3, 3)}
    SpectralNorms(given).restore(given)
    assert torch.equal(given["matrix"], torch.zeros(3, 3))
