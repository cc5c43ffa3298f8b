"""What a file is, told from its keys alone: a family that can be trained, or something else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dreambooth_core.checkpoint.header import Header
from dreambooth_core.errors import UnsupportedFamilyError

UNET = "model.diffusion_model."
CONV_IN = f"{UNET}input_blocks.0.0.weight"
CONTEXT = f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"
LABEL = f"{UNET}label_emb.0.0.weight"
VAE = "first_stage_model."
VAE_IN = f"{VAE}decoder.conv_in.weight"
TEXT = "cond_stage_model."
CLIP_PREFIXES = ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.")
"""Where checkpoints keep CLIP-L; some old files leave out `text_model`."""
EMA_PREFIX = "model_ema."
"""Before the moving averages of the UNet's weights, as the original training code keeps them."""
TRAINABLE = {
    "sd1": "Stable Diffusion 1",
    "sd2": "Stable Diffusion 2",
    "sdxl": "Stable Diffusion XL",
}
"""The label of each family that can be trained."""

CLIP_TABLE = "embeddings.token_embedding.weight"
OPEN_CLIP_TABLE = "token_embedding.weight"
TEXT_TABLES: dict[str, tuple[tuple[str, ...], ...]] = {
    "sd1": (tuple(prefix + CLIP_TABLE for prefix in CLIP_PREFIXES),),
    "sd2": ((f"cond_stage_model.model.{OPEN_CLIP_TABLE}",),),
    "sdxl": (
        (f"conditioner.embedders.0.transformer.text_model.{CLIP_TABLE}",),
        (f"conditioner.embedders.1.model.{OPEN_CLIP_TABLE}",),
    ),
}
"""By family the token table of each text encoder, under any of the names given."""


@dataclass(frozen=True)
class Kind:
    """A recognised kind of file: what it is called, how it is told, and what to do instead."""

    label: str
    recognise: Callable[[Header], bool]
    remedy: str


OTHER = "Only Stable Diffusion 1, 2 and XL can be trained: give a checkpoint of one of these."
FULL = "Give a full checkpoint, such as the one that it was made for."


def _prefix(*prefixes: str) -> Callable[[Header], bool]:
    return lambda header: any(key.startswith(prefixes) for key in header.tensors)


def _part(*parts: str) -> Callable[[Header], bool]:
    return lambda header: any(part in key for key in header.tensors for part in parts)


def _input_channels(count: int) -> Callable[[Header], bool]:
    def recognise(header: Header) -> bool:
        info = header.tensors.get(CONV_IN)
        return info is not None and info.shape[1:2] == (count,)

    return recognise


def _lacks(*prefixes: str) -> Callable[[Header], bool]:
    def recognise(header: Header) -> bool:
        return CONV_IN in header.tensors and not _any(header.tensors, prefixes)

    return recognise


def _any(keys: Iterable[str], prefixes: tuple[str, ...]) -> bool:
    return any(key.startswith(prefixes) for key in keys)


LORA_PARTS = ("lora_down.", "lora_up.", ".lora_A.", ".lora_B.", "hada_w1", "lokr_w")

KINDS = (
    Kind("a LoRA", _part(*LORA_PARTS), FULL),
    Kind("a textual inversion embedding", _prefix("emb_params", "string_to_param"), FULL),
    Kind("a ControlNet", _prefix("control_model.", "controlnet_", "input_hint_block."), FULL),
    Kind("a Stable Diffusion 3 checkpoint", _part("joint_blocks."), OTHER),
    Kind("a FLUX checkpoint", _part("double_blocks.", "single_transformer_blocks."), OTHER),
    Kind(
        "a Stable Diffusion XL refiner",
        _prefix("conditioner.embedders.0.model.ln_final."),
        "The refiner cannot be trained: give a base checkpoint.",
    ),
    Kind("a Playground 2.5 checkpoint", _prefix("edm_mean", "edm_std"), OTHER),
    Kind(
        "an InstructPix2Pix checkpoint",
        _input_channels(8),
        "Give the checkpoint that it was made from; this kind cannot be trained.",
    ),
    Kind(
        "a depth-to-image checkpoint",
        _input_channels(5),
        "Give the checkpoint that it was made from; this kind cannot be trained.",
    ),
    Kind(
        "an unCLIP checkpoint",
        _prefix("noise_augmentor.", "embedder.model.visual."),
        "Give the checkpoint that it was made from; this kind cannot be trained.",
    ),
    Kind(
        "one component in the diffusers layout",
        _prefix("down_blocks.", "text_model.", "encoder.down_blocks.", "unet."),
        "Give a single file in the original layout, which the WebUI loads.",
    ),
    Kind("a checkpoint without a VAE", _lacks(VAE), "Choose a VAE file for it, in the field vae."),
    Kind(
        "a checkpoint without a text encoder",
        _lacks(TEXT, "conditioner."),
        "Give one that holds all of its parts.",
    ),
    Kind("a Stable Diffusion checkpoint of an unusual form", _lacks(), OTHER),
    Kind("a VAE", _prefix(VAE, "decoder.conv_in.", "encoder.conv_in."), FULL),
)
"""Looked at in this order; the first that fits names the file."""


def unsupported(header: Header) -> UnsupportedFamilyError:
    """Return the error for a file that no supported family claims."""
    for kind in KINDS:
        if kind.recognise(header):
            return UnsupportedFamilyError(f"{header.path} is {kind.label}.", remedy=kind.remedy)
    return UnsupportedFamilyError(
        f"{header.path} is not a Stable Diffusion checkpoint: none of its"
        f" {len(header.tensors)} tensors is known.",
        remedy="Give a full checkpoint in .safetensors, as the WebUI loads it.",
    )


def trainable_family_or_none(header: Header) -> str | None:
    """Return the name of the family whose parts the file has, all fitting each other, or None.

    The UNet takes the VAE's latents, with or without a mask and a masked picture's latents beside
    them, and what it is told is as wide as what the text encoders say.
    """
    tensors = header.tensors
    if any(key not in tensors for key in (CONV_IN, CONTEXT, VAE_IN)) or _is_odd(header):
        return None
    latents, context = tensors[VAE_IN].shape[1], tensors[CONTEXT].shape[-1]
    if tensors[CONV_IN].shape[1] not in (latents, 2 * latents + 1):
        return None
    families = (name for name in TRAINABLE if _text_width(header, name) == context)
    return next((name for name in families if (LABEL in tensors) == (name == "sdxl")), None)


def _is_odd(header: Header) -> bool:
    return any(key.startswith(("edm_mean", "edm_std")) for key in header.tensors)


def _text_width(header: Header, family: str) -> int | None:
    """Return how wide the states of a family's text encoders are together; None if one lacks."""
    found = [[name for name in names if name in header.tensors] for names in TEXT_TABLES[family]]
    if not all(found):
        return None
    return sum(header.tensors[names[0]].shape[-1] for names in found)


def trainable_family(header: Header) -> str:
    """Return the name of the family of a file; raises UnsupportedFamilyError saying what it is."""
    family = trainable_family_or_none(header)
    if family is None:
        raise unsupported(header)
    return family


def family_label(header: Header) -> str:
    """Return what a file that can be trained is called; raises UnsupportedFamilyError otherwise."""
    label = TRAINABLE[trainable_family(header)]
    latents = header.tensors[VAE_IN].shape[1]
    return label if header.tensors[CONV_IN].shape[1] == latents else f"{label}, inpainting"


def has_ema_weights(header: Header) -> bool:
    """Return whether a file carries averaged UNet weights beside the plain ones."""
    return ema_name(CONV_IN) in header.tensors


def ema_name(key: str) -> str:
    """Return what a weight's moving average is called: no dots, and no `model.` before."""
    return EMA_PREFIX + key.removeprefix("model.").replace(".", "")
