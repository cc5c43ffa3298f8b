"""Random numbers of a training step and the forward process. Shapes: B, C, h, w latents."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

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


def multires_noise(
    noise: Tensor, generator: torch.Generator, iterations: int, discount: float
) -> Tensor:
    """Return noise (B,C,h,w) with coarser noise laid over it, each example scaled to deviation 1.

    n + sum_i d^i up(n_i) for i = 0 .. iterations - 1, where n_i ~ N(0, 1) has h / r^i rows and
    w / r^i columns, r is drawn anew from 2 .. 4 for every i, and `up` is bilinear; it ends early
    with a layer of one row or column. 0 iterations give the noise as it is. Source: Whitaker,
    "Multi-Resolution Noise for Diffusion Model Training" (2023), with the layers' sizes, and so
    the meaning of both numbers, of kohya's trainer. That one scales a batch as a whole; here no
    example depends on another.
    """
    size = (noise.shape[2], noise.shape[3])
    layered = noise
    for i in range(iterations):
        ratio = 2 + 2 * torch.rand((), generator=generator, device=generator.device).item()
        rows, columns = (max(1, int(side / ratio**i)) for side in size)
        shape = (*noise.shape[:2], rows, columns)
        layer = torch.randn(shape, generator=generator, device=generator.device)
        layered = layered + discount**i * interpolate(layer, size=size, mode="bilinear")
        if 1 in (rows, columns):
            break
    return layered / layered.std(dim=(1, 2, 3), keepdim=True) if iterations else noise


def sample_timesteps(
    count: int,
    generator: torch.Generator,
    n: int,
    *,
    lowest: int = 0,
    highest: int | None = None,
) -> Tensor:
    """Return timesteps drawn uniformly from lowest .. highest, both included, (B,) int64.

    They are below n in any case.
    """
    end = n if highest is None else min(n, highest + 1)
    return torch.randint(lowest, end, (count,), generator=generator, device=generator.device)


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """Return x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, (B,C,h,w).

    Source: Ho et al. 2020 (arXiv 2006.11239), eq. 4.
    """
    signal, sigma = signal_and_noise_scale(alphas_cumprod, timesteps, latents)
    return signal * latents + sigma * noise
