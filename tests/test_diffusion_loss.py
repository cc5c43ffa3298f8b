"""Losses by hand; prior preservation and gradient accumulation are exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dreambooth_core.diffusion.loss import min_snr_weights, per_example_mse, weighted_mean
from dreambooth_core.diffusion.noise import stream


def test_mse_by_hand_keeps_the_batch_axis() -> None:
    """Errors (1, 3) and (0, 2): (1 + 9) / 2 = 5 and (0 + 4) / 2 = 2."""
    pred = torch.tensor([[[[1.0, 3.0]]], [[[5.0, 2.0]]]])
    truth = torch.tensor([[[[0.0, 0.0]]], [[[5.0, 4.0]]]])
    assert per_example_mse(pred, truth).tolist() == [5.0, 2.0]


def test_mse_is_computed_in_fp32() -> None:
    """300^2 overflows fp16 (max 65504); the loss of a half-precision prediction must not."""
    pred = torch.full((1, 1, 1, 2), 300.0, dtype=torch.float16)
    loss = per_example_mse(pred, torch.zeros_like(pred))
    assert loss.dtype == torch.float32
    assert loss.item() == 90_000.0


def test_mse_refuses_shapes_that_would_broadcast() -> None:
    """(2,1,1,1) against (2,1,1,4) is a mistake, not a broadcast."""
    with pytest.raises(ValueError, match=r"\(2, 1, 1, 1\), target is \(2, 1, 1, 4\)"):
        per_example_mse(torch.zeros(2, 1, 1, 1), torch.zeros(2, 1, 1, 4))


def test_min_snr_epsilon_by_hand() -> None:
    """min(SNR, 5) / SNR: 1 below gamma, 5/20 above, 1 in the limit of no signal."""
    result = min_snr_weights(torch.tensor([0.0, 2.0, 5.0, 20.0]), 5.0, "epsilon")
    assert result.tolist() == [1.0, 1.0, 1.0, 0.25]


def test_min_snr_allows_a_gamma_below_1() -> None:
    """0.5 / 2."""
    assert min_snr_weights(torch.tensor([2.0]), 0.5, "epsilon").item() == 0.25


def test_min_snr_v_by_hand() -> None:
    """min(SNR, 5) / (SNR + 1): 0, 3/4, 5/20."""
    result = min_snr_weights(torch.tensor([0.0, 3.0, 19.0]), 5.0, "v_prediction")
    assert result.tolist() == [0.0, 0.75, 0.25]


def test_min_snr_v_is_epsilon_weight_times_the_ratio_of_the_two_losses() -> None:
    """Both weigh the x0 error alike: L_v = (SNR + 1) L_x0 and L_eps = SNR L_x0."""
    snr = torch.tensor([0.01, 0.5, 4.0, 7.0, 300.0])
    per_x0 = min_snr_weights(snr, 5.0, "epsilon") * snr
    torch.testing.assert_close(min_snr_weights(snr, 5.0, "v_prediction") * (snr + 1), per_x0)


@pytest.mark.parametrize(("gamma", "kind"), [(0.0, "epsilon"), (-1.0, "epsilon"), (5.0, "x0")])
def test_min_snr_refuses_what_it_cannot_weigh(gamma: float, kind: str) -> None:
    """Off is the caller's decision, not a weight of 0."""
    with pytest.raises(ValueError, match=r"gamma|prediction_type"):
        min_snr_weights(torch.ones(1), gamma, kind)


def test_weighted_mean_by_hand() -> None:
    """Instance 2 and 4, class 6 with lambda 0.5: (2 + 4 + 3) / 2.5 = 3.6."""
    losses, weights = torch.tensor([2.0, 4.0, 6.0]), torch.tensor([1.0, 1.0, 0.5])
    assert weighted_mean(losses, weights).item() == pytest.approx(3.6)
    assert weighted_mean(losses, weights, 5.0).item() == pytest.approx(1.8)
    assert weighted_mean(losses, weights, torch.tensor(5.0)).item() == pytest.approx(1.8)


def test_weighted_mean_refuses_other_shapes() -> None:
    """A weight per example, not one that broadcasts."""
    with pytest.raises(ValueError, match="losses"):
        weighted_mean(torch.zeros(2), torch.ones(1))


def test_equal_losses_are_their_own_mean_whatever_the_prior_weight() -> None:
    """The normaliser follows the weights, so lambda shifts the balance and not the scale."""
    losses = torch.full((4,), 0.3)
    for prior in (0.0, 0.5, 1.0):
        weights = torch.tensor([1.0, 1.0, prior, prior])
        assert weighted_mean(losses, weights).item() == pytest.approx(0.3)


def gradient_of(parts: list[tuple[Tensor, Tensor]], normalizer: float) -> tuple[float, Tensor]:
    """Return summed loss and gradient of a small model over micro-batches of (input, weights)."""
    weight = torch.linspace(-1, 1, 12).reshape(4, 3).requires_grad_()
    total = 0.0
    for inputs, weights in parts:
        pred = torch.tanh(inputs @ weight)[:, None, None, :]
        losses = per_example_mse(pred, inputs[:, None, None, :3].square())
        loss = weighted_mean(losses, weights, normalizer)
        loss.backward()
        total += loss.item()
    assert weight.grad is not None
    return total, weight.grad


@pytest.mark.parametrize("cuts", [[2, 2], [3, 1], [1, 1, 1, 1]])
def test_accumulation_equals_one_batch(cuts: list[int]) -> None:
    """Equal and unequal micro-batches give the loss and gradient of the single batch of 4."""
    inputs = torch.randn(4, 4, generator=stream(0, "inputs", 0))
    weights = torch.tensor([1.0, 1.0, 0.75, 0.75])
    parts = list(zip(inputs.split(cuts), weights.split(cuts), strict=True))
    whole_loss, whole_gradient = gradient_of([(inputs, weights)], 3.5)
    loss, gradient = gradient_of(parts, 3.5)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    torch.testing.assert_close(gradient, whole_gradient)
