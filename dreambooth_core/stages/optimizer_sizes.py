"""How much an optimizer remembers, and borrows while it steps, for each number that learns."""

from __future__ import annotations

from typing import NamedTuple


class OptimizerSize(NamedTuple):
    """Bytes for each number that learns: remembered, and taken for a moment in every step."""

    state: float
    passing: float = 0.0


FACTORED = 0.1
"""A row and a column in place of a whole matrix."""

OPTIMIZER_SIZES: dict[str, OptimizerSize] = {
    "lion": OptimizerSize(4),
    "adamw": OptimizerSize(8, 4),  # on a GPU its fused form takes nothing for the moment
    "adamw_8bit": OptimizerSize(2.1),
    "paged_adamw_8bit": OptimizerSize(2.1),
    "lion_8bit": OptimizerSize(1.1),
    "paged_lion_8bit": OptimizerSize(1.1),
    "adafactor": OptimizerSize(FACTORED),
    "prodigy": OptimizerSize(16),
    "dadapt_adam": OptimizerSize(12),
    "came": OptimizerSize(4 + 2 * FACTORED),
    "adamw_schedule_free": OptimizerSize(8, 4),
    "sgd": OptimizerSize(4),
}
"""Paged ones move out of a GPU's memory when that is full, and count as if they did not."""
