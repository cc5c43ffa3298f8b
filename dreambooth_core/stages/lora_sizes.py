"""How large the adapters of a training are, from its settings; needs no torch."""

from __future__ import annotations

from dreambooth_core.adapters.targets import CONVOLUTION, LINEAR, Size
from dreambooth_core.config.lora import LoraSection


def adapter_sizes(lora: LoraSection, component: str) -> dict[str, Size]:
    """Return how large a component's adapters are for each kind of layer that gets one."""
    if component != "unet":
        own = Size(lora.text_encoder_rank, lora.text_encoder_alpha)
        return {LINEAR: own if lora.text_encoder_rank else Size(lora.rank, lora.alpha)}
    sizes = {LINEAR: Size(lora.rank, lora.alpha)}
    if lora.conv_rank:
        sizes[CONVOLUTION] = Size(lora.conv_rank, lora.conv_alpha)
    return sizes
