"""Noise schedule: small hand-computed values, and Stable Diffusion's against diffusers."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from dreambooth_core.diffusion.schedule import (
    scaled_linear_alphas_cumprod,
    signal_and_noise_scale,
    snr,
)


def test_three_steps_by_hand() -> None:
    """Roots 0.1, 0.2, 0.3 give betas 0.01, 0.04, 0.09 and products .99, .9504, .864864."""
    result = scaled_linear_alphas_cumprod(0.01, 0.09, 3)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, torch.tensor([0.99, 0.99 * 0.96, 0.99 * 0.96 * 0.91]))


def test_stable_diffusion_schedule_equals_diffusers() -> None:
    """Within the rounding of diffusers' fp32 product of 1000 factors."""
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    ours = scaled_linear_alphas_cumprod(0.00085, 0.012, 1000)
    torch.testing.assert_close(ours, scheduler.alphas_cumprod, rtol=1e-4, atol=1e-7)
    assert ours[0].item() == pytest.approx(0.99915)
    assert ours[-1].item() == pytest.approx(0.0046602, rel=1e-4)


def test_schedule_falls_strictly_within_0_and_1() -> None:
    """Each step keeps less signal than the one before."""
    result = scaled_linear_alphas_cumprod(0.00085, 0.012, 1000)
    assert (result[1:] < result[:-1]).all()
    assert 0 < result[-1] < result[0] < 1


def test_snr_by_hand() -> None:
    """0.8 / 0.2 = 4, 0.5 / 0.5 = 1, 0.1 / 0.9 = 1/9; picked by timestep, repeats allowed."""
    alphas_cumprod = torch.tensor([0.8, 0.5, 0.1])
    result = snr(alphas_cumprod, torch.tensor([2, 0, 1, 0]))
    torch.testing.assert_close(result, torch.tensor([1 / 9, 4.0, 1.0, 4.0]))


def test_scales_are_the_two_sides_of_a_right_triangle() -> None:
    """alpha_bar 0.64 gives 0.8 and 0.6, broadcast over the latents' axes."""
    like = torch.zeros(2, 4, 3, 3, dtype=torch.bfloat16)
    signal, sigma = signal_and_noise_scale(torch.tensor([0.64, 0.36]), torch.tensor([0, 1]), like)
    assert signal.shape == sigma.shape == (2, 1, 1, 1)
    assert signal.dtype == torch.float32
    torch.testing.assert_close(signal.flatten(), torch.tensor([0.8, 0.6]))
    torch.testing.assert_close(sigma.flatten(), torch.tensor([0.6, 0.8]))
