"""DoRA as a variant of peft's LoRA layers, with the columns that the WebUI means.

Shapes: O outputs, I inputs, k k the kernel of a convolution (left out for a matrix).
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from torch import Tensor, nn
from torch.nn import functional

from dreambooth_core.adapters.weights import (
    LowRank,
    column_norms,
    delta,
    with_columns_of_length,
)


class Magnitude(nn.Module):
    """The trained lengths of a weight's columns."""

    def __init__(self, weight: Tensor) -> None:
        """Begin at the lengths of the weight (O, I, k, k)."""
        super().__init__()
        self.weight = nn.Parameter(column_norms(weight.detach().float()))  # (1, I, 1, 1)


class ColumnDora(LoraVariant):  # type: ignore[misc]
    """Computes with W' = m (W + delta W) / |W + delta W|, column by column."""

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        """Give the layer its lengths and this way of computing."""
        magnitude = Magnitude(module.get_base_layer().weight)
        module.lora_magnitude_vector[adapter_name] = magnitude
        module.lora_variant[adapter_name] = ColumnDora()

    @staticmethod
    def forward(
        module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        """Return the layer's output with the changed weight in place of the base's."""
        base = module.get_base_layer()
        with torch.autocast(x.device.type, enabled=False):
            weight = _changed_weight(module, active_adapter, base.weight)
        if isinstance(base, nn.Conv2d):
            return functional.conv2d(x, weight, base.bias, base.stride, base.padding)
        return functional.linear(x, weight, base.bias)


def _changed_weight(module: LoraLayer, adapter_name: str, weight: Tensor) -> Tensor:
    down = module.lora_A[adapter_name].weight
    low_rank = LowRank(
        down=down,
        up=module.lora_B[adapter_name].weight,
        alpha=module.scaling[adapter_name] * len(down),
    )
    lengths = module.lora_magnitude_vector[adapter_name].weight
    return with_columns_of_length(weight + delta(low_rank), lengths)
