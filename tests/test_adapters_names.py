"""What LoRA files call layers, against names written down by hand."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from dreambooth_core.adapters.targets import adaptable_layers
from dreambooth_core.families import FAMILIES

SDXL = {
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
}

# Written down by hand from the original layouts' block numbers, in sd-scripts' form of the names.
WRITTEN_DOWN = [
    (
        "sd1",
        "unet",
        "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj",
    ),
    ("sd1", "unet", "mid_block.attentions.0.proj_out", "lora_unet_mid_block_attentions_0_proj_out"),
    (
        "sd2",
        "text_encoder",
        "text_model.encoder.layers.22.mlp.fc2",
        "lora_te_text_model_encoder_layers_22_mlp_fc2",
    ),
    (
        "sdxl",
        "unet",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
    ),
    (
        "sdxl",
        "unet",
        "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_out.0",
        "lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_out_0",
    ),
    (
        "sdxl",
        "unet",
        "up_blocks.0.attentions.2.transformer_blocks.3.ff.net.2",
        "lora_unet_output_blocks_2_1_transformer_blocks_3_ff_net_2",
    ),
    ("sdxl", "unet", "mid_block.attentions.0.proj_in", "lora_unet_middle_block_1_proj_in"),
    ("sdxl", "unet", "mid_block.resnets.1.conv2", "lora_unet_middle_block_2_out_layers_3"),
    ("sdxl", "unet", "down_blocks.0.downsamplers.0.conv", "lora_unet_input_blocks_3_0_op"),
    ("sdxl", "unet", "up_blocks.0.upsamplers.0.conv", "lora_unet_output_blocks_2_2_conv"),
    (
        "sdxl",
        "unet",
        "up_blocks.2.resnets.0.conv_shortcut",
        "lora_unet_output_blocks_6_0_skip_connection",
    ),
    (
        "sdxl",
        "text_encoder",
        "text_model.encoder.layers.11.self_attn.out_proj",
        "lora_te1_text_model_encoder_layers_11_self_attn_out_proj",
    ),
    (
        "sdxl",
        "text_encoder_2",
        "text_model.encoder.layers.31.self_attn.q_proj",
        "lora_te2_text_model_encoder_layers_31_self_attn_q_proj",
    ),
]


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    """SDXL's UNet at its full size, without memory for its weights."""
    with torch.device("meta"):
        network: nn.Module = UNet2DConditionModel(**SDXL)
    return network


@pytest.mark.parametrize(("family", "component", "path", "name"), WRITTEN_DOWN)
def test_names_are_those_of_the_original_layout(
    unet: nn.Module, family: str, component: str, path: str, name: str
) -> None:
    assert FAMILIES[family].lora_name(component, path, unet.config) == name


def test_no_two_layers_of_sdxl_share_a_name(unet: nn.Module) -> None:
    shapes = {key: tuple(weight.shape) for key, weight in unet.named_parameters()}
    layers = adaptable_layers("unet", shapes)
    names = {FAMILIES["sdxl"].lora_name("unet", path, unet.config) for path in layers}
    assert len(names) == len(layers) > 722
    starts = ("lora_unet_input_blocks_", "lora_unet_middle_block_", "lora_unet_output_blocks_")
    assert all(name.startswith(starts) for name in names)
