"""What a file is, told from its keys alone: a family that can be trained, or something else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dreambooth_core.checkpoint.header import Header
from dreambooth_core.errors import UnsupportedFamilyError

UNET = "model.diffusion_model."
CONV_IN = f"{UNET}input_blocks.0.0.weight"
VAE = "first_stage_model."
TEXT = "cond_stage_model."
CLIP_PREFIXES = ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.")
"""Where checkpoints keep CLIP-L; some old files leave out `text_model`."""
SD1_KEYS = (
    CONV_IN,
    f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight",
    f"{VAE}decoder.conv_in.weight",
)
EMA_KEY = "model_ema.diffusion_modelinput_blocks00weight"
"""A moving average of the UNet, as the original training code keeps it."""
TRAINABLE = {"sd1": "Stable Diffusion 1"}
"""The label of each family that can be trained."""


@dataclass(frozen=True)
class Kind:
    """A recognised kind of file: what it is called, how it is told, and what to do instead."""

    label: str
    recognise: Callable[[Header], bool]
    remedy: str


LATER = "Only Stable Diffusion 1 can be trained so far; this family comes in a later version."
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
    Kind("a Stable Diffusion 3 checkpoint", _part("joint_blocks."), LATER),
    Kind("a FLUX checkpoint", _part("double_blocks.", "single_transformer_blocks."), LATER),
    Kind(
        "a Stable Diffusion XL checkpoint",
        _prefix("conditioner.embedders.1.model.ln_final."),
        LATER,
    ),
    Kind(
        "a Stable Diffusion XL refiner",
        _prefix("conditioner.embedders.0.model.ln_final."),
        "The refiner cannot be trained: give a base checkpoint.",
    ),
    Kind(
        "an inpainting checkpoint",
        _input_channels(9),
        "Give the checkpoint that it was made from; inpainting ones cannot be trained yet.",
    ),
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
    Kind("a Stable Diffusion 2 checkpoint", _prefix("cond_stage_model.model."), LATER),
    Kind(
        "one component in the diffusers layout",
        _prefix("down_blocks.", "text_model.", "encoder.down_blocks.", "unet."),
        "Give a single file in the original layout, which the WebUI loads.",
    ),
    Kind("a checkpoint without a VAE", _lacks(VAE), "Give one that holds all of its parts."),
    Kind(
        "a checkpoint without a text encoder",
        _lacks(TEXT, "conditioner."),
        "Give one that holds all of its parts.",
    ),
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


def is_stable_diffusion_1(header: Header) -> bool:
    """Return whether UNet, VAE and CLIP-L are there and the UNet takes plain latents."""
    tables = (f"{prefix}embeddings.token_embedding.weight" for prefix in CLIP_PREFIXES)
    table = next((key for key in tables if key in header.tensors), None)
    if table is None or not all(key in header.tensors for key in SD1_KEYS):
        return False
    conv_in, cross_attention, vae_in = (header.tensors[key].shape for key in SD1_KEYS)
    width = header.tensors[table].shape[-1]
    return conv_in[1] == vae_in[1] and cross_attention[-1] == width


def trainable_family(header: Header) -> str:
    """Return the name of the family of a file; raises UnsupportedFamilyError saying what it is."""
    if is_stable_diffusion_1(header):
        return "sd1"
    raise unsupported(header)


def has_ema_weights(header: Header) -> bool:
    """Return whether a file carries averaged UNet weights beside the plain ones."""
    return EMA_KEY in header.tensors
