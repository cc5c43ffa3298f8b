"""The UNet in the original layout: its config read off a header, and its weights' names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dreambooth_core.checkpoint.header import Header
from dreambooth_core.errors import CheckpointError
from dreambooth_core.families.renaming import Names, shape_of, with_leaves
from dreambooth_core.families.side_file import Side, side_count, side_value

PREFIX = "model.diffusion_model."
REAL_CHANNELS = 320
REAL_HEADS = 8
YAML = "model.params.unet_config.params"

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}

OUTSIDE_THE_BLOCKS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


@dataclass(frozen=True)
class _Layer:
    """One layer of the encoder half: its width, and whether attention follows it."""

    width: int
    attention: bool


def unet_config(header: Header, side: Side, sample_size: int) -> dict[str, Any]:
    """Return diffusers' config of a file's UNet; `sample_size` is the usual side of its latents.

    Raises CheckpointError where the header and the yaml leave the number of heads open.
    """
    levels = _levels(header)
    attention = [level[0].attention for level in levels]
    proj_in = next(key for key in header.tensors if key.endswith(".proj_in.weight"))
    context = shape_of(header, f"{PREFIX}middle_block.1.transformer_blocks.0.attn2.to_k.weight")
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": sample_size,
        "in_channels": shape_of(header, f"{PREFIX}input_blocks.0.0.weight")[1],
        "out_channels": shape_of(header, f"{PREFIX}out.2.weight")[0],
        "block_out_channels": [level[0].width for level in levels],
        "layers_per_block": len(levels[0]),
        "down_block_types": [
            "CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in attention
        ],
        "up_block_types": [
            "CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(attention)
        ],
        "cross_attention_dim": context[1],
        # diffusers calls the number of heads so; the weights do not tell it.
        "attention_head_dim": _heads(header, side),
        "use_linear_projection": len(header.tensors[proj_in].shape) == 2,
    }


def unet_names(config: Mapping[str, Any]) -> Names:
    """Return the modules' names, derived from the config alone."""
    names = dict(OUTSIDE_THE_BLOCKS)
    layers, levels = config["layers_per_block"], len(config["block_out_channels"])
    for i in range(levels):
        first = (layers + 1) * i
        for j in range(layers):
            names |= _layer(f"down_blocks.{i}", j, f"input_blocks.{first + j + 1}")
        names[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{first + layers + 1}.0.op"
        for j in range(layers + 1):
            names |= _layer(f"up_blocks.{i}", j, f"output_blocks.{first + j}")
        # The upsampler comes after the attention, so its number tells whether there is any.
        place = 2 if config["up_block_types"][i].startswith("CrossAttn") else 1
        names[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{first + layers}.{place}.conv"
    for k in range(2):
        names |= with_leaves(f"mid_block.resnets.{k}", f"middle_block.{2 * k}", RESNET)
    names["mid_block.attentions.0"] = "middle_block.1"
    return names


def _layer(block: str, j: int, source: str) -> Names:
    resnet = with_leaves(f"{block}.resnets.{j}", f"{source}.0", RESNET)
    return {**resnet, f"{block}.attentions.{j}": f"{source}.1"}


def _levels(header: Header) -> list[list[_Layer]]:
    """Walk the input blocks: a downsampler ends a level; layers of one level must be alike."""
    levels: list[list[_Layer]] = [[]]
    number = 1
    while True:
        block = f"{PREFIX}input_blocks.{number}"
        if f"{block}.0.op.weight" in header.tensors:
            levels.append([])
        elif f"{block}.0.out_layers.3.weight" in header.tensors:
            width = header.tensors[f"{block}.0.out_layers.3.weight"].shape[0]
            attends = f"{block}.1.proj_in.weight" in header.tensors
            levels[-1].append(_Layer(width, attends))
        else:
            break
        number += 1
    if any(len(level) != len(levels[0]) or len(set(level)) != 1 for level in levels):
        raise CheckpointError(
            f"The UNet of {header.path} is built in an unusual way (its levels are uneven).",
            remedy="Use a checkpoint of the usual Stable Diffusion form.",
        )
    return levels


def _heads(header: Header, side: Side) -> int:
    if side_value(side, f"{YAML}.num_heads") is not None:
        return side_count(side, f"{YAML}.num_heads", REAL_HEADS)
    if shape_of(header, f"{PREFIX}input_blocks.0.0.weight")[0] == REAL_CHANNELS:
        return REAL_HEADS
    raise CheckpointError(
        f"{header.path} has a UNet of unusual width, and no weight tells its number of attention"
        " heads.",
        remedy=f"Put its .yaml beside it, with {YAML}.num_heads.",
    )
