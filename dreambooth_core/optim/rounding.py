"""bf16 weights that small steps still move: updated in fp32, rounded up or down by chance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

NUMBERS_AT_ONCE = 2**26
"""How many weights are in fp32 at a time: 256 MB of them, and as much of their gradients."""

_DROPPED_BITS = 16


def stochastic_round(values: Tensor, generator: torch.Generator) -> Tensor:
    """Round fp32 to bf16, up with the probability of the part that is cut off, else down.

    The expectation is the value itself. bf16 is the upper half of fp32's bits, so 16 random bits
    are added and the lower half is cut off: Zamirai et al. 2020 (arXiv 2010.06192), section 3.
    """
    bits = values.contiguous().view(torch.int32)
    chance = torch.empty_like(bits).random_(0, 2**_DROPPED_BITS, generator=generator)
    cut: Tensor = (bits + chance) & -(2**_DROPPED_BITS)
    return cut.view(torch.float32).to(torch.bfloat16)


@contextmanager
def taken_for_fp32(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Make bf16 parameters look as if they were fp32 for the block, without their values.

    An optimizer that is given its memory in the block keeps it in fp32.
    """
    halves = [(p, p.data) for p in parameters if p.dtype == torch.bfloat16]
    try:
        for parameter, half in halves:
            parameter.data = torch.zeros((), device=half.device).expand(half.shape)
        yield
    finally:
        for parameter, half in halves:
            parameter.data = half


class StochasticRounding:
    """An optimizer whose bf16 parameters are updated as if they were fp32, then rounded by chance.

    Everything else is the wrapped optimizer's. It sees some parameters at a time, so that little
    memory is needed, or all at once if its rule looks at all of them together.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        generator_of: Callable[[int], torch.Generator],
        step: int,
        *,
        all_at_once: bool = False,
    ) -> None:
        """Wrap an optimizer; `generator_of` gives each step's random numbers, `step` the first."""
        self._optimizer = optimizer
        self._generator_of = generator_of
        self._step = step
        self._all_at_once = all_at_once

    def __getattr__(self, name: str) -> Any:
        """Return what the wrapped optimizer has under a name."""
        return getattr(self._optimizer, name)

    def step(self, closure: None = None) -> None:
        """Make one update of all parameters."""
        generator = self._generator_of(self._step)
        for some in self._portions():
            with self._only(some):
                _update_in_fp32([p for group in some for p in group], self._optimizer, generator)
        self._step += 1

    def _portions(self) -> Iterator[list[list[Tensor]]]:
        """Yield what is updated together: the parameters of each group, most lists empty."""
        groups: list[list[Tensor]] = [group["params"] for group in self._optimizer.param_groups]
        if self._all_at_once:
            yield groups
            return
        for index, parameters in enumerate(groups):
            for some in _cut(parameters, NUMBERS_AT_ONCE):
                yield [some if number == index else [] for number in range(len(groups))]

    @contextmanager
    def _only(self, portion: Sequence[list[Tensor]]) -> Iterator[None]:
        groups = self._optimizer.param_groups
        whole = [group["params"] for group in groups]
        try:
            for group, some in zip(groups, portion, strict=True):
                group["params"] = some
            yield
        finally:
            for group, parameters in zip(groups, whole, strict=True):
                group["params"] = parameters


@torch.no_grad()
def _update_in_fp32(
    parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> None:
    halves = [p for p in parameters if p.dtype == torch.bfloat16]
    gradients = [p.grad for p in halves]
    for parameter, gradient in zip(halves, gradients, strict=True):
        parameter.grad = None
        parameter.data = parameter.data.float()
        parameter.grad = None if gradient is None else gradient.float()
    optimizer.step()
    for parameter, gradient in zip(halves, gradients, strict=True):
        parameter.grad = None
        parameter.data = stochastic_round(parameter.data, generator)
        parameter.grad = gradient


def _cut(parameters: Sequence[Tensor], numbers: int) -> Iterator[list[Tensor]]:
    """Yield the parameters in lists of at most so many numbers, or of one parameter."""
    some: list[Tensor] = []
    for parameter in parameters:
        if some and sum(p.numel() for p in some) + parameter.numel() > numbers:
            yield some
            some = []
        some.append(parameter)
    if some:
        yield some
