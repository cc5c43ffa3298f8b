"""Noise schedules. Shapes: N training timesteps, B examples."""

from __future__ import annotations

import torch
from torch import Tensor


def scaled_linear_alphas_cumprod(beta_start: float, beta_end: float, steps: int) -> Tensor:
    """Return the cumulative signal share alpha-bar of the "scaled linear" schedule, (N,) fp32.

    beta_t = (sqrt(beta_start) + t / (N - 1) * (sqrt(beta_end) - sqrt(beta_start)))^2 and
    alpha_bar_t = prod_{s <= t} (1 - beta_s). Source: Rombach et al. 2022 (arXiv 2112.10752) as
    released; Stable Diffusion uses 0.00085, 0.012 and 1000. Computed in fp64, rounded once.
    """
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64)  # (N,)
    return torch.cumprod(1.0 - roots**2, dim=0).to(torch.float32)  # (N,)


def snr(alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """Return the signal-to-noise ratio alpha_bar_t / (1 - alpha_bar_t) of each timestep, (B,).

    Source: Kingma et al. 2021 (arXiv 2107.00630), eq. 2 with alpha^2 + sigma^2 = 1.
    """
    alpha_bar = alphas_cumprod.to(timesteps.device)[timesteps]  # (B,)
    return alpha_bar / (1.0 - alpha_bar)


def signal_and_noise_scale(
    alphas_cumprod: Tensor, timesteps: Tensor, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Return sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), (B, 1, ...) with as many axes as `like`.

    Both are fp32 and lie on the device of `like`.
    """
    alpha_bar = alphas_cumprod.to(like.device, torch.float32)[timesteps.to(like.device)]  # (B,)
    alpha_bar = alpha_bar.reshape(-1, *(1 for _ in like.shape[1:]))  # (B, 1, 1, 1)
    return alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt()
