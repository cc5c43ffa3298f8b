"""Stable Diffusion XL: CLIP-L beside OpenCLIP ViT-bigG, and a UNet that is told of sizes and crop.

Shapes: B examples, n chunks of 77 tokens, T = 77 n tokens, D hidden width, P pooled width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.checkpoint.clip_tokenizer import END_TOKEN, ZERO_TOKEN
from dreambooth_core.checkpoint.header import Header
from dreambooth_core.families import clip_text, ldm_unet
from dreambooth_core.families.base import (
    AS_THE_WEBUI,
    Components,
    Conditioning,
    Config,
    PromptReading,
)
from dreambooth_core.families.clip_text import chunked_token_ids, joined_chunks, run_encoder
from dreambooth_core.families.latent_diffusion import LatentDiffusion
from dreambooth_core.families.open_clip_text import open_clip_config, open_clip_place
from dreambooth_core.families.renaming import Place, original_name
from dreambooth_core.families.side_file import Side

CLIP_PREFIX = "conditioner.embedders.0.transformer."
OPEN_CLIP_PREFIX = "conditioner.embedders.1.model."
OPEN_CLIP_YAML = "dreambooth.text_config_2"
PENULTIMATE = -2


class StableDiffusionXL(LatentDiffusion):
    """Base checkpoints of Stable Diffusion XL and what was trained from them."""

    name = "sdxl"
    lora_base_version = "sdxl_base_v1-0"
    resolution = 1024
    scaling_factor = 0.13025
    text_encoders = ("text_encoder", "text_encoder_2")
    tokenizers = ("tokenizer", "tokenizer_2")
    networks = ("unet", "vae", "text_encoder", "text_encoder_2")
    pad_tokens = (END_TOKEN, ZERO_TOKEN)

    def architecture(self, configs: Mapping[str, Config]) -> str:
        """Return modelspec's name."""
        kind = "-inpainting" if ldm_unet.paints_in(configs) else "-base"
        return f"stable-diffusion-xl-v1{kind}"

    def pipeline(self, configs: Mapping[str, Config]) -> Config:
        """Return diffusers' pipeline class for the model, and its settings."""
        kind = "StableDiffusionXLInpaint" if ldm_unet.paints_in(configs) else "StableDiffusionXL"
        return {"_class_name": f"{kind}Pipeline", "force_zeros_for_empty_prompt": True}

    def text_configs(self, header: Header, side: Side) -> dict[str, Config]:
        """Return the configs of CLIP-L and ViT-bigG."""
        return {
            "text_encoder": clip_text.text_config(header, side, CLIP_PREFIX),
            "text_encoder_2": open_clip_config(header, side, OPEN_CLIP_PREFIX, OPEN_CLIP_YAML),
        }

    def text_place(self, header: Header, component: str, target: str) -> Place:
        """Return where a file keeps a weight of CLIP-L or ViT-bigG."""
        if component == "text_encoder":
            return Place(clip_text.original_text_name(header, target, CLIP_PREFIX))
        return open_clip_place(OPEN_CLIP_PREFIX, target)

    def pooled_width(self, text: Mapping[str, Config]) -> int:
        """Return the width of ViT-bigG's projected vector."""
        return int(text["text_encoder_2"]["projection_dim"])

    def encode_prompts(
        self,
        components: Components,
        prompts: Sequence[str],
        clip_skip: int = 1,
        reading: PromptReading = AS_THE_WEBUI,
    ) -> Conditioning:
        """Return both encoders' states side by side, (B, 77 n, D), and the pooled vector (B, P).

        The states are those of the last layer but one, without a norm, whatever `clip_skip` says,
        as in the WebUI. The vector is that of the first chunk.
        """
        tokenizers = (components.tokenizer, components.tokenizer_2)
        first, second = (chunked_token_ids(each, prompts, reading) for each in tokenizers)
        states = run_encoder(components.text_encoder, first).hidden_states[PENULTIMATE]
        output = run_encoder(components.text_encoder_2, second)
        hidden = joined_chunks(states, first)
        more = joined_chunks(output.hidden_states[PENULTIMATE], second).to(hidden.device)
        chunks = second.shape[1]
        return Conditioning(torch.cat([hidden, more], dim=-1), output.text_embeds[::chunks])

    def unconditional(self, encoded: Conditioning, rows: Sequence[bool]) -> Conditioning:
        """Return `encoded` with zeros in these rows, as the WebUI for no negative prompt."""
        keep = torch.tensor([0.0 if row else 1.0 for row in rows])

        def zeroed(tensor: Tensor) -> Tensor:
            return tensor * keep.to(tensor).reshape(-1, *(1 for _ in tensor.shape[1:]))

        pooled = None if encoded.pooled is None else zeroed(encoded.pooled)
        return Conditioning(
            zeroed(encoded.encoder_hidden_states), pooled, encoded.sizes, encoded.canvas
        )

    def added_conditions(self, conditioning: Conditioning) -> dict[str, Tensor] | None:
        """Return the pooled vector and the sizes."""
        if conditioning.pooled is None or conditioning.sizes is None:
            raise ValueError("Stable Diffusion XL is told a pooled vector and sizes")
        return {"text_embeds": conditioning.pooled, "time_ids": conditioning.sizes}

    def lora_name(self, component: str, path: str, config: Mapping[str, Any]) -> str:
        """Return what LoRA files call a layer: the UNet's in the original layout's names."""
        prefixes = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
        if component == "unet":
            path = original_name(ldm_unet.unet_names(config), path)
        return prefixes.get(component, "lora_unet_") + path.replace(".", "_")
