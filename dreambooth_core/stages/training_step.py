"""One step: the loss in one sentence, the gradients of its micro-batches, and the update.

Shapes: B examples, C latent channels, h w latent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor

from dreambooth_core.config.schema import LossSection
from dreambooth_core.data.loading import Batch
from dreambooth_core.data.masks import random_masks
from dreambooth_core.diffusion.loss import min_snr_weights, per_example_mse, weighted_mean
from dreambooth_core.diffusion.noise import add_noise, gaussian_noise, sample_timesteps, stream
from dreambooth_core.diffusion.schedule import snr
from dreambooth_core.diffusion.target import target
from dreambooth_core.errors import NonFiniteError
from dreambooth_core.families import FAMILIES
from dreambooth_core.families.base import Components
from dreambooth_core.stages.prompt_encoder import PromptEncoder

MAX_LOSS_SCALE_HALVINGS = 24
"""fp16 starts at a loss scale of 2^16; below 2^-8 the gradient itself is what overflows."""


@dataclass(frozen=True)
class Objective:
    """What the loss is a function of, besides the batch and the random numbers."""

    components: Components
    encode: PromptEncoder
    alphas_cumprod: Tensor  # (N,)
    settings: LossSection
    device: torch.device


@dataclass(frozen=True)
class StepStreams:
    """The random numbers of one step, a generator for each purpose; micro-batches draw in turn."""

    latents: torch.Generator
    noise: torch.Generator
    timesteps: torch.Generator
    masks: torch.Generator

    @classmethod
    def of_step(cls, seed: int, step: int) -> StepStreams:
        """Return the streams of step number `step` (from 0): the same on every device."""
        return cls(
            *(stream(seed, name, step) for name in ("latents", "noise", "timesteps", "masks"))
        )


@dataclass(frozen=True)
class StepResult:
    """What a step reports: the loss, its unweighted means by kind, and the gradient's norm."""

    loss: float
    loss_instance: float
    loss_class: float | None
    grad_norm: float


def example_losses(objective: Objective, batch: Batch, streams: StepStreams) -> Tensor:
    """Return each example's loss (B,): noise, target, prediction, squared error, min-SNR weight."""
    components, settings, device = objective.components, objective.settings, objective.device
    alphas_cumprod = objective.alphas_cumprod
    latents = batch.latents(streams.latents)  # (B,C,h,w)
    noise = gaussian_noise(latents.shape, streams.noise, settings.offset_noise).to(device)
    timesteps = sample_timesteps(len(latents), streams.timesteps, len(alphas_cumprod)).to(device)
    latents = latents.to(device)
    noisy_latents = add_noise(latents, noise, alphas_cumprod, timesteps)
    conditioning = objective.encode(batch.prompts)
    conditioning = conditioning.beside(
        batch.sizes.to(device), masked_pictures(objective, batch, streams.masks)
    )
    model_pred = FAMILIES[components.family].predict(
        components, noisy_latents, timesteps, conditioning
    )
    prediction_type = components.prediction_type
    wanted = target(prediction_type, latents, noise, alphas_cumprod, timesteps)
    losses = per_example_mse(model_pred, wanted)  # (B,)
    if settings.min_snr_gamma > 0:
        ratio = snr(alphas_cumprod, timesteps)
        losses = losses * min_snr_weights(ratio, settings.min_snr_gamma, prediction_type)
    return losses


def masked_pictures(
    objective: Objective, batch: Batch, generator: torch.Generator
) -> Tensor | None:
    """Return what an inpainting UNet sees beside the latents, (B,1+C,h,w), with new masks."""
    if batch.pixels is None:
        return None
    family, device = FAMILIES[objective.components.family], objective.device
    count, _, height, width = batch.pixels.shape
    masks = random_masks(count, height, width, generator).to(device)
    return family.canvas(objective.components, batch.pixels.to(device), masks)


def train_step(
    accelerator: Accelerator,
    optimizer: AcceleratedOptimizer,
    objective: Objective,
    batches: Sequence[Batch],
    *,
    seed: int,
    step: int,
    max_grad_norm: float,
) -> StepResult:
    """Make update number `step` (from 0); raises NonFiniteError before any weight is changed.

    With fp16 a gradient that overflows is computed again at half the loss scale.
    """
    for _ in range(MAX_LOSS_SCALE_HALVINGS):
        losses = _backward(accelerator, objective, batches, StepStreams.of_step(seed, step))
        accelerator.unscale_gradients(optimizer)
        gradients = _gradients(optimizer)
        result = _read(losses, batches, _norm(gradients))
        if not math.isfinite(result.loss):
            raise _non_finite("loss", step)
        if math.isfinite(result.grad_norm):
            _clip(gradients, result.grad_norm, max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return result
        if accelerator.scaler is None:
            break
        optimizer.step()  # the scaler finds the overflow, leaves the weights and halves the scale
        optimizer.zero_grad(set_to_none=True)
    raise _non_finite("gradient", step)


def _backward(
    accelerator: Accelerator, objective: Objective, batches: Sequence[Batch], streams: StepStreams
) -> Tensor:
    """Add up the gradients of (sum w l) / (sum w) over the whole step; return all losses (B,)."""
    normalizer = sum(float(batch.weights.sum()) for batch in batches)
    losses = []
    for batch in batches:
        with accelerator.autocast():
            micro_losses = example_losses(objective, batch, streams)
        weights = batch.weights.to(objective.device)
        accelerator.backward(weighted_mean(micro_losses, weights, normalizer))
        losses.append(micro_losses.detach())
    return torch.cat(losses)


def _gradients(optimizer: AcceleratedOptimizer) -> list[Tensor]:
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return [p.grad for p in parameters if p.grad is not None]


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of all gradients together, a scalar."""
    norms: tuple[Tensor, ...] = torch._foreach_norm(list(gradients))
    norm: Tensor = torch.stack(norms).norm()
    return norm


def _clip(gradients: Sequence[Tensor], norm: float, max_norm: float) -> None:
    """Scale the gradients so that their norm is at most `max_norm`; 0 leaves them as they are.

    Pascanu et al. 2012 (arXiv 1211.5063), algorithm 1. The norm is on the host already, so the
    usual step, which is not clipped, is spared a pass over all gradients.
    """
    if 0 < max_norm < norm:
        torch._foreach_mul_(list(gradients), max_norm / norm)


def _read(losses: Tensor, batches: Sequence[Batch], grad_norm: Tensor) -> StepResult:
    """Bring a step's numbers to the host in one transfer."""
    *values, norm = torch.cat([losses, grad_norm.reshape(1).to(losses)]).tolist()
    weights = torch.cat([batch.weights for batch in batches]).tolist()
    is_class = torch.cat([batch.is_class for batch in batches]).tolist()
    instance = [loss for loss, of_class in zip(values, is_class, strict=True) if not of_class]
    classes = [loss for loss, of_class in zip(values, is_class, strict=True) if of_class]
    return StepResult(
        loss=math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights),
        loss_instance=_mean(instance),
        loss_class=_mean(classes) if classes else None,
        grad_norm=norm,
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _non_finite(what: str, step: int) -> NonFiniteError:
    return NonFiniteError(
        f"The {what} of step {step + 1} is not a finite number; that step changed no weight.",
        remedy="Lower the learning rate or use mixed precision bf16 or no. The newest training"
        " state is unharmed: resume goes on from it.",
    )
