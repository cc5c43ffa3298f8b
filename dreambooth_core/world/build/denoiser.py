"""Trains the UNet, and the text encoder with it, on the latents of many scenes.

Shapes: B examples, C latent channels, h w latent size.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTextModel

from dreambooth_core.diffusion.noise import add_noise
from dreambooth_core.diffusion.schedule import scaled_linear_alphas_cumprod, snr
from dreambooth_core.world.build.autoencoder import as_input
from dreambooth_core.world.build.emphasis import emphasis
from dreambooth_core.world.build.fitting import Fit, Rates, keep
from dreambooth_core.world.build.language import Words
from dreambooth_core.world.build.networks import new_unet
from dreambooth_core.world.build.parallel import join
from dreambooth_core.world.captions import caption
from dreambooth_core.world.palette import KINDS
from dreambooth_core.world.pictures import render, sample_scene

SCENES = 22_000
STEPS = 10_000
BATCH_SIZE = 24
KIND_WEIGHTS = dict(zip(KINDS, (0.27, 0.25, 0.18, 0.06, 0.08, 0.06, 0.05, 0.05), strict=True))
"""How often each kind is drawn here: those with many parts need most of the practice."""
LONGER_CAPTION_SHARE = 0.6
CAPTION_DROPOUT = 0.1
UNIFORM_SHARE = 0.6
EMPHASIS_SHIFT = 0.3
"""Added to the final norm's bias, because the WebUI divides by the mean of the encoder's output."""


@dataclass(frozen=True)
class Latents:
    """The latents (N, C, h, w) of many scenes, normalised, with what is in each picture."""

    values: Tensor
    weights: Tensor  # (N, 1, h, w), mean 1
    parts: list[Mapping[str, str]]
    mean: Tensor  # (C,)
    deviation: Tensor  # (C,)


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, count: int = SCENES, seed: int = 11) -> Latents:
    """Draw scenes, encode them, and give each channel mean 0 and deviation 1."""
    rng = random.Random(seed)
    values, weights, parts = [], [], []
    for _ in range(0, count, 50):
        scenes = [sample_scene(rng, KIND_WEIGHTS) for _ in range(50)]
        pictures = np.stack([np.asarray(render(scene)) for scene in scenes])
        pixels = as_input(torch.from_numpy(pictures).permute(0, 3, 1, 2))
        values.append(vae.encode(pixels).latent_dist.mean)
        weights += [emphasis(scene)[None] for scene in scenes]
        parts += [scene.parts for scene in scenes]
    latents = torch.cat(values)
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    normal = (latents - mean.view(-1, 1, 1)) / deviation.view(-1, 1, 1)
    weight = torch.stack(weights)
    return Latents(normal, weight / weight.mean(), parts, mean, deviation)


def train_denoiser(
    out: Path,
    latents: Latents,
    text_encoder: CLIPTextModel,
    words: Words,
    steps: int = STEPS,
    batch_size: int = BATCH_SIZE,
) -> dict[str, Any]:
    """Train UNet and text encoder together and keep both in `out`/denoiser.pt."""
    rank = join()
    torch.manual_seed(7)
    unet = new_unet()
    with torch.no_grad():
        text_encoder.text_model.final_layer_norm.bias += EMPHASIS_SHIFT
    torch.manual_seed(1000 * (rank + 1))
    rng = random.Random(77 * rank)
    alphas_cumprod = scaled_linear_alphas_cumprod(0.00085, 0.012, 1000)

    def loss_of_step(step: int) -> Tensor:
        chosen = torch.randint(len(latents.values), (batch_size,))
        texts = [_caption_or_nothing(latents.parts[i], rng) for i in chosen.tolist()]
        states = text_encoder(input_ids=words.ids(texts)).last_hidden_state
        clean = latents.values[chosen]
        noise, timesteps = torch.randn_like(clean), draw_timesteps(batch_size, rng)
        noisy = add_noise(clean, noise, alphas_cumprod, timesteps)
        error = unet(noisy, timesteps, states).sample - noise
        weights = latents.weights[chosen]
        return (
            multiscale_error(error, weights) * noisy_end_weights(snr(alphas_cumprod, timesteps))
        ).mean()

    groups = [
        (list(unet.parameters()), Rates(1.2e-3, 5e-5, 100)),
        (list(text_encoder.parameters()), Rates(8e-4, 4e-5, 100)),
    ]
    Fit(groups).run(steps, loss_of_step, "denoiser")
    snapshot = {"unet": unet.state_dict(), "text": text_encoder.state_dict()}
    if rank == 0:
        keep(out / "denoiser.pt", snapshot)
    return snapshot


def draw_timesteps(count: int, rng: random.Random) -> Tensor:
    """Return timesteps (B,): spread evenly over all, or leaning to the noisy end."""
    if rng.random() < UNIFORM_SHARE:
        spread = (torch.rand(1) + torch.arange(count) / count) % 1
        return (spread * 1000).long().clamp(max=999)
    return (1000 * torch.rand(count) ** 0.6).long().clamp(max=999)


def multiscale_error(error: Tensor, weights: Tensor) -> Tensor:
    """Return squared error (B,) of latents (B,C,h,w), of their 4x4 means and of their mean.

    The latents' own error is weighted by `weights` (B,1,h,w).

    A colour named in the caption is mostly the mean of a few latents, which the plain error of
    256 of them hardly feels.
    """
    plain = (weights * error.square()).mean((1, 2, 3))
    coarse = F.avg_pool2d(error, 4).square().mean((1, 2, 3))
    whole = error.mean((2, 3)).square().mean(1)
    return plain + 2 * coarse + 4 * whole


def noisy_end_weights(signal_to_noise: Tensor) -> Tensor:
    """Return weights (B,) of mean 1 that lift the noisy timesteps."""
    weights = (1 + 1 / signal_to_noise.clamp(min=0.02)).clamp(max=8).sqrt()
    return weights / weights.mean()


def _caption_or_nothing(parts: Mapping[str, str], rng: random.Random) -> str:
    """Return a caption, more often one that says much; sometimes none, for guidance."""
    if rng.random() < CAPTION_DROPOUT:
        return ""
    text = caption(parts, rng)
    if rng.random() < LONGER_CAPTION_SHARE:
        return max(text, caption(parts, rng), key=len)
    return text
