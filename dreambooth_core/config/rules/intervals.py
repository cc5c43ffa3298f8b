"""Rules of how long a run is and when it rests."""

from __future__ import annotations

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.errors import Problem


def check_intervals(config: TrainConfig) -> list[Problem]:
    """Return that a run has no length, or pauses of which half is missing."""
    intervals, problems = config.intervals, []
    if not intervals.epochs and not intervals.max_steps:
        problems.append(
            Problem(
                "intervals.epochs",
                "is 0, and intervals.max_steps too, so there is nothing to train.",
                "Say how long to train: set one of them.",
            )
        )
    if intervals.pause_every_epochs and not intervals.pause_seconds:
        problems.append(
            Problem(
                "intervals.pause_seconds",
                "is 0, but pauses are asked for.",
                "Say how long a pause is, or set pause_every_epochs to 0.",
            )
        )
    if intervals.pause_seconds and not intervals.pause_every_epochs:
        problems.append(
            Problem(
                "intervals.pause_every_epochs",
                "is 0, but pause_seconds is set.",
                "Say after how many epochs to pause, or set pause_seconds to 0.",
            )
        )
    return problems
