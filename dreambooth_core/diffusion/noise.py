"""Random numbers of a training step and the forward process. Shapes: B, C, h, w latents."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from dreambooth_core.diffusion.schedule import signal_and_noise_scale


def stream(seed: int, name: str, step: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return the random generator that belongs to one purpose of one step.

    The generator's seed is a hash of (seed, name, step), so what a step draws does not depend on
    which steps ran before it in this process: a resumed run draws what the straight run drew.
    """
    digest = hashlib.sha256(f"{seed}\0{name}\0{step}".encode()).digest()
    generator = torch.Generator(device=device)
    generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return generator


def gaussian_noise(
    shape: Sequence[int], generator: torch.Generator, offset_noise: float = 0.0
) -> Tensor:
    """Return fp32 noise eps + s * o with eps ~ N(0, 1) of `shape` (B,C,h,w), o ~ N(0, 1) (B,C,1,1).

    `offset_noise` is s (0 switches the second draw off). It lets training change the mean
    brightness of a picture. Source: Guttenberg, "Diffusion with offset noise" (2023).
    """
    noise = torch.randn(tuple(shape), generator=generator, device=generator.device)  # (B,C,h,w)
    if offset_noise == 0.0:
        return noise
    per_channel = (*shape[:2], *(1 for _ in shape[2:]))
    offset = torch.randn(per_channel, generator=generator, device=generator.device)  # (B,C,1,1)
    return noise + offset_noise * offset


def sample_timesteps(count: int, generator: torch.Generator, n: int) -> Tensor:
    """Return `count` timesteps drawn uniformly from 0 .. n-1, (B,) int64."""
    return torch.randint(0, n, (count,), generator=generator, device=generator.device)


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """Return x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, (B,C,h,w).

    Source: Ho et al. 2020 (arXiv 2006.11239), eq. 4.
    """
    signal, sigma = signal_and_noise_scale(alphas_cumprod, timesteps, latents)
    return signal * latents + sigma * noise
