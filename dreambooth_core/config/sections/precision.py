"""Number formats, memory and the device."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.control import control

MIXED_PRECISION_CHOICES = ("no", "bf16", "fp16")


@dataclass(kw_only=True)
class PrecisionSection:
    """Number formats and the device."""

    mixed_precision: str = control(
        "no",
        "Mixed precision",
        "Computes in 16 bits where that is safe while weights are kept in 32: faster and smaller "
        "on a GPU. bf16 needs a recent GPU, fp16 works on all, no computes in 32 bits.",
        choices=MIXED_PRECISION_CHOICES,
    )
    device: str = control(
        "auto",
        "Device",
        "Where to compute: auto takes the GPU if there is one, else cpu; cuda:1 is the second GPU.",
        kind="device",
    )
