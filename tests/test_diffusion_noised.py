"""Noised latents: what goes in and what is asked for, input perturbation and DREAM."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_dream_and_update_latents
from torch import Tensor

from dreambooth_core.diffusion.noise import add_noise, stream
from dreambooth_core.diffusion.noised import NoisedLatents
from dreambooth_core.diffusion.schedule import scaled_linear_alphas_cumprod, snr
from dreambooth_core.diffusion.target import target

ALPHAS = torch.tensor([0.64, 0.36])


def by_hand(kind: str = "epsilon") -> NoisedLatents:
    """Latents 2 with noise 1 at alpha-bar 0.64: x_t = 0.8 x 2 + 0.6 x 1 = 2.2."""
    one = torch.ones(1, 1, 1, 1)
    return NoisedLatents(2 * one, one, torch.tensor([0]), ALPHAS, kind)


def random_noised(kind: str = "epsilon") -> NoisedLatents:
    """Random latents at some of Stable Diffusion's timesteps."""
    latents, noise = torch.randn(2, 4, 4, 6, 6, generator=stream(0, "t", 0))
    alphas = scaled_linear_alphas_cumprod(0.00085, 0.012, 1000)
    return NoisedLatents(latents, noise, torch.tensor([0, 300, 700, 999]), alphas, kind)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_input_target_and_snr_are_those_of_the_formulas(kind: str) -> None:
    noised = random_noised(kind)
    parts = (noised.latents, noised.noise, noised.alphas_cumprod, noised.timesteps)
    assert torch.equal(noised.noisy_latents(), add_noise(*parts))
    assert torch.equal(noised.target(), target(kind, *parts))
    assert torch.equal(noised.snr(), snr(noised.alphas_cumprod, noised.timesteps))


@pytest.mark.parametrize(("kind", "wanted"), [("epsilon", 1.0), ("v_prediction", -0.4)])
def test_a_perturbation_is_in_the_input_alone(kind: str, wanted: float) -> None:
    """x_t = 0.8 x 2 + 0.6 x (1 + 0.5) = 2.5; the target knows nothing of the 0.5."""
    noised = replace(by_hand(kind), perturbation=torch.full((1, 1, 1, 1), 0.5))
    assert noised.noisy_latents().item() == pytest.approx(2.5)
    assert noised.target().item() == pytest.approx(wanted)


def test_dream_by_hand() -> None:
    """Guess 0.5 of noise 1, lambda 0.6: noise 1 + 0.6 x 0.5 = 1.3, x_t 1.6 + 0.6 x 1.3 = 2.38."""
    rectified = by_hand().rectified(torch.full((1, 1, 1, 1), 0.5), 1.0)
    assert rectified.target().item() == pytest.approx(1.3)
    assert rectified.noisy_latents().item() == pytest.approx(2.38)


def test_dream_for_v_by_hand() -> None:
    """v 0 says noise 0.6 x 2.2 = 1.32; 1 + 0.6 x (1 - 1.32) = 0.808; v = 0.8 x 0.808 - 0.6 x 2."""
    rectified = by_hand("v_prediction").rectified(torch.zeros(1, 1, 1, 1), 1.0)
    assert rectified.target().item() == pytest.approx(0.8 * 0.808 - 1.2)
    assert rectified.noisy_latents().item() == pytest.approx(1.6 + 0.6 * 0.808)


class Unet:
    """A network as diffusers calls it."""

    def __call__(self, noisy: Tensor, timesteps: Tensor, states: Any) -> Any:
        """Return some function of the input."""
        return SimpleNamespace(sample=torch.tanh(noisy) * 0.7)


@pytest.mark.parametrize("preservation", [0.5, 1.0, 3.0])
def test_dream_equals_diffusers(preservation: float) -> None:
    """Their function for epsilon, on the same scheduler."""
    noised, unet = random_noised(), Unet()
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    noisy, wanted = compute_dream_and_update_latents(
        unet=unet,
        noise_scheduler=scheduler,
        timesteps=noised.timesteps,
        noise=noised.noise.clone(),
        noisy_latents=noised.noisy_latents(),
        target=noised.target(),
        encoder_hidden_states=None,
        dream_detail_preservation=preservation,
    )
    guess = unet(noised.noisy_latents(), noised.timesteps, None).sample
    ours = noised.rectified(guess, preservation)
    torch.testing.assert_close(ours.noisy_latents(), noisy, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.target(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_network_without_mistakes_is_not_rectified(kind: str) -> None:
    noised = random_noised(kind)
    ours = noised.rectified(noised.target(), 1.0)
    torch.testing.assert_close(ours.noise, noised.noise, rtol=1e-3, atol=1e-4)


def test_dream_is_strongest_at_the_noisy_end_and_weaker_with_more_preservation() -> None:
    noised = random_noised()
    guess = torch.zeros_like(noised.noise)

    def moved(preservation: float) -> Tensor:
        change = noised.rectified(guess, preservation).noise - noised.noise
        return change.abs().mean(dim=(1, 2, 3)) / noised.noise.abs().mean(dim=(1, 2, 3))

    assert moved(0.0).tolist() == pytest.approx([1.0] * 4)
    assert (moved(1.0).diff() > 0).all()
    assert (moved(5.0) < moved(1.0)).all()


def test_dream_keeps_the_perturbation_of_the_input() -> None:
    """Noise 1.3 in both, and 0.5 more in the input: 1.6 + 0.6 x 1.8."""
    noised = replace(by_hand(), perturbation=torch.full((1, 1, 1, 1), 0.5))
    rectified = noised.rectified(torch.full((1, 1, 1, 1), 0.5), 1.0)
    assert rectified.target().item() == pytest.approx(1.3)
    assert rectified.noisy_latents().item() == pytest.approx(1.6 + 0.6 * 1.8)


def test_no_gradient_goes_through_the_mistake() -> None:
    guess = torch.full((1, 1, 1, 1), 0.5, requires_grad=True)
    rectified = by_hand().rectified(guess, 1.0)
    assert not rectified.noise.requires_grad
    half = by_hand().rectified(torch.full((1, 1, 1, 1), 0.5, dtype=torch.float16), 1.0)
    assert half.noise.dtype == torch.float32
