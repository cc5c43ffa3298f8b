"""Optimizers written down from their papers, one tensor at a time and in 64 bits, to compare with.

Each takes the first value of a weight and its gradients, and returns the weight after every step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Path = list[Tensor]


def sgd(weight: Tensor, gradients: Sequence[Tensor], lr: float, momentum: float) -> Path:
    """Return Polyak's heavy ball: v = mu v + g, w -= lr v."""
    velocity, path = torch.zeros_like(weight), []
    for gradient in gradients:
        velocity = momentum * velocity + gradient
        weight = weight - lr * velocity
        path.append(weight)
    return path


def _rms(values: Tensor) -> float:
    return math.sqrt(values.square().mean().item())


def _from_factors(rows: Tensor, columns: Tensor) -> Tensor:
    """Return V = R C / sum(R) for means of rows R and of columns C (Shazeer & Stern, eq. 5)."""
    return rows[:, None] * columns[None, :] / rows.mean()


def adafactor(
    weight: Tensor, gradients: Sequence[Tensor], lr: float, *, scaled: bool = False
) -> Path:
    """Return Adafactor without momentum, Shazeer & Stern 2018, algorithm 4 (a matrix).

    beta2_t = 1 - t^-0.8, eps1 = 1e-30, d = 1; `scaled` multiplies the rate by max(1e-3, RMS(w)).
    """
    rows, columns = torch.zeros(weight.shape[0]).double(), torch.zeros(weight.shape[1]).double()
    path = []
    for t, gradient in enumerate(gradients, 1):
        beta2 = 1 - t**-0.8
        squares = gradient.square() + 1e-30
        rows = beta2 * rows + (1 - beta2) * squares.mean(1)
        columns = beta2 * columns + (1 - beta2) * squares.mean(0)
        update = gradient / _from_factors(rows, columns).sqrt()
        update = update / max(1.0, _rms(update))
        rate = lr * max(1e-3, _rms(weight)) if scaled else lr
        weight = weight - rate * update
        path.append(weight)
    return path


def came(
    weight: Tensor, gradients: Sequence[Tensor], lr: float, betas: tuple[float, float, float]
) -> Path:
    """Return CAME, Luo et al. 2023, algorithm 2 (a matrix): eps1 = 1e-30, eps2 = 1e-16, d = 1."""
    beta1, beta2, beta3 = betas
    zeros = torch.zeros_like(weight)
    rows, columns, momentum = zeros.mean(1), zeros.mean(0), zeros
    sure_rows, sure_columns, path = rows, columns, []
    for gradient in gradients:
        squares = gradient.square() + 1e-30
        rows = beta2 * rows + (1 - beta2) * squares.mean(1)
        columns = beta2 * columns + (1 - beta2) * squares.mean(0)
        update = gradient / _from_factors(rows, columns).sqrt()
        update = update / max(1.0, _rms(update))
        momentum = beta1 * momentum + (1 - beta1) * update
        instability = (update - momentum).square() + 1e-16
        sure_rows = beta3 * sure_rows + (1 - beta3) * instability.mean(1)
        sure_columns = beta3 * sure_columns + (1 - beta3) * instability.mean(0)
        weight = weight - lr * momentum / _from_factors(sure_rows, sure_columns).sqrt()
        path.append(weight)
    return path


def prodigy(
    weight: Tensor,
    gradients: Sequence[Tensor],
    *,
    betas: tuple[float, float],
    d0: float,
    epsilon: float = 1e-8,
    coefficient: float = 1.0,
    corrected: bool = False,
) -> tuple[Path, list[float]]:
    """Return Prodigy for Adam at a rate of 1, Mishchenko & Defazio 2023, algorithm 4, and its d.

    r and s are those of the authors' program: both are divided by d_0, which cancels out. The
    estimate takes effect one step after the gradient that it is made from.
    """
    (beta1, beta2), first = betas, weight
    beta3 = math.sqrt(beta2)
    m, v, s = (torch.zeros_like(weight) for _ in range(3))
    r, d, path, estimates = 0.0, d0, [], []
    for k, gradient in enumerate(gradients):
        correction = math.sqrt(1 - beta2 ** (k + 1)) / (1 - beta1 ** (k + 1)) if corrected else 1.0
        step = d * correction
        r = beta3 * r + d / d0 * step * torch.sum(gradient * (first - weight)).item()
        m = beta1 * m + (1 - beta1) * d * gradient
        v = beta2 * v + (1 - beta2) * d * d * gradient.square()
        s = beta3 * s + d / d0 * step * gradient
        estimate = coefficient * r / s.abs().sum().item()
        d = max(d, estimate)
        weight = weight - step * m / (v.sqrt() + d * epsilon)
        path.append(weight)
        estimates.append(d)
    return path, estimates


def dadapt_adam(
    weight: Tensor,
    gradients: Sequence[Tensor],
    *,
    betas: tuple[float, float],
    d0: float,
    epsilon: float = 1e-8,
) -> tuple[Path, list[float]]:
    """Return Adam with D-Adaptation at a rate of 1, Defazio & Mishchenko 2023, algorithm 5."""
    beta1, beta2 = betas
    root = math.sqrt(beta2)
    m, v, s = (torch.zeros_like(weight) for _ in range(3))
    r, d, path, estimates = 0.0, d0, [], []
    for gradient in gradients:
        dot = torch.sum(gradient * s / (v.sqrt() + epsilon)).item()
        m = beta1 * m + (1 - beta1) * d * gradient
        v = beta2 * v + (1 - beta2) * gradient.square()
        s = root * s + (1 - root) * d * gradient
        r = root * r + (1 - root) * d * dot
        weight = weight - m / (v.sqrt() + epsilon)
        d = max(d, r / ((1 - root) * s.abs().sum().item()))
        path.append(weight)
        estimates.append(d)
    return path, estimates


def adamw_schedule_free(
    weight: Tensor,
    gradients: Sequence[Tensor],
    rates: Sequence[float],
    *,
    betas: tuple[float, float],
    decay: float,
    epsilon: float = 1e-8,
) -> tuple[Path, Path]:
    """Return y and x of schedule-free AdamW, Defazio et al. 2024, algorithm 1, with x kept itself.

    The average weighs step t by the square of the largest rate so far. The gradients stand for
    those that were taken at y.
    """
    beta1, beta2 = betas
    x, z, v = weight, weight, torch.zeros_like(weight)
    total, learning, learnt = 0.0, [], []
    y = weight
    for t, (gradient, lr) in enumerate(zip(gradients, rates, strict=True), 1):
        v = beta2 * v + (1 - beta2) * gradient.square()
        step = gradient / ((v / (1 - beta2**t)).sqrt() + epsilon) + decay * y
        z = z - lr * step
        largest = max(rates[:t])
        total += largest**2
        share = largest**2 / total if total else 0.0
        x = (1 - share) * x + share * z
        y = (1 - beta1) * z + beta1 * x
        learning.append(y)
        learnt.append(x)
    return learning, learnt
