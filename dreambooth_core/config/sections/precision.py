"""Number formats, memory and the device."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.control import control

MIXED_PRECISION_CHOICES = ("no", "bf16", "fp16")
WEIGHTS_DTYPE_CHOICES = ("fp32", "bf16")
ATTENTION_CHOICES = ("default", "xformers", "sliced")


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
    weights: str = control(
        "fp32",
        "Number format of the weights",
        "bf16 keeps the networks and their gradients in 16 bits, which halves what they take. "
        "Each update is rounded up or down by chance (stochastic rounding), so that even steps "
        "far smaller than 16 bits can hold move the weights on average; plain rounding would lose "
        "them. Needs mixed precision bf16. Of a LoRA only the frozen model is kept so.",
        choices=WEIGHTS_DTYPE_CHOICES,
        advanced=True,
        source="Zamirai et al. 2020 (arXiv 2010.06192) for the rounding",
    )
    attention: str = control(
        "default",
        "Memory attention",
        "How attention is computed. default is PyTorch's own (SDPA), fast and sparing; xformers "
        "needs the package of that name and a GPU; sliced goes through it in parts: least memory, "
        "slowest.",
        choices=ATTENTION_CHOICES,
        advanced=True,
    )
    tf32: bool = control(
        False,
        "TF32",
        "Lets the GPU multiply 32-bit matrices with shortened numbers: faster, a little less "
        "exact. Needs an NVIDIA GPU of the 30 series (Ampere) or newer; mixed precision gains "
        "nothing from it.",
        advanced=True,
    )
    device: str = control(
        "auto",
        "Device",
        "Where to compute: auto takes the GPU if there is one, else cpu; cuda:1 is the second GPU.",
        kind="device",
    )
