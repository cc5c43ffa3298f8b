"""What all trainings of the world share: the optimizer step, the average of weights, the log."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.world.build.parallel import average_gradients, share

LOG_EVERY_STEPS = 100


@dataclass(frozen=True)
class Rates:
    """A learning rate that warms up and then falls along a cosine from `first` to `last`."""

    first: float
    last: float
    warmup_steps: int = 50

    def at(self, step: int, steps: int) -> float:
        """Return the rate of step number `step` (from 0) of `steps`."""
        fall = 0.5 * (1 + math.cos(math.pi * step / steps))
        return min(1.0, (step + 1) / self.warmup_steps) * (
            self.last + (self.first - self.last) * fall
        )


@dataclass
class Fit:
    """Lowers a loss over groups of parameters and keeps the moving average of their values."""

    groups: Sequence[tuple[Sequence[Tensor], Rates]]
    ema_decay: float = 0.999
    averages: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        """Start all processes and the average from the same values."""
        share(self.parameters)
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters, group by group."""
        return [parameter for group, _ in self.groups for parameter in group]

    def run(self, steps: int, loss_of_step: Callable[[int], Tensor], name: str) -> None:
        """Take `steps` AdamW steps and put the averaged values into the parameters at the end."""
        optimizer = torch.optim.AdamW(
            [{"params": list(group)} for group, _ in self.groups],
            betas=(0.9, 0.99),
            weight_decay=1e-3,
        )
        began = time.monotonic()
        for step in range(steps):
            for group, (_, rates) in zip(optimizer.param_groups, self.groups, strict=True):
                group["lr"] = rates.at(step, steps)
            loss = loss_of_step(step)
            optimizer.zero_grad()
            loss.backward()
            average_gradients(self.parameters)
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            optimizer.step()
            self._average(step)
            if (step + 1) % LOG_EVERY_STEPS == 0:
                seconds = time.monotonic() - began
                say(f"{name} step {step + 1}/{steps} loss {loss.item():.4f} {seconds:.0f} s")
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.averages, strict=True):
                parameter.copy_(average)

    def _average(self, step: int) -> None:
        decay = min(self.ema_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1 - decay)


def say(text: str) -> None:
    """Write a line of the log at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def keep(path: Path, values: dict[str, Any]) -> None:
    """Write a snapshot, whole or not at all."""
    partial = path.with_suffix(".partial")
    torch.save(values, partial)
    os.replace(partial, path)
