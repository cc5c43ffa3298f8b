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
REAL_HEAD_CHANNELS = 64
YAML = ("model.params.unet_config.params", "model.params.network_config.params")
"""Where side files have the UNet's settings: those of the original code and its successor's."""

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
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
SIZES = 6
"""Numbers that a UNet is told of a picture's size and crop."""


@dataclass(frozen=True)
class _Layer:
    """One layer of the encoder half: its width, and how many transformer blocks follow it."""

    width: int
    blocks: int


def unet_config(
    header: Header, side: Side, sample_size: int, pooled_width: int = 0
) -> dict[str, Any]:
    """Return diffusers' config of a file's UNet; `sample_size` is the usual side of its latents.

    `pooled_width` is that of the prompt's vector which it is told beside the picture's sizes.
    Raises CheckpointError where the header and the yaml leave the number of heads open.
    """
    levels = _levels(header)
    attention = [level[0].blocks > 0 for level in levels]
    linear = len(shape_of(header, f"{PREFIX}middle_block.1.proj_in.weight")) == 2
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
        "attention_head_dim": _heads(header, side, [level[0].width for level in levels], linear),
        "transformer_layers_per_block": _depths([level[0].blocks for level in levels]),
        "use_linear_projection": linear,
        **_added_conditions(header, pooled_width),
    }


def paints_in(configs: Mapping[str, Any]) -> bool:
    """Return whether the UNet is an inpainting one: it also takes a mask and a masked picture."""
    latents = configs["vae"]["latent_channels"]
    return bool(configs["unet"]["in_channels"] == 2 * latents + 1)


def is_of_real_width(header: Header) -> bool:
    """Return whether the UNet is as wide as the published ones."""
    return shape_of(header, f"{PREFIX}input_blocks.0.0.weight")[0] == REAL_CHANNELS


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
            levels[-1].append(_Layer(width, _blocks(header, f"{block}.1")))
        else:
            break
        number += 1
    if any(len(level) != len(levels[0]) or len(set(level)) != 1 for level in levels):
        raise CheckpointError(
            f"The UNet of {header.path} is built in an unusual way (its levels are uneven).",
            remedy="Use a checkpoint of the usual Stable Diffusion form.",
        )
    return levels


def _blocks(header: Header, attention: str) -> int:
    """Return how many transformer blocks there are at a place, 0 if there is no attention."""
    count = 0
    while f"{attention}.transformer_blocks.{count}.norm1.weight" in header.tensors:
        count += 1
    return count


def _depths(blocks: list[int]) -> int | list[int]:
    """Return one number for all levels where it can be; levels without attention have any."""
    depths = [max(1, count) for count in blocks]
    return depths if max(depths) > 1 else 1


def _added_conditions(header: Header, pooled_width: int) -> dict[str, Any]:
    key = f"{PREFIX}label_emb.0.0.weight"
    if not pooled_width:
        return {}
    width = shape_of(header, key)[1]
    each, rest = divmod(width - pooled_width, SIZES)
    if rest or each < 1:
        raise CheckpointError(
            f"The weight {key} of {header.path} has {width} inputs, which does not fit the text"
            " encoder.",
            remedy="The file is damaged, or of a form that is not supported.",
        )
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": each,
        "projection_class_embeddings_input_dim": width,
    }


def _heads(header: Header, side: Side, widths: list[int], linear: bool) -> int | list[int]:
    """Return the number of attention heads, or that of each level if their width is what is fixed.

    Models with matrices around their attention have heads of 64 channels, older ones 8 heads.
    """
    for yaml in YAML:
        if side_value(side, f"{yaml}.num_head_channels") is not None:
            channels = side_count(side, f"{yaml}.num_head_channels", REAL_HEAD_CHANNELS)
            return [width // channels for width in widths]
        if side_value(side, f"{yaml}.num_heads") is not None:
            return side_count(side, f"{yaml}.num_heads", REAL_HEADS)
    if is_of_real_width(header):
        return [width // REAL_HEAD_CHANNELS for width in widths] if linear else REAL_HEADS
    name = f"{YAML[0]}.num_head_channels" if linear else f"{YAML[0]}.num_heads"
    raise CheckpointError(
        f"{header.path} has a UNet of unusual width, and no weight tells its number of attention"
        " heads.",
        remedy=f"Put its .yaml beside it, with {name}.",
    )
