"""What the UNet is asked to predict, and what it says. Shapes: B, C, h, w latents; B timesteps."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dreambooth_core.diffusion.schedule import signal_and_noise_scale


def epsilon_target(
    latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor
) -> Tensor:
    """Return the noise itself, (B,C,h,w): Ho et al. 2020 (arXiv 2006.11239), eq. 14."""
    return noise


def v_target(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """Return v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0, (B,C,h,w).

    Source: Salimans & Ho 2022 (arXiv 2202.00512), section 4.
    """
    signal, sigma = signal_and_noise_scale(alphas_cumprod, timesteps, latents)
    return signal * noise - sigma * latents


TARGETS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": epsilon_target,
    "v_prediction": v_target,
}


def target(
    prediction_type: str,
    latents: Tensor,
    noise: Tensor,
    alphas_cumprod: Tensor,
    timesteps: Tensor,
) -> Tensor:
    """Return the training target (B,C,h,w) of `prediction_type`, one of `TARGETS`."""
    _require_known(prediction_type)
    return TARGETS[prediction_type](latents, noise, alphas_cumprod, timesteps)


def predicted_noise(
    prediction_type: str,
    model_pred: Tensor,
    noisy_latents: Tensor,
    alphas_cumprod: Tensor,
    timesteps: Tensor,
) -> Tensor:
    """Return the noise that a prediction says is in the noisy latents, (B,C,h,w).

    epsilon: the prediction; v_prediction: sqrt(1 - alpha_bar_t) x_t + sqrt(alpha_bar_t) v, Salimans
    & Ho 2022 (arXiv 2202.00512), section 4.
    """
    _require_known(prediction_type)
    if prediction_type == "epsilon":
        return model_pred
    signal, sigma = signal_and_noise_scale(alphas_cumprod, timesteps, noisy_latents)
    return sigma * noisy_latents + signal * model_pred


def _require_known(prediction_type: str) -> None:
    if prediction_type not in TARGETS:
        known = ", ".join(TARGETS)
        raise ValueError(f"prediction_type is {prediction_type!r}; known are {known}")
