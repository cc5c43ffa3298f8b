"""OpenCLIP's text encoders in the original layout: configs, and names against transformers'."""

from __future__ import annotations

from typing import Any

from dreambooth_core.checkpoint.header import Header
from dreambooth_core.families.clip_text import Facts, count_layers, encoder_config
from dreambooth_core.families.renaming import Place, shape_of
from dreambooth_core.families.side_file import Side

VIT_H_WIDTH = 1024
USED_OF_VIT_H = 23
"""Of its 24 layers."""
REAL_WIDTHS = (VIT_H_WIDTH, 1280)
"""Of ViT-H and ViT-bigG; both have heads of 64 channels."""
HEAD_CHANNELS = 64
PAD = 0
LAYERS = "text_model.encoder.layers."
PROJECTION = "text_projection"

OUTSIDE_THE_LAYERS = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
IN_A_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
JOINED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
"""Kept as one tensor, `attn.in_proj_weight` or `attn.in_proj_bias`, in this order."""


def open_clip_config(
    header: Header, side: Side, prefix: str, yaml: str, *, penultimate: bool = False
) -> dict[str, Any]:
    """Return transformers' config of an encoder that projects its pooled vector.

    With `penultimate` it is one that does not, and ends with its last layer but one. Raises
    CheckpointError where the header and the yaml leave the number of heads open.
    """
    table = f"{prefix}token_embedding.weight"
    blocks = f"{prefix}transformer.resblocks.{{}}.mlp.c_fc.weight"
    width = shape_of(header, table)[1]
    facts = Facts(
        table=table,
        positions=f"{prefix}positional_embedding",
        feed_forward=blocks,
        yaml=yaml,
        activation="gelu",
        pad_token_id=PAD,
        heads=width // HEAD_CHANNELS if width in REAL_WIDTHS else None,
        layers=_layers_before_last(header, blocks, width) if penultimate else None,
        projection=0 if penultimate else shape_of(header, f"{prefix}{PROJECTION}")[1],
    )
    return encoder_config(header, side, facts)


def _layers_before_last(header: Header, blocks: str, width: int) -> int:
    """Return the number of layers but one, also where a converter left the unused one away."""
    count = count_layers(header, blocks)
    return min(count, USED_OF_VIT_H) if width == VIT_H_WIDTH else count - 1


def open_clip_place(prefix: str, target: str) -> Place:
    """Return where a file keeps a weight of the encoder; raises KeyError for an unknown one."""
    if target == f"{PROJECTION}.weight":
        return Place(prefix + PROJECTION, "transposed")
    if not target.startswith(LAYERS):
        return Place(prefix + OUTSIDE_THE_LAYERS[target])
    number, _, name = target.removeprefix(LAYERS).partition(".")
    module, _, leaf = name.rpartition(".")
    block = f"{prefix}transformer.resblocks.{number}"
    if module in JOINED:
        return Place(f"{block}.attn.in_proj_{leaf}", part=(JOINED.index(module), len(JOINED)))
    return Place(f"{block}.{IN_A_LAYER[module]}.{leaf}")
