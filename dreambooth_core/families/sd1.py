"""Stable Diffusion 1: CLIP-L text encoder, UNet with convolutional projections, KL autoencoder.

Shapes: B examples, T tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dreambooth_core.checkpoint.clip_tokenizer import END_TOKEN
from dreambooth_core.checkpoint.header import Header
from dreambooth_core.families import clip_text, ldm_unet, ldm_vae
from dreambooth_core.families.base import (
    AS_THE_WEBUI,
    Components,
    Conditioning,
    Config,
    PromptReading,
)
from dreambooth_core.families.latent_diffusion import LatentDiffusion
from dreambooth_core.families.renaming import Place
from dreambooth_core.families.side_file import Side


class StableDiffusion1(LatentDiffusion):
    """Checkpoints of Stable Diffusion 1.x and what was trained from them."""

    name = "sd1"
    lora_base_version = "sd_v1"
    resolution = 512
    scaling_factor = ldm_vae.SCALING_FACTOR
    pad_tokens = (END_TOKEN,)

    def architecture(self, configs: Mapping[str, Config]) -> str:
        """Return modelspec's name."""
        return "stable-diffusion-v1" + ("-inpainting" if ldm_unet.paints_in(configs) else "")

    def pipeline(self, configs: Mapping[str, Config]) -> Config:
        """Return diffusers' pipeline class for the model, and its settings."""
        return stable_diffusion_pipeline(configs)

    def text_configs(self, header: Header, side: Side) -> dict[str, Config]:
        """Return CLIP-L's config."""
        return {"text_encoder": clip_text.text_config(header, side)}

    def text_place(self, header: Header, component: str, target: str) -> Place:
        """Return where a file keeps a weight of CLIP-L."""
        return Place(clip_text.original_text_name(header, target))

    def encode_prompts(
        self,
        components: Components,
        prompts: Sequence[str],
        clip_skip: int = 1,
        reading: PromptReading = AS_THE_WEBUI,
    ) -> Conditioning:
        """Encode prompts in chunks of 75 tokens, (B, 77 n, D)."""
        ids = clip_text.chunked_token_ids(components.tokenizer, prompts, reading)
        return Conditioning(clip_text.encode_chunks(components.text_encoder, ids, clip_skip))


def stable_diffusion_pipeline(configs: Mapping[str, Config]) -> Config:
    """Return diffusers' pipeline class for Stable Diffusion 1 and 2, without a safety checker."""
    kind = "StableDiffusionInpaint" if ldm_unet.paints_in(configs) else "StableDiffusion"
    return {
        "_class_name": f"{kind}Pipeline",
        "requires_safety_checker": False,
        "safety_checker": [None, None],
    }
