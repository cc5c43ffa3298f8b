"""What every model family can do, and the types that stages pass between them.

Shapes: B examples, C latent channels, h w latent size, H W pixels, T tokens, D hidden width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.checkpoint.header import Header
from dreambooth_core.job.workspace import ModelFolder

Config = dict[str, Any]
"""A component's configuration as diffusers or transformers writes it to config.json."""

Weights = Mapping[str, Tensor]
"""Tensors of one component by their diffusers names."""


@dataclass(frozen=True)
class KeyPair:
    """One tensor's two names: in the single file, and in a component.

    `transform` is what differs beside the name, or "": "conv1x1" is a matrix in the component that
    the file keeps as a convolution of one pixel, (out, in) and (out, in, 1, 1). No transform
    changes the order of the bytes, so weights pass between the layouts as bytes.
    """

    source: str
    component: str
    target: str
    transform: str = ""

    def target_shape(self, source_shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape in the component of a tensor with this shape in the file."""
        if self.transform == "conv1x1":
            return tuple(source_shape[:2])
        return tuple(source_shape)


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told about a batch's prompts."""

    encoder_hidden_states: Tensor  # (B, T, D)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.encoder_hidden_states)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Conditioning:
        """Return a copy on another device or in another dtype."""
        return Conditioning(self.encoder_hidden_states.to(device=device, dtype=dtype))

    def __getitem__(self, index: slice) -> Conditioning:
        """Return some of the examples."""
        return Conditioning(self.encoder_hidden_states[index])

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Join batches; all must have the same number of tokens (encode their prompts together)."""
        return Conditioning(torch.cat([part.encoder_hidden_states for part in parts]))


@dataclass
class Components:
    """A loaded model: its networks, its tokenizer and its noise schedule."""

    family: str
    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    noise_scheduler: Any
    prediction_type: str = "epsilon"

    def modules(self) -> dict[str, torch.nn.Module]:
        """Return the networks by component name."""
        return {"unet": self.unet, "vae": self.vae, "text_encoder": self.text_encoder}


class Family(ABC):
    """What differs between model families; each subclass is one family, in one file."""

    name: str
    label: str
    architecture: str
    text_encoders: tuple[str, ...] = ("text_encoder",)
    networks: tuple[str, ...] = ("unet", "vae", "text_encoder")

    @abstractmethod
    def matches(self, header: Header) -> bool:
        """Return whether a file is a complete checkpoint of this family."""

    @abstractmethod
    def configs(self, header: Header, side: Mapping[str, Any] | None) -> dict[str, Config]:
        """Return the config of every component, from the header and the side yaml's contents.

        Raises CheckpointError where the header and the yaml leave something open.
        """

    @abstractmethod
    def key_map(self, header: Header, configs: Mapping[str, Config]) -> list[KeyPair]:
        """Return the names of every weight, ordered by component.

        Raises CheckpointError naming a weight that the file lacks or has in another shape.
        """

    @abstractmethod
    def ema_key(self, source: str) -> str:
        """Return the name under which a file keeps the moving average of a UNet weight."""

    @abstractmethod
    def write_tokenizers(self, folder: ModelFolder) -> None:
        """Write the tokenizers that models of this family use."""

    @abstractmethod
    def build(self, component: str, config: Config) -> torch.nn.Module:
        """Return a network without memory for its weights (on the meta device)."""

    @abstractmethod
    def encode_prompts(
        self, components: Components, prompts: Sequence[str], clip_skip: int = 1
    ) -> Conditioning:
        """Encode prompts as the WebUI does; `clip_skip` counts layers from the end, 1 is the last.

        Gradients flow if they are enabled.
        """

    @abstractmethod
    def predict(
        self,
        components: Components,
        noisy_latents: Tensor,  # (B, C, h, w)
        timesteps: Tensor,  # (B,)
        conditioning: Conditioning,
    ) -> Tensor:
        """Return the UNet's output (B, C, h, w), to compare with the prediction type's target."""

    @abstractmethod
    def encode_images(self, components: Components, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation (B, C, h, w) of the latents of pixels (B, 3, H, W) in -1..1.

        Both are multiplied by the VAE's scaling factor: latents are mean + deviation * noise.
        """

    @abstractmethod
    def decode_latents(self, components: Components, latents: Tensor) -> Tensor:
        """Return pictures (B, 3, H, W) in 0..1 of latents (B, C, h, w)."""

    @abstractmethod
    def quantum(self, components: Components) -> int:
        """Return the number of pixels that a picture's sides must be multiples of."""
