"""Training targets by hand and against diffusers."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from dreambooth_core.diffusion.noise import add_noise, stream
from dreambooth_core.diffusion.schedule import scaled_linear_alphas_cumprod
from dreambooth_core.diffusion.target import TARGETS, predicted_noise, target

ALPHAS = torch.tensor([0.64, 0.36])
TIMESTEPS = torch.tensor([0, 1])


def test_epsilon_is_the_noise() -> None:
    """Unchanged, whatever the latents and timesteps."""
    noise = torch.randn(2, 4, 3, 3, generator=stream(0, "t", 0))
    assert torch.equal(target("epsilon", noise * 5, noise, ALPHAS, TIMESTEPS), noise)


def test_v_by_hand() -> None:
    """x0 = 2, eps = 1. 0.8 * 1 - 0.6 * 2 = -0.4 and 0.6 * 1 - 0.8 * 2 = -1."""
    latents, noise = torch.full((2, 1, 1, 1), 2.0), torch.ones(2, 1, 1, 1)
    result = target("v_prediction", latents, noise, ALPHAS, TIMESTEPS)
    torch.testing.assert_close(result.flatten(), torch.tensor([-0.4, -1.0]))


def test_v_equals_diffusers() -> None:
    """DDPMScheduler.get_velocity on Stable Diffusion's schedule."""
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    alphas_cumprod = scaled_linear_alphas_cumprod(0.00085, 0.012, 1000)
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=stream(0, "t", 1))
    timesteps = torch.tensor([0, 400, 999])
    ours = target("v_prediction", latents, noise, alphas_cumprod, timesteps)
    torch.testing.assert_close(ours, scheduler.get_velocity(latents, noise, timesteps))


def test_v_and_the_noisy_latents_give_back_latents_and_noise() -> None:
    """(x_t, v) is (x0, eps) rotated: x0 = a x_t - s v and eps = s x_t + a v with a^2 + s^2 = 1."""
    latents, noise = torch.randn(2, 2, 4, 3, 3, generator=stream(0, "t", 2))
    noisy = add_noise(latents, noise, ALPHAS, TIMESTEPS)
    v = target("v_prediction", latents, noise, ALPHAS, TIMESTEPS)
    a, s = (x.sqrt().reshape(2, 1, 1, 1) for x in (ALPHAS, 1 - ALPHAS))
    torch.testing.assert_close(a * noisy - s * v, latents)
    torch.testing.assert_close(s * noisy + a * v, noise)


@pytest.mark.parametrize("kind", sorted(TARGETS))
def test_a_perfect_prediction_says_which_noise_there_is(kind: str) -> None:
    latents, noise = torch.randn(2, 2, 4, 3, 3, generator=stream(0, "t", 2))
    noisy = add_noise(latents, noise, ALPHAS, TIMESTEPS)
    perfect = target(kind, latents, noise, ALPHAS, TIMESTEPS)
    torch.testing.assert_close(predicted_noise(kind, perfect, noisy, ALPHAS, TIMESTEPS), noise)


def test_noise_of_v_by_hand() -> None:
    """alpha-bar 0.64, x_t 2, v 1: 0.6 x 2 + 0.8 x 1 = 2."""
    x_t, v = torch.full((1, 1, 1, 1), 2.0), torch.ones(1, 1, 1, 1)
    noise = predicted_noise("v_prediction", v, x_t, ALPHAS, TIMESTEPS[:1])
    assert noise.item() == pytest.approx(2.0)


def test_an_unknown_type_is_named() -> None:
    """The message holds the value and what is known."""
    with pytest.raises(ValueError, match="'sample'; known are epsilon, v_prediction"):
        target("sample", torch.zeros(1), torch.zeros(1), ALPHAS, torch.tensor([0]))
    with pytest.raises(ValueError, match="'sample'"):
        predicted_noise("sample", torch.zeros(1), torch.zeros(1), ALPHAS, torch.tensor([0]))
    assert set(TARGETS) == {"epsilon", "v_prediction"}
