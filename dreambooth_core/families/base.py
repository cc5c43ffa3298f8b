"""What every model family can do, and the types that stages pass between them.

Shapes: B examples, C latent channels, h w latent size, H W pixels, T tokens, D hidden width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.checkpoint.header import Header
from dreambooth_core.data.masks import latent_masks
from dreambooth_core.job.workspace import ModelFolder

Config = dict[str, Any]
"""A component's configuration as diffusers or transformers writes it to config.json."""

Weights = Mapping[str, Tensor]
"""Tensors of one component by their diffusers names."""

Shape = tuple[int, ...]

AUTO = "auto"
"""The prediction type as the checkpoint tells it."""


@dataclass(frozen=True)
class KeyPair:
    """One tensor's two names: in the single file, and in a component.

    `transform` is what differs beside the name, or "". "conv1x1" is a matrix in the component that
    the file keeps as a convolution of one pixel, (out, in) and (out, in, 1, 1); the bytes are the
    same. "transposed" is a matrix that the file keeps as (in, out), whose bytes are in another
    order. `part` is (n, of): the file keeps `of` tensors of the component as one, joined along the
    first axis, and this is number n of them, counted from 0.
    """

    source: str
    component: str
    target: str
    transform: str = ""
    part: tuple[int, int] = (0, 1)

    def target_shape(self, source_shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape in the component of a tensor with this shape in the file."""
        if self.transform == "transposed":
            return tuple(reversed(source_shape))
        if self.transform == "conv1x1":
            return tuple(source_shape[:2])
        return tuple(n // self.part[1] if not axis else n for axis, n in enumerate(source_shape))

    def source_shape(self, target_shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape in the file of a tensor with this shape in the component."""
        if self.transform == "transposed":
            return tuple(reversed(target_shape))
        if self.transform == "conv1x1":
            return (*target_shape, 1, 1)
        return tuple(n * self.part[1] if not axis else n for axis, n in enumerate(target_shape))

    def to_target(self, source: Tensor) -> Tensor:
        """Return the component's tensor out of the file's whole one."""
        number, count = self.part
        if self.transform == "transposed":
            return source.t().contiguous()
        part = source if count == 1 else source.chunk(count)[number].clone()
        return part.reshape(self.target_shape(source.shape))

    def to_source(self, target: Tensor) -> Tensor:
        """Return the file's tensor, or this part of it, (out, in) where it is "conv1x1"."""
        return target.t().contiguous() if self.transform == "transposed" else target


def pairs_by_source(pairs: Iterable[KeyPair]) -> dict[str, list[KeyPair]]:
    """Return the pairs of each key of the file, the parts of a joined tensor in their order."""
    found: dict[str, list[KeyPair]] = {}
    for pair in sorted(pairs, key=lambda pair: pair.part):
        found.setdefault(pair.source, []).append(pair)
    return found


@dataclass(frozen=True)
class PromptReading:
    """How a prompt becomes tokens; as it is, prompts are read as the WebUI reads them.

    `max_tokens` cuts a prompt off behind that many, a multiple of 75; 0 never. Without `pad` chunks
    are filled up only to the longest there is. `strict` gives each phrase its own start and end.
    """

    max_tokens: int = 0
    pad: bool = True
    strict: bool = False


AS_THE_WEBUI = PromptReading()


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told about a batch, beside the latents; what a family lacks is None.

    `sizes` are in pixels: the picture's own height and width, where the crop begins in the picture
    once it is scaled to cover the target (top, left), and the target's height and width. `canvas`
    is what an inpainting UNet sees beside the latents: the mask, 1 where it is to paint, and the
    scaled latents of the picture with that part blanked out.
    """

    encoder_hidden_states: Tensor  # (B, T, D)
    pooled: Tensor | None = None  # (B, P)
    sizes: Tensor | None = None  # (B, 6)
    canvas: Tensor | None = None  # (B, 1 + C, h, w)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.encoder_hidden_states)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Conditioning:
        """Return a copy on another device or in another dtype."""
        return self._each(lambda tensor: tensor.to(device=device, dtype=dtype))

    def __getitem__(self, index: slice) -> Conditioning:
        """Return some of the examples."""
        return self._each(lambda tensor: tensor[index])

    def beside(self, sizes: Tensor | None, canvas: Tensor | None) -> Conditioning:
        """Return a copy that also tells these, for as many examples."""
        return replace(self, sizes=sizes, canvas=canvas)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Join batches; all must have the same number of tokens (encode their prompts together)."""

        def join(name: str) -> Any:
            tensors = [getattr(part, name) for part in parts]
            return None if tensors[0] is None else torch.cat(tensors)

        return Conditioning(**{each.name: join(each.name) for each in fields(Conditioning)})

    def _each(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        values: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        told = {name: tensor for name, tensor in values.items() if tensor is not None}
        return replace(self, **{name: change(tensor) for name, tensor in told.items()})


@dataclass
class Components:
    """A loaded model: its networks, its tokenizers and its noise schedule."""

    family: str
    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    noise_scheduler: Any
    prediction_type: str = "epsilon"
    text_encoder_2: Any = None
    tokenizer_2: Any = None

    def modules(self) -> dict[str, torch.nn.Module]:
        """Return the networks by component name."""
        return {"unet": self.unet, "vae": self.vae, **self.text_encoders()}

    def text_encoders(self) -> dict[str, Any]:
        """Return the text encoders by component name."""
        encoders = {"text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}
        return {name: encoder for name, encoder in encoders.items() if encoder is not None}

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Return the shape (C, h, w) of a picture's latents."""
        config = self.vae.config
        factor = 2 ** (len(config["block_out_channels"]) - 1)
        return int(config["latent_channels"]), height // factor, width // factor

    def paints_into_pictures(self) -> bool:
        """Return whether the UNet is an inpainting one, which also sees a masked picture."""
        channels = int(self.vae.config["latent_channels"])
        return int(self.unet.config["in_channels"]) == 2 * channels + 1


class Family(ABC):
    """What differs between model families; each subclass is one family, in one file."""

    name: str
    text_encoders: tuple[str, ...] = ("text_encoder",)
    tokenizers: tuple[str, ...] = ("tokenizer",)
    networks: tuple[str, ...] = ("unet", "vae", "text_encoder")
    lora_base_version: str
    """What LoRA files call the family in `ss_base_model_version`."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What the family is called."""

    @abstractmethod
    def matches(self, header: Header) -> bool:
        """Return whether a file is a complete checkpoint of this family."""

    @abstractmethod
    def architecture(self, configs: Mapping[str, Config]) -> str:
        """Return modelspec's name of the architecture."""

    @abstractmethod
    def configs(
        self, header: Header, side: Mapping[str, Any] | None, prediction_type: str = AUTO
    ) -> dict[str, Config]:
        """Return the config of every component, from the header and the side yaml's contents.

        `prediction_type` is what the person says; AUTO is nothing. Raises CheckpointError where all
        of them together leave something open or contradict each other.
        """

    @abstractmethod
    def key_map(self, header: Header, configs: Mapping[str, Config]) -> list[KeyPair]:
        """Return the names of every weight, ordered by component.

        Raises CheckpointError naming a weight that the file lacks or has in another shape.
        """

    @abstractmethod
    def published_map(self, configs: Mapping[str, Config]) -> list[tuple[KeyPair, Shape]]:
        """Return the names of every weight in published checkpoints, and its component's shape."""

    def unused_weights(self, configs: Mapping[str, Config]) -> dict[str, Shape]:
        """Return what published checkpoints hold and no component has, with its shape."""
        return {}

    @abstractmethod
    def ema_key(self, source: str) -> str:
        """Return the name under which a file keeps the moving average of a UNet weight."""

    @abstractmethod
    def model_index(self, configs: Mapping[str, Config]) -> Config:
        """Return what diffusers reads to load the folder of a created model as a pipeline."""

    @abstractmethod
    def write_tokenizers(self, folder: ModelFolder) -> None:
        """Write the tokenizers that models of this family use."""

    @abstractmethod
    def build(self, component: str, config: Config) -> torch.nn.Module:
        """Return a network without memory for its weights (on the meta device)."""

    @abstractmethod
    def encode_prompts(
        self,
        components: Components,
        prompts: Sequence[str],
        clip_skip: int = 1,
        reading: PromptReading = AS_THE_WEBUI,
    ) -> Conditioning:
        """Encode prompts as the WebUI does; `clip_skip` counts layers from the end, 1 is the last.

        Unless `reading` says otherwise. Gradients flow if they are enabled.
        """

    def unconditional(self, encoded: Conditioning, rows: Sequence[bool]) -> Conditioning:
        """Return `encoded` with these rows as the WebUI gives them for no (negative) prompt."""
        return encoded

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

    def canvas(self, components: Components, pixels: Tensor, masks: Tensor) -> Tensor:
        """Return what an inpainting UNet sees beside the latents, (B, 1 + C, h, w).

        `pixels` (B, 3, H, W) in -1..1 become gray where `masks` (B, 1, H, W) are 1. The latents are
        the mean of the posterior: its spread is far below what tells pictures apart.
        """
        with torch.no_grad():
            latents, _ = self.encode_images(components, pixels * (masks < 0.5))
        height, width = latents.shape[2:]
        return torch.cat([latent_masks(masks, height, width).to(latents), latents], dim=1)

    @abstractmethod
    def decode_latents(self, components: Components, latents: Tensor) -> Tensor:
        """Return pictures (B, 3, H, W) in 0..1 of latents (B, C, h, w)."""

    @abstractmethod
    def quantum(self, components: Components) -> int:
        """Return the number of pixels that a picture's sides must be multiples of."""

    def lora_name(self, component: str, path: str, config: Mapping[str, Any]) -> str:
        """Return what the WebUI's LoRA files call the layer at a path of a network.

        `config` is the network's. The names of Stable Diffusion 1 and 2 are diffusers' own.
        """
        prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[component]
        return prefix + path.replace(".", "_")
