"""The three networks of the world's model: a small Stable Diffusion 1 with the usual factor 8."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

PICTURE_SIZE = 128
LATENT_SIZE = 16
TEXT_WIDTH = 80

VAE: dict[str, Any] = {
    "sample_size": PICTURE_SIZE,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    # GroupNorm has 32 groups: with 32 channels it would wipe out every channel's mean, and with it
    # the colours of a picture.
    "block_out_channels": (64, 64, 64, 64),
    "layers_per_block": 0,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}

UNET: dict[str, Any] = {
    "sample_size": LATENT_SIZE,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 128, 128),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": 4,  # diffusers calls the number of heads so
}

TEXT: dict[str, Any] = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 4 * TEXT_WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": TEXT_WIDTH,
}


def new_vae(levels: int = 4) -> AutoencoderKL:
    """Return an untrained VAE; with fewer levels, the inner part of the whole one."""
    inner = {
        "block_out_channels": VAE["block_out_channels"][:levels],
        "down_block_types": VAE["down_block_types"][:levels],
        "up_block_types": VAE["up_block_types"][:levels],
    }
    return AutoencoderKL(**{**VAE, **inner})


def new_unet() -> UNet2DConditionModel:
    """Return an untrained UNet."""
    return UNet2DConditionModel(**UNET)


def new_text_encoder(words: int, end: int) -> CLIPTextModel:
    """Return an untrained text encoder over `words` tokens, of which `end` is the end token."""
    return CLIPTextModel(CLIPTextConfig(**TEXT, vocab_size=words, eos_token_id=end))
