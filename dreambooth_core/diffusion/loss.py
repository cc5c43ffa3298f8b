"""The loss keeps its batch axis: (B,) losses, every emphasis a (B,) weight. B examples."""

from __future__ import annotations

import torch
from torch import Tensor


def per_example_mse(pred: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of each example over all its other axes, (B,) fp32."""
    if pred.shape != target.shape:
        raise ValueError(f"prediction is {tuple(pred.shape)}, target is {tuple(target.shape)}")
    return (pred.float() - target.float()).square().flatten(start_dim=1).mean(dim=1)  # (B,)


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
