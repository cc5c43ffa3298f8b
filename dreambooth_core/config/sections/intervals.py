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
        "too many makes every picture look like the instance images. Each epoch shows every image "
        "exactly as often as its repeats say. 0 leaves the length to the steps alone.",
        minimum=0,
        maximum=10000,
        step=1,
        unit="epochs",
    )
    max_steps: int = control(
        0,
        "Max training steps",
        "Ends training after this many steps even if the epochs are not used up. With 0 epochs it "
        "alone says how long to train: exactly this many steps. A step is one update of the "
        "weights. 0 leaves the length to the epochs.",
        minimum=0,
        maximum=10_000_000,
        step=1,
        unit="steps",
    )
    pause_every_epochs: int = control(
        0,
        "Pause after N epochs",
        "Rests after every this many epochs, so that a hot computer can cool down. The result is "
        "the same. 0 does not.",
        minimum=0,
        maximum=10000,
        step=1,
        unit="epochs",
        advanced=True,
    )
    pause_seconds: int = control(
        0,
        "Amount of time to pause",
        "How long each of these pauses is. A stop ends it at once.",
        minimum=0,
        maximum=86400,
        step=1,
        unit="seconds",
        advanced=True,
    )
    stop_after_epochs: int = control(
        0,
        "End this session after epochs",
        "Stops, as the Stop button does, once this session has trained this many epochs. Resume "
        "goes on from there towards the same end, with the same learning rate schedule. "
        "0 does not.",
        minimum=0,
        maximum=10000,
        step=1,
        unit="epochs",
        advanced=True,
    )
    stop_after_steps: int = control(
        0,
        "End this session after steps",
        "The same after this many steps of this session. 0 does not.",
        minimum=0,
        maximum=10_000_000,
        step=1,
        unit="steps",
        advanced=True,
    )
