"""A plain reading of LoRA files, independent of the product: W + up down alpha / rank, and DoRA.

The formulas are those of the WebUI's own Lora extension (A1111 1.10.1, `network_lora.py` and
`apply_weight_decompose` in `network.py`), written out with einsum.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_"}


def changed_weight(
    weight: Tensor, tensors: dict[str, Tensor], name: str, strength: float = 1.0
) -> Tensor:
    """The weight of one layer with the LoRA of that name in it."""
    down = tensors[f"{name}.lora_down.weight"].double().flatten(1)
    up = tensors[f"{name}.lora_up.weight"].double().flatten(1)
    scale = tensors[f"{name}.alpha"].item() / down.shape[0]
    wide = weight.double()
    change = torch.einsum("or,ri->oi", up, down).reshape(wide.shape) * scale
    scales = tensors.get(f"{name}.dora_scale")
    if scales is not None:
        merged = (wide + change).transpose(0, 1)  # (I, O, k, k)
        lengths = merged.flatten(1).square().sum(1).sqrt()
        factors = scales.double().flatten() / lengths
        merged = merged * factors.reshape(-1, *[1] * (merged.dim() - 1))
        change = merged.transpose(0, 1) - wide
    return (wide + strength * change).to(weight.dtype)


@torch.no_grad()
def put_in(network: nn.Module, path: Path, component: str, strength: float = 1.0) -> int:
    """Put a LoRA file into a plain network, and return how many of its layers it changed."""
    tensors = load_file(path)
    names = {key.partition(".")[0] for key in tensors}
    changed = 0
    for module_path, module in network.named_modules():
        name = PREFIXES[component] + module_path.replace(".", "_")
        if name in names:
            module.weight.copy_(changed_weight(module.weight, tensors, name, strength))
            changed += 1
    return changed
