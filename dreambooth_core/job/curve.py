"""Curves of a run of any length in a bounded number of points."""

from __future__ import annotations

from dataclasses import dataclass, field

MOST_POINTS = 1000
SMOOTHING = 0.95

Point = tuple[int, float]
"""(step, value)"""


@dataclass
class Curve:
    """Keeps every n-th point and the last one; n doubles whenever there are too many.

    What is kept depends on the points alone, not on when the curve was looked at.
    """

    _kept: list[Point] = field(default_factory=list)
    _count: int = 0
    _stride: int = 1
    _last: Point = (0, 0.0)

    @property
    def points(self) -> list[Point]:
        """Return at most MOST_POINTS points, the first and the last always among them."""
        if not self._kept or self._kept[-1] == self._last:
            return list(self._kept)
        return [*self._kept, self._last]

    def cut(self, step: int) -> None:
        """Forget the points after a step, which are made again."""
        if not self._kept or self._last[0] <= step:
            return
        self._kept = [point for point in self._kept if point[0] <= step]
        if not self._kept:
            self._count = 0
            return
        self._last = self._kept[-1]
        passed_over = min(step - self._last[0], self._stride - 1)  # steps come one by one
        self._count = (len(self._kept) - 1) * self._stride + 1 + passed_over

    def add(self, step: int, value: float) -> None:
        """Append a point."""
        self._last = (step, value)
        if self._count % self._stride == 0:
            self._kept.append(self._last)
            if len(self._kept) >= MOST_POINTS:
                self._kept, self._stride = self._kept[::2], 2 * self._stride
        self._count += 1


@dataclass
class RunningMean:
    """An exponential mean that is right from the first value on (Adam's bias correction)."""

    _sum: float = 0.0
    _weight: float = 0.0

    def add(self, value: float) -> float:
        """Return the mean after one more value."""
        self._sum = SMOOTHING * self._sum + (1 - SMOOTHING) * value
        self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)
        return self._sum / self._weight
