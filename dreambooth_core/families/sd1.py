"""Stable Diffusion 1: CLIP-L text encoder, UNet with convolutional projections, KL autoencoder.

Shapes: B examples, C latent channels, h w latent size, H W pixels, T tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from dreambooth_core.checkpoint.clip_tokenizer import write_tokenizer
from dreambooth_core.checkpoint.file import FLOATING
from dreambooth_core.checkpoint.header import Header
from dreambooth_core.checkpoint.recognise import TRAINABLE, is_stable_diffusion_1
from dreambooth_core.data.buckets import sides_quantum
from dreambooth_core.errors import CheckpointError
from dreambooth_core.families import clip_text, ldm_unet, ldm_vae
from dreambooth_core.families.base import Components, Conditioning, Config, Family, KeyPair
from dreambooth_core.families.renaming import original_name, shape_of
from dreambooth_core.families.side_file import Side, side_count, side_number, side_value
from dreambooth_core.job.workspace import ModelFolder

RESOLUTION = 512
BETA_START = 0.00085
BETA_END = 0.012
TIMESTEPS = 1000


class StableDiffusion1(Family):
    """Checkpoints of Stable Diffusion 1.x and what was trained from them."""

    name = "sd1"
    label = TRAINABLE["sd1"]
    architecture = "stable-diffusion-v1"

    def matches(self, header: Header) -> bool:
        """Return whether UNet, VAE and CLIP-L are there and the UNet takes plain latents."""
        return is_stable_diffusion_1(header)

    def configs(self, header: Header, side: Side) -> dict[str, Config]:
        """Return the configs of UNet, VAE, text encoder and scheduler."""
        factor = 2 ** (ldm_vae.vae_levels(header) - 1)
        latents = side_count(side, "model.params.image_size", RESOLUTION // factor)
        return {
            "unet": ldm_unet.unet_config(header, side, latents),
            "vae": ldm_vae.vae_config(header, side, latents * factor),
            "text_encoder": clip_text.text_config(header, side),
            "scheduler": _scheduler_config(side),
        }

    def key_map(self, header: Header, configs: Mapping[str, Config]) -> list[KeyPair]:
        """Return the names of every weight of the networks that the configs describe."""
        unet = ldm_unet.unet_names(configs["unet"])
        vae = ldm_vae.vae_names(configs["vae"])
        sources = {
            "unet": lambda target: ldm_unet.PREFIX + original_name(unet, target),
            "vae": lambda target: ldm_vae.PREFIX + original_name(vae, target),
            "text_encoder": lambda target: clip_text.original_text_name(header, target),
        }
        return [
            _pair(header, sources[component](target), component, target, tuple(weight.shape))
            for component in self.networks
            for target, weight in self.build(component, configs[component]).state_dict().items()
        ]

    def ema_key(self, source: str) -> str:
        """Return the flat name: no dots after `model_ema.`, and no `model.` before."""
        return "model_ema." + source.removeprefix("model.").replace(".", "")

    def write_tokenizers(self, folder: ModelFolder) -> None:
        """Write CLIP's tokenizer."""
        write_tokenizer(folder.component("tokenizer"))

    def build(self, component: str, config: Config) -> torch.nn.Module:
        """Return a network on the meta device; attention is PyTorch's fused one."""
        with torch.device("meta"):
            network: torch.nn.Module
            if component == "text_encoder":
                network = CLIPTextModel(CLIPTextConfig(**config, attn_implementation="sdpa"))
            else:
                kind: Any = UNet2DConditionModel if component == "unet" else AutoencoderKL
                network = kind.from_config(config)
            return network

    def encode_prompts(
        self, components: Components, prompts: Sequence[str], clip_skip: int = 1
    ) -> Conditioning:
        """Encode prompts in chunks of 75 tokens, (B, 77 n, D)."""
        ids = clip_text.chunked_token_ids(components.tokenizer, prompts)
        return Conditioning(clip_text.encode_chunks(components.text_encoder, ids, clip_skip))

    def predict(
        self,
        components: Components,
        noisy_latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
    ) -> Tensor:
        """Return the UNet's output (B, C, h, w)."""
        output = components.unet(
            noisy_latents,
            timesteps,
            encoder_hidden_states=conditioning.encoder_hidden_states,
            return_dict=False,
        )
        return output[0]  # type: ignore[no-any-return]

    def encode_images(self, components: Components, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scaled mean and deviation (B, C, h, w) of pixels (B, 3, H, W) in -1..1."""
        vae = components.vae
        latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        scale = vae.config.scaling_factor
        return latents.mean * scale, latents.std * scale

    def decode_latents(self, components: Components, latents: Tensor) -> Tensor:
        """Return pictures (B, 3, H, W) in 0..1 of scaled latents (B, C, h, w)."""
        vae = components.vae
        unscaled = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
        pixels = vae.decode(unscaled, return_dict=False)[0]
        return (pixels / 2 + 0.5).clamp(0, 1)  # type: ignore[no-any-return]

    def quantum(self, components: Components) -> int:
        """Return the VAE's factor times the UNet's: 64 for the real ones."""
        vae, unet = components.vae.config, components.unet.config
        return sides_quantum(len(vae.block_out_channels), len(unet.block_out_channels))


def _scheduler_config(side: Side) -> Config:
    parameterization = side_value(side, "model.params.parameterization") or "eps"
    types = {"eps": "epsilon", "v": "v_prediction"}
    if parameterization not in types:
        raise CheckpointError(
            f"The .yaml beside the checkpoint asks for parameterization {parameterization!r}.",
            remedy="Models of type eps and v can be trained.",
        )
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": side_count(side, "model.params.timesteps", TIMESTEPS),
        "beta_start": side_number(side, "model.params.linear_start", BETA_START),
        "beta_end": side_number(side, "model.params.linear_end", BETA_END),
        "beta_schedule": "scaled_linear",
        "prediction_type": types[parameterization],
        "clip_sample": False,
        "steps_offset": 1,
    }


def _pair(
    header: Header, source: str, component: str, target: str, expected: tuple[int, ...]
) -> KeyPair:
    shape = shape_of(header, source)
    dtype = header.tensors[source].dtype
    if dtype not in FLOATING:
        raise CheckpointError(
            f"The weight {source} of {header.path} is stored as {dtype}.",
            remedy="Reduced number formats cannot be trained: use the fp16, bf16 or fp32 version.",
        )
    is_conv1x1 = len(expected) == 2 and shape[2:] == (1, 1)
    pair = KeyPair(source, component, target, "conv1x1" if is_conv1x1 else "")
    if pair.target_shape(shape) != expected:
        raise CheckpointError(
            f"The weight {source} of {header.path} has the shape {list(shape)}, where"
            f" {list(expected)} fits the rest of the model.",
            remedy="The file is damaged, or of a form that is not supported.",
        )
    return pair
