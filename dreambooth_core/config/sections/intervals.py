"""How long to train."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.control import control


@dataclass(kw_only=True)
class IntervalsSection:
    """How long to train."""

    epochs: int = control(
        100,
        "Training steps per image (epochs)",
        "How many times training goes over every instance image. More makes the likeness stronger, "
        "too many makes every picture look like the instance images.",
        minimum=1,
        maximum=10000,
        step=1,
        unit="epochs",
    )
    max_steps: int = control(
        0,
        "Stop after steps",
        "Ends training after this many steps even if the epochs are not used up. "
        "0 leaves the length to the epochs.",
        minimum=0,
        maximum=10_000_000,
        step=1,
        unit="steps",
    )
