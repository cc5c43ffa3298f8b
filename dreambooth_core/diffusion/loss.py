"""The loss keeps its batch axis: (B,) losses, every emphasis a (B,) weight.

Shapes: B examples, C latent channels, h w latent, N training timesteps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LARGEST_DEBIASED_SNR = 1000.0


def squared_error(pred: Tensor, target: Tensor, delta: Tensor) -> Tensor:
    """Return d^2 with d = pred - target, (B,C,h,w) fp32; `delta` means nothing here."""
    return _difference(pred, target).square()


def huber_error(pred: Tensor, target: Tensor, delta: Tensor) -> Tensor:
    """Return d^2 where |d| <= delta and 2 delta |d| - delta^2 beyond, (B,C,h,w) fp32.

    Huber 1964 ("Robust estimation of a location parameter"), doubled, so that small errors weigh
    what they do in the squared error. `delta` is (B,).
    """
    size, limit = _difference(pred, target).abs(), _beside(delta, pred)
    return torch.where(size <= limit, size.square(), 2 * limit * size - limit.square())


def pseudo_huber_error(pred: Tensor, target: Tensor, delta: Tensor) -> Tensor:
    """Return 2 delta (sqrt(d^2 + delta^2) - delta), (B,C,h,w) fp32.

    It goes smoothly from d^2 of small errors to 2 delta |d| of large ones. Source: Khrapov et al.
    2024 (arXiv 2403.16728), scaled as in kohya's trainer. `delta` is (B,).
    """
    difference, limit = _difference(pred, target), _beside(delta, pred)
    return 2 * limit * ((difference.square() + limit.square()).sqrt() - limit)


ERRORS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "mse": squared_error,
    "huber": huber_error,
    "pseudo_huber": pseudo_huber_error,
}
"""The error of each number of a prediction, by the loss type."""


def constant_delta(delta: float, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """Return the same delta for every timestep, (B,)."""
    return torch.full(timesteps.shape, delta, device=timesteps.device)


def exponential_delta(delta: float, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """Return delta^(t / N), (B,): 1 at the clean end, delta at the noisy one.

    Source: Khrapov et al. 2024 (arXiv 2403.16728), as in kohya's trainer.
    """
    share = timesteps / len(alphas_cumprod)
    return torch.as_tensor(delta, device=timesteps.device) ** share


def snr_delta(delta: float, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """Return (1 - delta) / (1 + sigma_t)^2 + delta with sigma_t^2 = 1 / SNR_t, (B,).

    Nearly 1 at the clean end, nearly delta at the noisy one. Source: kohya's trainer.
    """
    alpha_bar = alphas_cumprod.to(timesteps.device)[timesteps]  # (B,)
    sigma = ((1.0 - alpha_bar) / alpha_bar).sqrt()
    return (1.0 - delta) / (1.0 + sigma) ** 2 + delta


HUBER_SCHEDULES: dict[str, Callable[[float, Tensor, Tensor], Tensor]] = {
    "constant": constant_delta,
    "exponential": exponential_delta,
    "snr": snr_delta,
}
"""How the delta of the Huber losses depends on the timestep."""


def example_means(
    errors: Tensor, masks: Tensor | None = None, unmasked_weight: float = 0.0
) -> Tensor:
    """Return each example's mean error (B,); with masks, the mean of what they show.

    sum_p a_p e_p / sum_p a_p over the numbers p of an example, with a = m + (1 - m) u for masks m
    (B,1,h,w) in 0..1 and the weight u of what they leave out. Divided by its own area, a small
    subject counts as much as a large one. A mask that shows nothing makes the error 0.
    """
    if masks is None:
        return errors.flatten(start_dim=1).mean(dim=1)
    shown = masks.to(errors)
    area = (shown + (1 - shown) * unmasked_weight).expand_as(errors)
    total = area.flatten(start_dim=1).sum(dim=1)
    smallest = torch.finfo(total.dtype).tiny
    return (errors * area).flatten(start_dim=1).sum(dim=1) / total.clamp(min=smallest)


def min_snr_weights(snr: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """Return the min-SNR-gamma weight of each example, (B,).

    epsilon: min(SNR, gamma) / SNR (1 in the limit SNR = 0); v_prediction: min(SNR, gamma) /
    (SNR + 1). Source: Hang et al. 2023 (arXiv 2303.09556), section 3.4. They multiply the
    losses; the normaliser stays the sum of the example weights.
    """
    if gamma <= 0:
        raise ValueError(f"gamma is {gamma}; min-SNR weighting needs a gamma above 0")
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1.0)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1.0)
    raise ValueError(f"prediction_type is {prediction_type!r}; known are epsilon, v_prediction")


def debiased_weights(snr: Tensor, prediction_type: str) -> Tensor:
    """Return the weight of each example by debiased estimation, (B,).

    epsilon: 1 / sqrt(SNR), with the SNR capped at 1000; v_prediction: that times SNR / (SNR + 1).
    Source: Yu et al. 2023 (arXiv 2310.08442), which knows epsilon only. An error of v is one of
    epsilon times sqrt(alpha_bar), so its square times SNR / (SNR + 1); the two min-SNR weights
    differ by the same factor. The objective is thus the same, whatever the UNet predicts. Other
    trainers take 1 / sqrt(SNR + 1) or 1 / (SNR + 1) for v, which are other objectives.
    """
    weights = snr.clamp(max=LARGEST_DEBIASED_SNR).rsqrt()
    if prediction_type == "epsilon":
        return weights
    if prediction_type == "v_prediction":
        return torch.where(snr > 0, weights * snr / (snr + 1.0), 0.0)
    raise ValueError(f"prediction_type is {prediction_type!r}; known are epsilon, v_prediction")


def scaled_prior_weight(weight: float, minimum: float, epoch: int, target_epochs: int) -> float:
    """Return the prior loss weight of an epoch (from 0) that falls linearly to its minimum.

    w + (m - w) min(1, epoch / target): the weight in the first epoch, the minimum once
    `target_epochs` are done. Source: "Scale Prior Loss" of the d8ahazard extension.
    """
    return weight + (minimum - weight) * min(1.0, epoch / target_epochs)


def weighted_mean(
    losses: Tensor, weights: Tensor, normalizer: float | Tensor | None = None
) -> Tensor:
    """Return sum_i w_i l_i / normalizer, a scalar; the normaliser defaults to sum_i w_i.

    With weight 1 for instance and lambda for class examples this is the prior-preservation loss
    (sum l_inst + lambda sum l_class) / (n_inst + lambda n_class), Ruiz et al. 2022 (arXiv
    2208.12242) eq. 2 with an explicit normaliser. Under gradient accumulation each micro-batch
    passes the weight sum of the whole optimizer step, so the sum of the micro-batches' results
    equals the mean over one large batch.
    """
    if losses.shape != weights.shape:
        raise ValueError(f"{tuple(losses.shape)} losses, {tuple(weights.shape)} weights")
    divisor = weights.sum() if normalizer is None else torch.as_tensor(normalizer)
    return (losses * weights).sum() / divisor.to(losses.device, losses.dtype)


def _difference(pred: Tensor, target: Tensor) -> Tensor:
    if pred.shape != target.shape:
        raise ValueError(f"prediction is {tuple(pred.shape)}, target is {tuple(target.shape)}")
    return pred.float() - target.float()


def _beside(values: Tensor, like: Tensor) -> Tensor:
    """Return one value an example with as many axes as `like`."""
    return values.reshape(-1, *(1 for _ in like.shape[1:]))
