"""Trains the VAE: from the inside out, then all of it on pieces of pictures, then the decoder.

The inner levels learn first, on pictures reduced to 32 and 64 pixels, at a fraction of the cost.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from dreambooth_core.world.build.fitting import Fit, Rates, keep, say
from dreambooth_core.world.build.networks import PICTURE_SIZE, new_vae
from dreambooth_core.world.build.parallel import join
from dreambooth_core.world.pictures import render, sample_scene

PICTURES = 5000
PIECE_PIXELS = 64
WHOLE_EVERY_STEPS = 12
KL_WEIGHT = 1e-6


@dataclass(frozen=True)
class Phase:
    """A part of the training: how many levels, on what size, for how long."""

    name: str
    levels: int
    picture_size: int
    batch_size: int
    steps: int
    rates: Rates
    decoder_only: bool = False


PHASES = (
    Phase("inner levels, 32 px", 2, 32, 8, 600, Rates(2e-3, 2e-4)),
    Phase("three levels, 64 px", 3, 64, 8, 300, Rates(1.5e-3, 8e-4)),
    Phase("all levels", 4, 128, 6, 1300, Rates(1.2e-3, 2e-4, 30)),
    Phase("all levels, again", 4, 128, 6, 1000, Rates(9e-4, 1e-4, 30)),
    Phase("decoder", 4, 128, 6, 4000, Rates(8e-4, 2e-5, 30), decoder_only=True),
)


def train_autoencoder(out: Path, phases: tuple[Phase, ...] = PHASES) -> AutoencoderKL:
    """Run all phases and keep the VAE in `out`/vae.pt; under torchrun on several processes."""
    rank = join()
    torch.manual_seed(100 + rank)
    pictures = draw_pictures(PICTURES, seed=rank + 1)
    vae = new_vae(phases[0].levels)
    for phase in phases:
        while len(vae.config.block_out_channels) < phase.levels:
            vae = with_one_more_level(vae)
        run_phase(vae, phase, pictures)
        if rank == 0:
            keep(out / "vae.pt", vae.state_dict())
            say(f"{phase.name}: {psnr(vae, pictures[:64], phase.picture_size):.2f} dB")
    return vae


def draw_pictures(count: int, seed: int) -> Tensor:
    """Return pictures (N, 3, 128, 128) of random scenes as bytes."""
    rng = random.Random(seed)
    arrays = [np.asarray(render(sample_scene(rng))) for _ in range(count)]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def as_input(pictures: Tensor, size: int = PICTURE_SIZE) -> Tensor:
    """Return byte pictures as floats in -1..1, reduced to `size`."""
    pixels = pictures.float() / 127.5 - 1
    return pixels if size == PICTURE_SIZE else F.interpolate(pixels, (size, size), mode="area")


def with_one_more_level(vae: AutoencoderKL) -> AutoencoderKL:
    """Return a VAE with a new outermost level around the levels of `vae`."""
    grown = new_vae(len(vae.config.block_out_channels) + 1)
    state = grown.state_dict()
    for key, weight in vae.state_dict().items():
        if key.startswith("encoder.conv_in"):
            continue
        if key.startswith("encoder.down_blocks."):
            _, _, number, rest = key.split(".", 3)
            key = f"encoder.down_blocks.{int(number) + 1}.{rest}"
        if key in state and state[key].shape == weight.shape:
            state[key] = weight
    grown.load_state_dict(state)
    return grown


def run_phase(vae: AutoencoderKL, phase: Phase, pictures: Tensor) -> None:
    """Train one phase in place."""
    vae.requires_grad_(not phase.decoder_only)
    if phase.decoder_only:
        vae.decoder.requires_grad_(True)
        vae.post_quant_conv.requires_grad_(True)
    learning = [parameter for parameter in vae.parameters() if parameter.requires_grad]

    def loss_of_step(step: int) -> Tensor:
        pixels = _draw_batch(pictures, phase, step)
        with torch.set_grad_enabled(not phase.decoder_only):
            posterior = vae.encode(pixels).latent_dist
        loss = picture_loss(vae.decode(posterior.sample()).sample, pixels)
        return loss if phase.decoder_only else loss + KL_WEIGHT * posterior.kl().mean()

    Fit([(learning, phase.rates)], ema_decay=0.998).run(phase.steps, loss_of_step, phase.name)


def picture_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    """Return absolute plus squared error plus the absolute error of both gradients."""
    error = decoded - pixels
    loss = error.abs().mean() + error.square().mean()
    for axis in (-1, -2):
        loss = loss + error.diff(dim=axis).abs().mean()
    return loss


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: Tensor, size: int) -> float:
    """Return the mean peak signal-to-noise ratio of the reconstructions in dB."""
    pixels = as_input(pictures, size)
    decoded = torch.cat(
        [vae.decode(vae.encode(p).latent_dist.mean).sample for p in pixels.split(8)]
    )
    error = (decoded.clamp(-1, 1) - pixels).square().mean((1, 2, 3))
    return float((10 * torch.log10(4 / error)).mean())


def _draw_batch(pictures: Tensor, phase: Phase, step: int) -> Tensor:
    """Return random pictures, most of the time only a piece of each at full size."""
    whole = phase.picture_size < PICTURE_SIZE or step % WHOLE_EVERY_STEPS == WHOLE_EVERY_STEPS - 1
    count = 2 if whole and phase.picture_size == PICTURE_SIZE else phase.batch_size
    pixels = as_input(pictures[torch.randint(len(pictures), (count,))], phase.picture_size)
    if whole:
        return pixels
    places = (PICTURE_SIZE - PIECE_PIXELS) // 8 + 1
    top, left = (8 * int(torch.randint(places, ())) for _ in range(2))
    return pixels[..., top : top + PIECE_PIXELS, left : left + PIECE_PIXELS]
