"""One step: the loss in one sentence, the gradients of its micro-batches, and the update.

Shapes: B examples, C latent channels, h w latent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor

from dreambooth_core.config.schema import LossSection
from dreambooth_core.data.loading import Batch
from dreambooth_core.data.masks import random_masks
from dreambooth_core.diffusion.loss import (
    ERRORS,
    HUBER_SCHEDULES,
    debiased_weights,
    example_means,
    min_snr_weights,
    scaled_prior_weight,
    weighted_mean,
)
from dreambooth_core.diffusion.noise import (
    gaussian_noise,
    multires_noise,
    sample_timesteps,
    stream,
)
from dreambooth_core.diffusion.noised import NoisedLatents
from dreambooth_core.errors import NonFiniteError
from dreambooth_core.families import FAMILIES
from dreambooth_core.families.base import Components, Conditioning
from dreambooth_core.job.memory_errors import during
from dreambooth_core.stages.gradients import GradientLimits, clip, gradient_sets, norms_of
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
    multires: torch.Generator
    perturbation: torch.Generator

    @classmethod
    def of_step(cls, seed: int, step: int) -> StepStreams:
        """Return the streams of step number `step` (from 0): the same on every device."""
        return cls(*(stream(seed, purpose.name, step) for purpose in fields(cls)))


@dataclass(frozen=True)
class StepResult:
    """What a step reports: the loss, its unweighted means by kind, and the gradient's norm."""

    loss: float
    loss_instance: float
    loss_class: float | None
    grad_norm: float


def example_losses(objective: Objective, batch: Batch, streams: StepStreams) -> Tensor:
    """Return each example's loss (B,): noise, prediction, error, mean, weight of the timestep."""
    settings = objective.settings
    noised = put_noise_in(objective, batch, streams)
    conditioning = objective.encode(batch.prompts)
    conditioning = conditioning.beside(
        batch.sizes.to(objective.device), masked_pictures(objective, batch, streams.masks)
    )
    if settings.dream:
        guess = first_guess(objective, noised, conditioning)
        noised = noised.rectified(guess, settings.dream_detail_preservation)
    model_pred = predict(objective, noised, conditioning)
    delta = HUBER_SCHEDULES[settings.huber_schedule](
        settings.huber_delta, noised.alphas_cumprod, noised.timesteps
    )
    errors = ERRORS[settings.loss_type](model_pred, noised.target(), delta)  # (B,C,h,w)
    losses = example_means(errors, batch.masks, settings.unmasked_weight)  # (B,)
    return losses * timestep_weights(noised, settings)


def put_noise_in(objective: Objective, batch: Batch, streams: StepStreams) -> NoisedLatents:
    """Return the batch's latents at timesteps of their own, with all noise that is asked for."""
    settings, device = objective.settings, objective.device
    latents = batch.latents(streams.latents)  # (B,C,h,w)
    noise = multires_noise(
        gaussian_noise(latents.shape, streams.noise, settings.offset_noise),
        streams.multires,
        settings.multires_noise_iterations,
        settings.multires_noise_discount,
    )
    timesteps = sample_timesteps(
        len(latents),
        streams.timesteps,
        len(objective.alphas_cumprod),
        lowest=settings.min_timestep,
        highest=settings.max_timestep,
    )
    perturbation = None
    if settings.input_perturbation > 0:
        perturbation = settings.input_perturbation * gaussian_noise(
            latents.shape, streams.perturbation
        ).to(device)
    return NoisedLatents(
        latents.to(device),
        noise.to(device),
        timesteps.to(device),
        objective.alphas_cumprod,
        objective.components.prediction_type,
        perturbation,
    )


def predict(objective: Objective, noised: NoisedLatents, conditioning: Conditioning) -> Tensor:
    """Return what the UNet says of the noised latents, (B,C,h,w)."""
    components = objective.components
    return FAMILIES[components.family].predict(
        components, noised.noisy_latents(), noised.timesteps, conditioning
    )


@torch.no_grad()
def first_guess(objective: Objective, noised: NoisedLatents, conditioning: Conditioning) -> Tensor:
    """Return the same without gradients, (B,C,h,w)."""
    guess = predict(objective, noised, conditioning)
    # Older versions of torch would use the weights that autocast has cast here, which know of no
    # gradients, in the prediction that is learned from too.
    torch.clear_autocast_cache()
    return guess


def timestep_weights(noised: NoisedLatents, settings: LossSection) -> Tensor:
    """Return how much each example's timestep counts, (B,)."""
    if settings.min_snr_gamma > 0:
        return min_snr_weights(noised.snr(), settings.min_snr_gamma, noised.prediction_type)
    if settings.debiased_estimation:
        return debiased_weights(noised.snr(), noised.prediction_type)
    return torch.ones_like(noised.timesteps, dtype=torch.float32)


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


def weighed_in_epoch(batch: Batch, settings: LossSection, epoch: int) -> Batch:
    """Return the batch with its class images weighing what they do in an epoch (from 0)."""
    if not settings.prior_loss_scale or not bool(batch.is_class.any()):
        return batch
    weight, minimum = settings.prior_loss_weight, settings.prior_loss_weight_min
    scaled = scaled_prior_weight(weight, minimum, epoch, settings.prior_loss_target)
    weights = torch.where(batch.is_class, batch.weights * (scaled / weight), batch.weights)
    return replace(batch, weights=weights)


def train_step(
    accelerator: Accelerator,
    optimizer: AcceleratedOptimizer,
    objective: Objective,
    batches: Sequence[Batch],
    *,
    seed: int,
    step: int,
    limits: GradientLimits,
    set_to_none: bool = True,
) -> StepResult:
    """Make update number `step` (from 0); raises NonFiniteError before any weight is changed.

    With fp16 a gradient that overflows is computed again at half the loss scale.
    """
    for _ in range(MAX_LOSS_SCALE_HALVINGS):
        losses = _backward(accelerator, objective, batches, StepStreams.of_step(seed, step))
        accelerator.unscale_gradients(optimizer)
        sets = gradient_sets(optimizer, limits)
        result, norms, broken = _read(losses, batches, norms_of(sets))
        if not math.isfinite(result.loss):
            raise non_finite("loss", step, broken)
        if math.isfinite(result.grad_norm):
            clip(sets, norms)
            with during("", changes_weights=True):
                optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
            return result
        if accelerator.scaler is None:
            break
        optimizer.step()  # the scaler finds the overflow, leaves the weights and halves the scale
        optimizer.zero_grad(set_to_none=True)
    raise non_finite("gradient", step)


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


def _read(
    losses: Tensor, batches: Sequence[Batch], norms: Tensor
) -> tuple[StepResult, list[float], list[int]]:
    """Bring a step's numbers to the host in one transfer: losses (B,), gradients' norms (S,).

    And tell the numbers of the examples whose loss is not finite.
    """
    numbers = torch.cat([losses, norms.to(losses)]).tolist()
    values, gradient_norms = numbers[: len(losses)], numbers[len(losses) :]
    weights = torch.cat([batch.weights for batch in batches]).tolist()
    is_class = torch.cat([batch.is_class for batch in batches]).tolist()
    instance = [loss for loss, of_class in zip(values, is_class, strict=True) if not of_class]
    classes = [loss for loss, of_class in zip(values, is_class, strict=True) if of_class]
    result = StepResult(
        loss=math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights),
        loss_instance=_mean(instance),
        loss_class=_mean(classes) if classes else None,
        grad_norm=math.hypot(*gradient_norms),
    )
    return result, gradient_norms, [n for n, value in enumerate(values) if not math.isfinite(value)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def non_finite(what: str, step: int, examples: Sequence[int] = ()) -> NonFiniteError:
    """Return the error of update number `step` (from 0), which is not made."""
    error = NonFiniteError(
        f"The {what} of step {step + 1} is not a finite number; that step changed no weight.",
        remedy="Lower the learning rate or use mixed precision bf16 or no. The newest training"
        " state is unharmed: resume goes on from it.",
    )
    error.what, error.examples = what, tuple(examples)
    return error
