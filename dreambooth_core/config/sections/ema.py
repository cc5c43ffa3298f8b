"""The running average of the weights."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.control import control

EMA_DEVICE_CHOICES = ("auto", "cpu")


@dataclass(kw_only=True)
class EmaSection:
    """A running average of the weights."""

    enabled: bool = control(
        True,
        "Use EMA",
        "Keeps a running average of the trained weights beside them, which usually gives calmer "
        "and better pictures. Costs memory for one more copy.",
    )
    decay: float = control(
        0.995,
        "EMA decay",
        "How slowly the average follows: 0.995 averages about the last 200 steps. "
        "Early in the run it follows faster by itself.",
        minimum=0.0,
        maximum=0.99999,
        step=0.001,
        advanced=True,
    )
    every_steps: int = control(
        1,
        "EMA update interval",
        "Updates the average every this many steps. More is faster and a little rougher.",
        minimum=1,
        maximum=1000,
        step=1,
        unit="steps",
        advanced=True,
    )
    device: str = control(
        "auto",
        "EMA device",
        "Where the average is kept, always in 32 bits: auto beside the weights, cpu in the main "
        "memory, which spares a GPU 4 bytes a weight and takes a little longer.",
        choices=EMA_DEVICE_CHOICES,
        advanced=True,
    )
