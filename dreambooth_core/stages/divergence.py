"""A loss that has left its course, told apart from the usual noise of diffusion losses.

The loss of a step depends on the timesteps that were drawn and varies tenfold between steps, so it
is watched as its logarithm, and what counts as a rise is measured in that noise.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

MEAN_STEPS = 32
"""Over how many steps the mean of now goes, and for how many in a row it must be too high."""

LOWEST_STEPS = 8
"""Over how many the lowest mean before them: few, as a rate that is too high spoils soon."""

RISE = 2.0
"""The loss must be more than so many times its lowest mean ..."""

DEVIATIONS = 6.0
"""... by so many standard deviations of the difference of two such means. Over 1.6 million steps
of ten kinds of noise that difference was never above 5.6 of them for 32 steps in a row."""


@dataclass
class LossWatch:
    """Looks at one loss after the other and tells when they have left their course.

    With x = ln(loss), m the mean of the last M values of x and `lowest` the lowest mean of L values
    before those, m - lowest > ln(RISE) + DEVIATIONS * s * sqrt(1/M + 1/L) must hold for M steps in
    a row. The noise s comes from the differences of neighbours, E[(x' - x)^2] = 2 s^2, which a
    change of the level hardly touches.
    """

    lowest: float = math.inf
    mean: float = math.inf
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=LOWEST_STEPS + MEAN_STEPS))
    _squares: float = 0.0
    _count: int = 0
    _high_for: int = 0

    def add(self, loss: float) -> bool:
        """Take in a step's loss; return whether it has just become certain that it has risen.

        A loss of 0, where nothing of a batch counts, says nothing.
        """
        if loss <= 0:
            return False
        value = math.log(loss)
        if self._recent:
            self._squares += (value - self._recent[-1]) ** 2
            self._count += 1
        self._recent.append(value)
        if len(self._recent) < LOWEST_STEPS + MEAN_STEPS:
            return False
        values = list(self._recent)
        self.lowest = min(self.lowest, math.fsum(values[:LOWEST_STEPS]) / LOWEST_STEPS)
        self.mean = math.fsum(values[LOWEST_STEPS:]) / MEAN_STEPS
        self._high_for = self._high_for + 1 if self._is_high() else 0
        return self._high_for == MEAN_STEPS

    @property
    def risen(self) -> float:
        """How many times its lowest (geometric) mean the loss is now."""
        return math.exp(self.mean - self.lowest)

    def _is_high(self) -> bool:
        noise = math.sqrt(self._squares / self._count / 2)
        spread = noise * math.sqrt(1 / MEAN_STEPS + 1 / LOWEST_STEPS)
        return self.mean - self.lowest > math.log(RISE) + DEVIATIONS * spread
