"""Latents with noise in them: what the UNet sees, and what it is to say of it.

Shapes: B examples, C latent channels, h w latent, N training timesteps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from dreambooth_core.diffusion.noise import add_noise
from dreambooth_core.diffusion.schedule import signal_and_noise_scale, snr
from dreambooth_core.diffusion.target import predicted_noise, target


@dataclass(frozen=True)
class NoisedLatents:
    """A batch on its way between pictures and noise.

    `perturbation` is noise that the input has and the target does not (input perturbation, Ning et
    al. 2023, arXiv 2301.11706: x_t is made with eps + gamma xi, the target stays eps). It
    stands for the errors that a sampler's own earlier steps leave in its input.
    """

    latents: Tensor  # (B,C,h,w)
    noise: Tensor  # (B,C,h,w)
    timesteps: Tensor  # (B,)
    alphas_cumprod: Tensor  # (N,)
    prediction_type: str
    perturbation: Tensor | None = None  # (B,C,h,w)

    def noisy_latents(self) -> Tensor:
        """Return what the UNet sees, (B,C,h,w)."""
        noise = self.noise if self.perturbation is None else self.noise + self.perturbation
        return add_noise(self.latents, noise, self.alphas_cumprod, self.timesteps)

    def target(self) -> Tensor:
        """Return what the UNet is to predict, (B,C,h,w)."""
        return target(
            self.prediction_type, self.latents, self.noise, self.alphas_cumprod, self.timesteps
        )

    def snr(self) -> Tensor:
        """Return each example's signal-to-noise ratio, (B,)."""
        return snr(self.alphas_cumprod, self.timesteps)

    def rectified(self, model_pred: Tensor, detail_preservation: float) -> NoisedLatents:
        """Return the same latents with the noise moved towards the UNet's own mistake (DREAM).

        eps' = eps + lambda (eps - eps_hat) with lambda = sqrt(1 - alpha_bar_t)^p, in the input and
        in the target: the UNet learns from where its own sampling would lead. eps_hat is the noise
        that `model_pred` (B,C,h,w), made from `noisy_latents` without gradients, says there is, so
        that v-prediction is served too. `detail_preservation` is p. Source: Zhou et al. 2023 (arXiv
        2312.00210), whose experiments use p = 1.
        """
        guess = predicted_noise(
            self.prediction_type,
            model_pred.float(),
            self.noisy_latents(),
            self.alphas_cumprod,
            self.timesteps,
        )
        _, sigma = signal_and_noise_scale(self.alphas_cumprod, self.timesteps, self.latents)
        mistake = (self.noise - guess).detach()
        return replace(self, noise=self.noise + sigma**detail_preservation * mistake)
