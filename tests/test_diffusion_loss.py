"""Losses by hand; prior preservation and gradient accumulation are exact."""

from __future__ import annotations

from math import sqrt
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.training_utils import compute_snr
from torch import Tensor

from dreambooth_core.config.sections.loss import HUBER_SCHEDULE_CHOICES, LOSS_TYPE_CHOICES
from dreambooth_core.diffusion.loss import (
    ERRORS,
    HUBER_SCHEDULES,
    debiased_weights,
    example_means,
    huber_error,
    min_snr_weights,
    pseudo_huber_error,
    scaled_prior_weight,
    squared_error,
    weighted_mean,
)
from dreambooth_core.diffusion.noise import stream
from dreambooth_core.diffusion.noised import NoisedLatents
from dreambooth_core.diffusion.schedule import scaled_linear_alphas_cumprod
from dreambooth_core.diffusion.schedule import snr as snr_of
from dreambooth_core.diffusion.target import predicted_noise

NO_DELTA = torch.ones(())


def per_example_mse(pred: Tensor, target: Tensor) -> Tensor:
    """The mean squared error of each example, as training puts it together."""
    return example_means(squared_error(pred, target, NO_DELTA))


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


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_is_what_diffusers_scripts_compute(kind: str) -> None:
    """min(SNR, gamma) over SNR or SNR + 1, with diffusers' own SNR of Stable Diffusion."""
    alphas = scaled_linear_alphas_cumprod(0.00085, 0.012, 1000)
    timesteps = torch.tensor([0, 10, 250, 500, 999])
    theirs = compute_snr(SimpleNamespace(alphas_cumprod=alphas), timesteps)
    capped = torch.stack([theirs, torch.full_like(theirs, 5.0)]).min(dim=0).values
    expected = capped / (theirs if kind == "epsilon" else theirs + 1)
    torch.testing.assert_close(min_snr_weights(snr_of(alphas, timesteps), 5.0, kind), expected)


def test_debiased_epsilon_by_hand() -> None:
    """1 / sqrt(0.25) = 2, 1 / sqrt(4) = 0.5, and above 1000 it stays 1 / sqrt(1000)."""
    weights = debiased_weights(torch.tensor([0.25, 4.0, 1000.0, 4000.0]), "epsilon")
    torch.testing.assert_close(weights, torch.tensor([2.0, 0.5, 0.0316228, 0.0316228]))


def test_debiased_v_by_hand() -> None:
    """Times SNR / (SNR + 1): 2 x 1/5, 1/2 x 4/5, and 0 where nothing but noise is left."""
    weights = debiased_weights(torch.tensor([0.25, 4.0, 0.0]), "v_prediction")
    torch.testing.assert_close(weights, torch.tensor([0.4, 0.4, 0.0]))


def test_debiased_refuses_an_unknown_type() -> None:
    with pytest.raises(ValueError, match="'x0'"):
        debiased_weights(torch.ones(1), "x0")


@pytest.mark.parametrize("weights_of", [debiased_weights, lambda r, k: min_snr_weights(r, 5.0, k)])
def test_weights_of_v_and_epsilon_make_one_objective(weights_of: Any) -> None:
    """A prediction of v, and the noise that it implies: the weighted losses are the same number."""
    alphas = scaled_linear_alphas_cumprod(0.00085, 0.012, 1000)
    timesteps = torch.tensor([1, 100, 400, 700, 999])
    latents, noise, pred = torch.randn(3, 5, 4, 2, 2, generator=stream(0, "t", 3)).double()
    noised = NoisedLatents(latents, noise, timesteps, alphas.double(), "v_prediction")
    guess = predicted_noise("v_prediction", pred, noised.noisy_latents(), alphas, timesteps)
    of_v = (pred - noised.target()).square().mean(dim=(1, 2, 3))
    of_noise = (guess - noise).square().mean(dim=(1, 2, 3))
    ratio = noised.snr()
    weighted = weights_of(ratio, "v_prediction") * of_v
    torch.testing.assert_close(
        weighted, weights_of(ratio, "epsilon") * of_noise, rtol=1e-4, atol=1e-9
    )


# -- Huber


def pair(*differences: float) -> tuple[Tensor, Tensor]:
    """A prediction and a target with these differences, each an example of one number."""
    values = torch.tensor(differences).reshape(-1, 1, 1, 1)
    return values + 1, torch.ones_like(values)


def test_huber_by_hand() -> None:
    """delta 0.5: 0.2^2 = 0.04; beyond, 2 x 0.5 x 2 - 0.25 = 1.75, on both sides."""
    errors = huber_error(*pair(0.2, 2.0, -2.0), torch.full((3,), 0.5))
    torch.testing.assert_close(errors.flatten(), torch.tensor([0.04, 1.75, 1.75]))


def test_huber_is_twice_torchs() -> None:
    pred, target = torch.randn(2, 1, 4, 5, 5, generator=stream(0, "t", 4))
    theirs = torch.nn.functional.huber_loss(pred, target, reduction="none", delta=0.3)
    torch.testing.assert_close(huber_error(pred, target, torch.tensor([0.3])), 2 * theirs)


def test_pseudo_huber_by_hand() -> None:
    """delta 3, d 4: 2 x 3 x (sqrt(16 + 9) - 3) = 12; d 0 is 0."""
    errors = pseudo_huber_error(*pair(4.0, -4.0, 0.0), torch.full((3,), 3.0))
    assert errors.flatten().tolist() == [12.0, 12.0, 0.0]


@pytest.mark.parametrize("error", [huber_error, pseudo_huber_error])
def test_huber_losses_are_the_square_of_small_errors_and_straight_for_large(error: Any) -> None:
    """d = delta / 100 and d = 1000 delta, where the slope is 2 delta."""
    delta = torch.full((1,), 0.1)
    assert error(*pair(0.001), delta).item() == pytest.approx(1e-6, rel=1e-2)
    slope = error(*pair(101.0), delta).item() - error(*pair(100.0), delta).item()
    assert slope == pytest.approx(0.2, rel=1e-2)


@pytest.mark.parametrize("error", [huber_error, pseudo_huber_error])
def test_each_example_has_its_own_delta(error: Any) -> None:
    deltas = torch.tensor([0.1, 10.0])
    apart = [error(*pair(2.0), delta.reshape(1)).item() for delta in deltas]
    assert error(*pair(2.0, 2.0), deltas).flatten().tolist() == pytest.approx(apart)


def test_delta_schedules_by_hand() -> None:
    """N 10, t 0 and 5; alpha-bar 0.5 is sigma 1, so (1 - 0.04) / 4 + 0.04 = 0.28."""
    alphas, timesteps = torch.linspace(1.0, 0.1, 10), torch.tensor([0, 5])
    alphas[5] = 0.5

    def deltas(name: str) -> list[float]:
        values: list[float] = HUBER_SCHEDULES[name](0.04, alphas, timesteps).tolist()
        return values

    assert deltas("constant") == pytest.approx([0.04, 0.04])
    assert deltas("exponential") == pytest.approx([1.0, sqrt(0.04)])
    assert deltas("snr") == pytest.approx([1.0, 0.28])


def test_the_snr_schedule_ends_at_delta_where_there_is_no_signal() -> None:
    delta = HUBER_SCHEDULES["snr"](0.1, torch.tensor([0.9, 0.0]), torch.tensor([1]))
    assert delta.item() == pytest.approx(0.1)


def test_the_settings_offer_what_there_is() -> None:
    assert set(LOSS_TYPE_CHOICES) == set(ERRORS)
    assert set(HUBER_SCHEDULE_CHOICES) == set(HUBER_SCHEDULES)


# -- masks


def test_masked_means_by_hand() -> None:
    """Errors 4 and 8, the second left out: alone 4; with weight 0.5, (4 + 0.5 x 8) / 1.5."""
    errors = torch.tensor([4.0, 8.0]).reshape(1, 1, 1, 2)
    masks = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2)
    assert example_means(errors, masks).tolist() == [4.0]
    assert example_means(errors, masks, 0.5).item() == pytest.approx(8 / 1.5)
    assert example_means(errors, masks, 1.0).tolist() == example_means(errors).tolist() == [6.0]


def test_a_half_shown_part_counts_half() -> None:
    """(4 + 0.5 x 8) / 1.5; with weight 0.2 it is 0.5 + 0.5 x 0.2: (4 + 0.6 x 8) / 1.6."""
    errors = torch.tensor([4.0, 8.0]).reshape(1, 1, 1, 2)
    masks = torch.tensor([1.0, 0.5]).reshape(1, 1, 1, 2)
    assert example_means(errors, masks).item() == pytest.approx(8 / 1.5)
    assert example_means(errors, masks, 0.2).item() == pytest.approx(8.8 / 1.6)


def test_masks_go_for_all_channels_and_examples_stay_apart() -> None:
    errors = torch.rand(2, 4, 3, 3, generator=stream(0, "t", 5))
    masks = torch.zeros(2, 1, 3, 3)
    masks[0, 0, 1, 1] = 1.0
    masks[1] = 1.0
    means = example_means(errors, masks)
    torch.testing.assert_close(means[0], errors[0, :, 1, 1].mean())
    torch.testing.assert_close(means[1], errors[1].mean())


def test_a_mask_that_shows_nothing_makes_no_nan() -> None:
    errors = torch.ones(1, 4, 2, 2, requires_grad=True)
    means = example_means(errors, torch.zeros(1, 1, 2, 2))
    means.sum().backward()
    assert means.tolist() == [0.0]
    assert errors.grad is not None and errors.grad.abs().max() == 0


# -- weights


def test_a_scaled_prior_weight_falls_linearly_to_its_minimum() -> None:
    """From 0.75 to 0.15 in 4 epochs: a step of 0.15 an epoch, then the minimum."""
    weights = [scaled_prior_weight(0.75, 0.15, epoch, 4) for epoch in range(6)]
    assert weights == pytest.approx([0.75, 0.6, 0.45, 0.3, 0.15, 0.15])


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
