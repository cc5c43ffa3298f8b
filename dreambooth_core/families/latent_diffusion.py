"""What all families share: a UNet over the latents of a KL autoencoder, told about by CLIP.

Shapes: B examples, C latent channels, h w latent size, H W pixels, T tokens, D hidden width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig

from dreambooth_core.checkpoint.clip_tokenizer import write_tokenizer
from dreambooth_core.checkpoint.file import FLOATING
from dreambooth_core.checkpoint.header import Header, TensorInfo
from dreambooth_core.checkpoint.recognise import (
    TEXT_TABLES,
    TRAINABLE,
    ema_name,
    trainable_family_or_none,
)
from dreambooth_core.data.buckets import sides_quantum
from dreambooth_core.errors import CheckpointError
from dreambooth_core.families import ldm_unet, ldm_vae
from dreambooth_core.families.base import (
    AUTO,
    Components,
    Conditioning,
    Config,
    Family,
    KeyPair,
    Shape,
    Weights,
)
from dreambooth_core.families.noise_schedule import scheduler_config
from dreambooth_core.families.renaming import Place, original_name, shape_of
from dreambooth_core.families.side_file import Side, side_count
from dreambooth_core.job.workspace import ModelFolder

IMAGE_SIZE = "model.params.image_size"
OWN_IMAGE_SIZE = "dreambooth.image_size"
"""The same where the form of the settings has no place for it, which is Stable Diffusion XL's."""


class LatentDiffusion(Family):
    """A family in the original single-file layout; the subclasses say what its text encoders are.

    `pad_tokens` are what prompts are filled up with, for each tokenizer.
    """

    resolution: int
    scaling_factor: float
    pad_tokens: tuple[str, ...]
    assumed_prediction_type: str | None = "epsilon"

    @property
    def label(self) -> str:
        """What the family is called."""
        return TRAINABLE[self.name]

    @abstractmethod
    def text_configs(self, header: Header, side: Side) -> dict[str, Config]:
        """Return the configs of the text encoders."""

    @abstractmethod
    def text_place(self, header: Header, component: str, target: str) -> Place:
        """Return where a file keeps a weight of a text encoder."""

    @abstractmethod
    def pipeline(self, configs: Mapping[str, Config]) -> Config:
        """Return diffusers' pipeline class for the model, and its settings."""

    def matches(self, header: Header) -> bool:
        """Return whether the file is a complete checkpoint of this family."""
        return trainable_family_or_none(header) == self.name

    def usual_latents(self, header: Header, side: Side, factor: int, prediction_type: str) -> int:
        """Return the side of the latents that the model was trained on; pictures' is `factor`."""
        told = side_count(side, IMAGE_SIZE, self.resolution // factor)
        return side_count(side, OWN_IMAGE_SIZE, told)

    def pooled_width(self, text: Mapping[str, Config]) -> int:
        """Return the width of a prompt's pooled vector, 0 if the UNet is not told of it."""
        return 0

    def configs(self, header: Header, side: Side, prediction_type: str = AUTO) -> dict[str, Config]:
        """Return the configs of UNet, VAE, text encoders and scheduler."""
        scheduler = scheduler_config(header, side, prediction_type, self.assumed_prediction_type)
        factor = 2 ** (ldm_vae.vae_levels(header) - 1)
        latents = self.usual_latents(header, side, factor, scheduler["prediction_type"])
        text = self.text_configs(header, side)
        return {
            "unet": ldm_unet.unet_config(header, side, latents, self.pooled_width(text)),
            "vae": ldm_vae.vae_config(header, side, latents * factor, self.scaling_factor),
            **text,
            "scheduler": scheduler,
        }

    def key_map(self, header: Header, configs: Mapping[str, Config]) -> list[KeyPair]:
        """Return the names of every weight of the networks that the configs describe."""
        return [
            _pair(header, place, component, target, shape)
            for component, target, place, shape in self._places(header, configs)
        ]

    def published_map(self, configs: Mapping[str, Config]) -> list[tuple[KeyPair, Shape]]:
        """Return the names of every weight in published checkpoints, and its component's shape."""
        tables = {names[0]: TensorInfo("F32", (), 0, 0) for names in TEXT_TABLES[self.name]}
        found = []
        for component, target, place, shape in self._places(Header(Path(), tables, {}, 0), configs):
            is_conv1x1 = component == "vae" and len(shape) == 2  # its attention; it has no others
            transform = "conv1x1" if is_conv1x1 else place.transform
            found.append((KeyPair(place.key, component, target, transform, place.part), shape))
        return found

    def _places(
        self, header: Header, configs: Mapping[str, Config]
    ) -> Iterator[tuple[str, str, Place, Shape]]:
        """Yield every weight: its component, its name there, its place in a file, its shape."""
        unet = ldm_unet.unet_names(configs["unet"])
        vae = ldm_vae.vae_names(configs["vae"])

        def place(component: str, target: str) -> Place:
            if component == "unet":
                return Place(ldm_unet.PREFIX + original_name(unet, target))
            if component == "vae":
                return Place(ldm_vae.PREFIX + original_name(vae, target))
            return self.text_place(header, component, target)

        for component in self.networks:
            for target, weight in self._empty_weights(component, configs[component]).items():
                yield component, target, place(component, target), tuple(weight.shape)

    def ema_key(self, source: str) -> str:
        """Return the flat name that the original training code gives it."""
        return ema_name(source)

    def model_index(self, configs: Mapping[str, Config]) -> Config:
        """Return what diffusers reads to load the folder of a created model as a pipeline."""
        encoders = {
            name: ["transformers", configs[name]["architectures"][0]] for name in self.text_encoders
        }
        return {
            **self.pipeline(configs),
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "scheduler": ["diffusers", "DDPMScheduler"],
            **encoders,
            **{name: ["transformers", "CLIPTokenizer"] for name in self.tokenizers},
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }

    def write_tokenizers(self, folder: ModelFolder) -> None:
        """Write CLIP's tokenizer, once for each encoder, with the token that it pads with."""
        for name, pad_token in zip(self.tokenizers, self.pad_tokens, strict=True):
            write_tokenizer(folder.component(name), pad_token)

    def build(self, component: str, config: Config) -> torch.nn.Module:
        """Return a network on the meta device; attention is PyTorch's fused one."""
        with torch.device("meta"):
            network: torch.nn.Module
            if component in self.text_encoders:
                kind: Any = getattr(transformers, config["architectures"][0])
                network = kind(CLIPTextConfig(**config, attn_implementation="sdpa"))
            else:
                kind = UNet2DConditionModel if component == "unet" else AutoencoderKL
                network = kind.from_config(config)
            return network

    def predict(
        self,
        components: Components,
        noisy_latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
    ) -> Tensor:
        """Return the UNet's output (B, C, h, w)."""
        canvas = conditioning.canvas
        if canvas is not None:
            noisy_latents = torch.cat([noisy_latents, canvas.to(noisy_latents)], dim=1)
        output = components.unet(
            noisy_latents,
            timesteps,
            encoder_hidden_states=conditioning.encoder_hidden_states,
            added_cond_kwargs=self.added_conditions(conditioning),
            return_dict=False,
        )
        return output[0]  # type: ignore[no-any-return]

    def added_conditions(self, conditioning: Conditioning) -> dict[str, Tensor] | None:
        """Return what the UNet is told beside the prompts' states."""
        return None

    def encode_images(self, components: Components, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scaled mean and deviation (B, C, h, w) of pixels (B, 3, H, W) in -1..1."""
        vae = components.vae
        with torch.autocast(vae.device.type, enabled=False):
            latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        scale = vae.config.scaling_factor
        return latents.mean * scale, latents.std * scale

    def decode_latents(self, components: Components, latents: Tensor) -> Tensor:
        """Return pictures (B, 3, H, W) in 0..1 of scaled latents (B, C, h, w).

        In the VAE's own precision: SDXL's overflows in fp16.
        """
        vae = components.vae
        unscaled = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
        with torch.autocast(vae.device.type, enabled=False):
            pixels = vae.decode(unscaled, return_dict=False)[0]
        return (pixels / 2 + 0.5).clamp(0, 1)  # type: ignore[no-any-return]

    def quantum(self, components: Components) -> int:
        """Return the VAE's factor times the UNet's: 64 for SD1 and SD2, 32 for SDXL."""
        vae, unet = components.vae.config, components.unet.config
        return sides_quantum(len(vae.block_out_channels), len(unet.block_out_channels))

    def _empty_weights(self, component: str, config: Config) -> Weights:
        return self.build(component, config).state_dict()


def _pair(
    header: Header, place: Place, component: str, target: str, expected: tuple[int, ...]
) -> KeyPair:
    shape = shape_of(header, place.key)
    dtype = header.tensors[place.key].dtype
    if dtype not in FLOATING:
        raise CheckpointError(
            f"The weight {place.key} of {header.path} is stored as {dtype}.",
            remedy="Reduced number formats cannot be trained: use the fp16, bf16 or fp32 version.",
        )
    is_conv1x1 = len(expected) == 2 and shape[2:] == (1, 1)
    transform = "conv1x1" if is_conv1x1 else place.transform
    pair = KeyPair(place.key, component, target, transform, place.part)
    joined = place.part[1]
    if pair.target_shape(shape) != expected or shape[0] % joined:
        wanted = KeyPair("", "", "", transform).target_shape((joined * expected[0], *expected[1:]))
        raise CheckpointError(
            f"The weight {place.key} of {header.path} has the shape {list(shape)}, where"
            f" {list(wanted)} fits the rest of the model.",
            remedy="The file is damaged, or of a form that is not supported.",
        )
    return pair
