"""LoRA put into a model's networks by peft, and shown under the names that the WebUI reads."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from dreambooth_core.adapters.dora import ColumnDora
from dreambooth_core.adapters.targets import Size, layer_sizes
from dreambooth_core.errors import InputError

ADAPTER = "default"
"""The name that peft knows the adapter by."""


class AdaptedLayer(nn.Module):
    """The adapter of one layer, its weights named as the WebUI's files name them."""

    def __init__(self, layer: LoraLayer) -> None:
        """Show the adapter that peft put into a layer; nothing is copied."""
        super().__init__()
        self.alpha = float(layer.lora_alpha[ADAPTER])
        self.lora_down = layer.lora_A[ADAPTER]
        self.lora_up = layer.lora_B[ADAPTER]
        if ADAPTER in layer.lora_magnitude_vector:
            self.dora_scale = layer.lora_magnitude_vector[ADAPTER].weight


class LoraNetwork(nn.ModuleDict):
    """The adapters of one network by the layers' names in the WebUI's files.

    `named_parameters` gives exactly what such a file holds, but for the alphas.
    """

    def alphas(self) -> dict[str, float]:
        """Return each adapter's alpha by its layer's name."""
        layers = ((name, layer) for name, layer in self.items() if isinstance(layer, AdaptedLayer))
        return {name: layer.alpha for name, layer in layers}


def add_lora(
    component: str,
    network: nn.Module,
    sizes: Mapping[str, Size],
    name_of: Callable[[str], str],
    generator: torch.Generator,
    *,
    dora: bool = False,
) -> LoraNetwork:
    """Put adapters that do nothing yet into a network and return them.

    `sizes` says how large they are for each kind of layer; kinds that are not named get none.
    `name_of` returns the name of the layer at a path. Raises InputError if no layer is of a kind
    that is asked for.
    """
    shapes = {key: tuple(weight.shape) for key, weight in network.named_parameters()}
    layers = layer_sizes(component, shapes, sizes)
    if not layers:
        raise InputError(f"The {component} of this model has no layer that a LoRA can adapt.")
    inject_adapter_in_model(_peft_config(layers), network, ADAPTER)
    adapted = {}
    for path in layers:
        layer = network.get_submodule(path)
        _begin(layer, generator)
        if dora:
            ColumnDora.init(layer, ADAPTER)
        adapted[name_of(path)] = AdaptedLayer(layer)
    if len(adapted) != len(layers):
        raise ValueError(f"two layers of {component} have the same name in a LoRA file")
    return LoraNetwork(adapted)


def _peft_config(layers: Mapping[str, Size]) -> LoraConfig:
    """Return peft's settings for exactly these layers, with one pattern for each size."""
    paths: dict[Size, list[str]] = {}
    for path, size in layers.items():
        paths.setdefault(size, []).append(re.escape(path))
    patterns = {size: "|".join(found) for size, found in paths.items()}
    usual = next(iter(patterns))
    return LoraConfig(
        r=usual.rank,
        lora_alpha=usual.alpha,
        rank_pattern={pattern: size.rank for size, pattern in patterns.items()},
        alpha_pattern={pattern: size.alpha for size, pattern in patterns.items()},
        target_modules="|".join(patterns.values()),
    )


@torch.no_grad()
def _begin(layer: LoraLayer, generator: torch.Generator) -> None:
    """Draw `down` uniformly within 1 / sqrt(inputs), the usual start of a layer, and zero `up`.

    The numbers come from the CPU, so that they are the same on every device. They are fp32 also
    where the layer itself is kept in 16 bits.
    """
    layer.lora_A[ADAPTER].float()
    layer.lora_B[ADAPTER].float()
    down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    bound = 1 / math.sqrt(down[0].numel())
    drawn = torch.empty(down.shape).uniform_(-bound, bound, generator=generator)
    down.copy_(drawn)
    up.zero_()
