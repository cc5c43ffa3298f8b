"""The VAE in the original layout: its config read off a header, and its weights' names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreambooth_core.checkpoint.header import Header
from dreambooth_core.families.renaming import Names, shape_of, with_leaves
from dreambooth_core.families.side_file import Side, side_number

PREFIX = "first_stage_model."
SCALING_FACTOR = 0.18215
"""Of Stable Diffusion 1 and 2."""

OUTSIDE_THE_BLOCKS = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "nin_shortcut",
}
ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def vae_levels(header: Header) -> int:
    """Return the number of levels; a picture's side is 2 ** (levels - 1) times its latents'."""
    return _count(header, f"{PREFIX}decoder.up.{{}}.block.0.conv1.weight")


def vae_config(
    header: Header, side: Side, sample_size: int, scaling_factor: float = SCALING_FACTOR
) -> dict[str, Any]:
    """Return diffusers' config of a file's VAE; `sample_size` is the usual side of its pictures.

    The yaml's scaling factor counts before the family's.
    """
    levels = vae_levels(header)
    layers = _count(header, f"{PREFIX}decoder.up.0.block.{{}}.conv1.weight")
    widths = [
        shape_of(header, f"{PREFIX}decoder.up.{i}.block.0.conv1.weight")[0] for i in range(levels)
    ]
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": sample_size,
        "in_channels": shape_of(header, f"{PREFIX}encoder.conv_in.weight")[1],
        "out_channels": shape_of(header, f"{PREFIX}decoder.conv_out.weight")[0],
        "latent_channels": shape_of(header, f"{PREFIX}decoder.conv_in.weight")[1],
        "block_out_channels": widths,
        "layers_per_block": layers - 1,  # the decoder has one more than the encoder
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "scaling_factor": side_number(side, "model.params.scale_factor", scaling_factor),
    }


def vae_names(config: Mapping[str, Any]) -> Names:
    """Return the modules' names; the original counts the decoder's levels from the other end."""
    names = dict(OUTSIDE_THE_BLOCKS)
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    for i in range(levels):
        down, up = f"encoder.down.{i}", f"decoder.up.{levels - 1 - i}"
        encoder, decoder = f"encoder.down_blocks.{i}", f"decoder.up_blocks.{i}"
        for j in range(layers):
            names |= with_leaves(f"{encoder}.resnets.{j}", f"{down}.block.{j}", RESNET)
        for j in range(layers + 1):
            names |= with_leaves(f"{decoder}.resnets.{j}", f"{up}.block.{j}", RESNET)
        names[f"{encoder}.downsamplers.0.conv"] = f"{down}.downsample.conv"
        names[f"{decoder}.upsamplers.0.conv"] = f"{up}.upsample.conv"
    for half in ("encoder", "decoder"):
        names |= _half(half)
    return names


def _half(half: str) -> Names:
    names = {
        f"{half}.conv_in": f"{half}.conv_in",
        f"{half}.conv_out": f"{half}.conv_out",
        f"{half}.conv_norm_out": f"{half}.norm_out",
    }
    for k in range(2):
        names |= with_leaves(f"{half}.mid_block.resnets.{k}", f"{half}.mid.block_{k + 1}", RESNET)
    return names | with_leaves(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1", ATTENTION)


def _count(header: Header, pattern: str) -> int:
    count = 0
    while pattern.format(count) in header.tensors:
        count += 1
    if not count:
        shape_of(header, pattern.format(0))
    return count
