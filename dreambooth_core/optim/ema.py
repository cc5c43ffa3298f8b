"""Exponential moving average of trained weights, kept in fp32 whatever the weights' dtype."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from dreambooth_core.errors import InputError
from dreambooth_core.job.memory_errors import during

NUMBERS_AT_ONCE = 2**26
"""How many weights are copied at a time to where the average lies, or to its number format."""


class ExponentialMovingAverage:
    """An fp32 shadow of named parameters: shadow = d * shadow + (1 - d) * parameter.

    d = min(decay, (1 + t) / (10 + t)) after t optimizer steps: early on the average follows the
    weights closely, so the starting point does not linger (the warm-up of tf.train's average).
    With `every_steps` k the shadow moves on every k-th step only, with d**k in place of d.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        decay: float,
        *,
        every_steps: int = 1,
        device: str | torch.device | None = None,
    ) -> None:
        """Start at the parameters' present values; the shadow lies on `device` or beside each."""
        self.decay = decay
        self.every_steps = every_steps
        self._parameters = dict(parameters)
        self._shadow = {
            name: p.detach().to(device or p.device, torch.float32, copy=True)
            for name, p in self._parameters.items()
        }

    def decay_at(self, step: int) -> float:
        """Return the factor d**k that the shadow keeps at the end of optimizer step `step`."""
        return float(min(self.decay, (1 + step) / (10 + step)) ** self.every_steps)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the shadow toward the parameters after optimizer step `step`, counted from 1."""
        if step % self.every_steps != 0:
            return
        weight = 1.0 - self.decay_at(step)
        for names in self._portions():
            shadows = [self._shadow[name] for name in names]
            live = [
                self._parameters[name].detach().to(shadow.device, torch.float32)
                for name, shadow in zip(names, shadows, strict=True)
            ]
            torch._foreach_lerp_(shadows, live, weight)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Put the averaged weights into the parameters for the block, then the live ones back.

        The live values are kept in memory of their own and restored bit for bit, also when the
        block raises.
        """
        live = {
            name: p.detach().to(self._shadow[name].device, copy=True)
            for name, p in self._parameters.items()
        }
        try:
            self._write(self._shadow)
            yield
        finally:
            with during("", changes_weights=True):
                self._write(live)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the shadow by parameter name; the tensors are the shadow itself, not copies."""
        return dict(self._shadow)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy a saved shadow in; it must have exactly the parameters' names and shapes."""
        self._require_same_keys(state)
        for name, shadow in self._shadow.items():
            if state[name].shape != shadow.shape:
                raise InputError(
                    f"The saved average of {name} has shape {tuple(state[name].shape)}, "
                    f"the model has {tuple(shadow.shape)}.",
                    remedy="Resume with the model that the state was saved from.",
                )
            shadow.copy_(state[name])

    def _portions(self) -> Iterator[list[str]]:
        """Yield the names of about so many numbers that a copy of them is no burden."""
        names: list[str] = []
        numbers = 0
        for name, shadow in self._shadow.items():
            names.append(name)
            numbers += shadow.numel()
            if numbers >= NUMBERS_AT_ONCE:
                yield names
                names, numbers = [], 0
        if names:
            yield names

    def _require_same_keys(self, state: Mapping[str, Tensor]) -> None:
        missing = sorted(self._shadow.keys() - state.keys())
        extra = sorted(state.keys() - self._shadow.keys())
        if missing or extra:
            raise InputError(
                f"The saved average does not fit the trained weights: {len(missing)} missing "
                f"{missing[:3]}, {len(extra)} not known {extra[:3]}.",
                remedy="Resume with the same model and the same parts trained.",
            )

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
