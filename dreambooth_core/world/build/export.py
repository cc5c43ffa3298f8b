"""Writes the trained networks as one Stable Diffusion 1 file in the original layout.

Two exact rewritings make it a usual checkpoint: the few words that the text encoder was trained on
go to their rows of CLIP's whole vocabulary, and the latents' mean and deviation go into the VAE's
two 1x1 convolutions, so that the usual scaling factor gives latents of unit deviation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dreambooth_core.checkpoint.file import Entry, write_checkpoint
from dreambooth_core.families import clip_text, ldm_unet, ldm_vae
from dreambooth_core.families.renaming import original_name
from dreambooth_core.job.storage import atomic_write_bytes
from dreambooth_core.world.build.networks import TEXT, UNET, VAE

VOCABULARY = 49_408
UNUSED_ROW_DEVIATION = 0.02
TOKENS = "text_model.embeddings.token_embedding.weight"

Weights = Mapping[str, Tensor]


def spread_vocabulary(text: Weights, token_ids: list[int]) -> dict[str, Tensor]:
    """Put the trained rows (words, D) at their ids among 49,408; the others are small noise."""
    trained = text[TOKENS]
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(VOCABULARY, trained.shape[1], generator=generator) * UNUSED_ROW_DEVIATION
    table[token_ids] = trained
    return {**text, TOKENS: table}


def fold_normalisation(vae: Weights, mean: Tensor, deviation: Tensor) -> dict[str, Tensor]:
    """Let the VAE encode to (z - mean) / deviation / scaling factor and decode the inverse.

    Args:
        vae: The VAE's weights.
        mean: The raw latents' mean (C,).
        deviation: Their deviation (C,).
    """
    factor = ldm_vae.SCALING_FACTOR
    folded = dict(vae)
    channels = len(mean)
    weight, bias = vae["quant_conv.weight"].clone(), vae["quant_conv.bias"].clone()
    scale = 1 / (deviation * factor)
    weight[:channels] *= scale.view(-1, 1, 1, 1)
    bias[:channels] = (bias[:channels] - mean) * scale
    bias[channels:] += 2 * scale.log()  # the log-variance of the scaled latents
    # The log-variances keep their inputs: only their offset changes.
    folded |= {"quant_conv.weight": weight, "quant_conv.bias": bias}
    inverse = vae["post_quant_conv.weight"]
    folded["post_quant_conv.weight"] = inverse * (deviation * factor).view(1, -1, 1, 1)
    folded["post_quant_conv.bias"] = vae["post_quant_conv.bias"] + inverse[:, :, 0, 0] @ mean
    return folded


def original_layout(unet: Weights, vae: Weights, text: Weights) -> dict[str, Tensor]:
    """Name the weights as the original files do; the VAE's attention becomes 1x1 convolutions."""
    unet_names, vae_names = ldm_unet.unet_names(UNET), ldm_vae.vae_names(VAE)
    named = {ldm_unet.PREFIX + original_name(unet_names, key): w for key, w in unet.items()}
    for key, weight in vae.items():
        is_projection = ".attentions." in key and weight.dim() == 2
        shaped = weight[:, :, None, None] if is_projection else weight
        named[ldm_vae.PREFIX + original_name(vae_names, key)] = shaped
    return {**named, **{clip_text.PREFIX + key: weight for key, weight in text.items()}}


def side_yaml() -> str:
    """Return the side file: the original configuration with this model's sizes."""
    widths = UNET["block_out_channels"]
    multiples = [width // widths[0] for width in widths]
    attention = [
        2**level
        for level, block in enumerate(UNET["down_block_types"])
        if block.startswith("CrossAttn")
    ]
    return _SIDE_YAML.format(
        image_size=UNET["sample_size"],
        model_channels=widths[0],
        attention=attention,
        res_blocks=UNET["layers_per_block"],
        multiples=multiples,
        heads=UNET["attention_head_dim"],
        context=UNET["cross_attention_dim"],
        picture_size=VAE["sample_size"],
        vae_channels=VAE["block_out_channels"][0],
        vae_multiples=[w // VAE["block_out_channels"][0] for w in VAE["block_out_channels"]],
        vae_res_blocks=VAE["layers_per_block"],
        text_layers=TEXT["num_hidden_layers"],
        text_heads=TEXT["num_attention_heads"],
    )


def model_metadata() -> dict[str, str]:
    """Return what the file says about itself."""
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": "Dreambooth World",
        "modelspec.resolution": "128x128",
        "modelspec.prediction_type": "epsilon",
        "modelspec.license": "Apache-2.0",
    }


def export(
    path: Path, unet: Weights, vae: Weights, text: Weights, metadata: Mapping[str, str]
) -> int:
    """Write `path` in half precision with its side file; returns the size in bytes."""
    atomic_write_bytes(path.with_suffix(".yaml"), side_yaml().encode())
    tensors = original_layout(unet, vae, text)
    entries = [
        Entry(key, "F16", tuple(weight.shape), weight.half().contiguous)
        for key, weight in sorted(tensors.items())
    ]
    return write_checkpoint(path, entries, metadata).size


_SIDE_YAML = """\
model:
  base_learning_rate: 1.0e-04
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: {image_size}
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    monitor: val/loss_simple_ema
    scale_factor: 0.18215
    use_ema: False
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 32
        in_channels: 4
        out_channels: 4
        model_channels: {model_channels}
        attention_resolutions: {attention}
        num_res_blocks: {res_blocks}
        channel_mult: {multiples}
        num_heads: {heads}
        use_spatial_transformer: True
        transformer_depth: 1
        context_dim: {context}
        use_checkpoint: False
        legacy: False
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: 4
          resolution: {picture_size}
          in_channels: 3
          out_ch: 3
          ch: {vae_channels}
          ch_mult: {vae_multiples}
          num_res_blocks: {vae_res_blocks}
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
dreambooth:
  text_config:
    num_hidden_layers: {text_layers}
    num_attention_heads: {text_heads}
    hidden_act: quick_gelu
"""
