"""Stable Diffusion 2: OpenCLIP ViT-H up to its last layer but one, heads of 64 channels.

Shapes: B examples, T tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dreambooth_core.checkpoint.clip_tokenizer import ZERO_TOKEN
from dreambooth_core.checkpoint.header import Header
from dreambooth_core.families import clip_text, ldm_unet, ldm_vae
from dreambooth_core.families.base import (
    AS_THE_WEBUI,
    Components,
    Conditioning,
    Config,
    PromptReading,
    Shape,
)
from dreambooth_core.families.latent_diffusion import OWN_IMAGE_SIZE, LatentDiffusion
from dreambooth_core.families.open_clip_text import open_clip_config, open_clip_place
from dreambooth_core.families.renaming import Place
from dreambooth_core.families.sd1 import stable_diffusion_pipeline
from dreambooth_core.families.side_file import Side, side_count

PREFIX = "cond_stage_model.model."
RESOLUTION_OF_V = 768


class StableDiffusion2(LatentDiffusion):
    """Checkpoints of Stable Diffusion 2.x, whose weights do not tell what the UNet predicts."""

    name = "sd2"
    lora_base_version = "sd_v2"
    resolution = 512
    scaling_factor = ldm_vae.SCALING_FACTOR
    pad_tokens = (ZERO_TOKEN,)
    assumed_prediction_type = None

    def architecture(self, configs: Mapping[str, Config]) -> str:
        """Return modelspec's name."""
        if ldm_unet.paints_in(configs):
            return "stable-diffusion-v2-inpainting"
        is_v = configs["scheduler"]["prediction_type"] == "v_prediction"
        return "stable-diffusion-v2-768-v" if is_v else "stable-diffusion-v2-512"

    def pipeline(self, configs: Mapping[str, Config]) -> Config:
        """Return diffusers' pipeline class for the model, and its settings."""
        return stable_diffusion_pipeline(configs)

    def usual_latents(self, header: Header, side: Side, factor: int, prediction_type: str) -> int:
        """Return the usual side of latents; the original code's yaml says 64 for both kinds."""
        if prediction_type == "v_prediction" and ldm_unet.is_of_real_width(header):
            return side_count(side, OWN_IMAGE_SIZE, RESOLUTION_OF_V // factor)
        return super().usual_latents(header, side, factor, prediction_type)

    def text_configs(self, header: Header, side: Side) -> dict[str, Config]:
        """Return ViT-H's config, without the last layer, whose output is never used."""
        config = open_clip_config(header, side, PREFIX, clip_text.YAML, penultimate=True)
        return {"text_encoder": config}

    def text_place(self, header: Header, component: str, target: str) -> Place:
        """Return where a file keeps a weight of ViT-H."""
        return open_clip_place(PREFIX, target)

    def unused_weights(self, configs: Mapping[str, Config]) -> dict[str, Shape]:
        """Return ViT-H's last layer, and what compares texts with pictures."""
        config = configs["text_encoder"]
        width, hidden = config["hidden_size"], config["intermediate_size"]
        block = f"{PREFIX}transformer.resblocks.{config['num_hidden_layers']}."
        matrices: dict[str, Shape] = {
            "attn.in_proj_": (3 * width, width),
            "attn.out_proj.": (width, width),
            "mlp.c_fc.": (hidden, width),
            "mlp.c_proj.": (width, hidden),
        }
        names: dict[str, Shape] = {
            f"{block}{name}weight": shape for name, shape in matrices.items()
        }
        names |= {f"{block}{name}bias": shape[:1] for name, shape in matrices.items()}
        for norm in ("ln_1", "ln_2"):
            names |= {f"{block}{norm}.{leaf}": (width,) for leaf in ("weight", "bias")}
        return {**names, f"{PREFIX}text_projection": (width, width), f"{PREFIX}logit_scale": ()}

    def encode_prompts(
        self,
        components: Components,
        prompts: Sequence[str],
        clip_skip: int = 1,
        reading: PromptReading = AS_THE_WEBUI,
    ) -> Conditioning:
        """Encode prompts in chunks of 75 tokens, (B, 77 n, D).

        The last layer there is was the last but one, so `clip_skip` is left out of account, as in
        the WebUI.
        """
        ids = clip_text.chunked_token_ids(components.tokenizer, prompts, reading)
        return Conditioning(clip_text.encode_chunks(components.text_encoder, ids, 1))
