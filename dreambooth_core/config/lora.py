"""The settings of LoRA: training one, extracting one from a checkpoint, baking one into it."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.control import REQUIRED, control
from dreambooth_core.config.new_file import checkpoint_format, file_called, folder_below

LORA_DTYPE_CHOICES = ("fp16", "bf16", "fp32")
MAX_RANK = 1024


@dataclass(kw_only=True)
class LoraSection:
    """Whether a LoRA is trained, and how large it is."""

    enabled: bool = control(
        False,
        "Train a LoRA",
        "Trains a small addition to the model instead of the model itself: files of a few "
        "megabytes, and far less memory. It is written to the WebUI's Lora folder and used in a "
        "prompt as <lora:name:1>.",
        source="Hu et al. 2021 (arXiv 2106.09685)",
    )
    start_from: str = control(
        "",
        "Start from a LoRA",
        "A LoRA file, or the name of one in the WebUI's Lora folder, to go on training from. Its "
        "ranks and alphas must be those set here. Empty begins with a LoRA that does nothing yet.",
        kind="lora",
        advanced=True,
    )
    rank: int = control(
        16,
        "Rank",
        "How much the LoRA can learn, and how large its file is. 8 to 32 is enough for one "
        "subject.",
        minimum=1,
        maximum=MAX_RANK,
        step=1,
        unit="dimensions",
    )
    alpha: float = control(
        16.0,
        "Alpha",
        "The LoRA acts alpha / rank times as strongly as its weights say: half the alpha is half "
        "the effect at the same learning rate. Usually the rank, or half of it.",
        minimum=0.01,
        maximum=4096.0,
    )
    conv_rank: int = control(
        0,
        "Convolution rank",
        "The rank of the UNet's convolutions, which helps styles and textures. 0 leaves them as "
        "they are.",
        minimum=0,
        maximum=MAX_RANK,
        step=1,
        unit="dimensions",
    )
    conv_alpha: float = control(
        8.0,
        "Convolution alpha",
        "Alpha of the convolutions, which act alpha / rank times as strongly. Usually the "
        "convolution rank, or half of it.",
        minimum=0.01,
        maximum=4096.0,
    )
    text_encoder_rank: int = control(
        0,
        "Text encoder rank",
        "The rank of the text encoder's layers. 0 uses the rank and the alpha of the UNet.",
        minimum=0,
        maximum=MAX_RANK,
        step=1,
        unit="dimensions",
    )
    text_encoder_alpha: float = control(
        8.0,
        "Text encoder alpha",
        "Alpha of the text encoder's layers, where they have a rank of their own.",
        minimum=0.01,
        maximum=4096.0,
    )
    dora: bool = control(
        False,
        "DoRA",
        "Also learns the length of each column of a weight apart from its direction. Often closer "
        "to full training at small ranks; slower. A1111 1.10 loads it.",
        source="Liu et al. 2024 (arXiv 2402.09353)",
    )
    unet_learning_rate: float = control(
        3e-5,
        "LoRA UNet learning rate",
        "How far one step moves the UNet's LoRA; takes the place of the UNet learning rate. AdamW "
        "works well at 1e-4, Lion at about 3e-5.",
        minimum=0.0,
        maximum=1.0,
    )
    text_encoder_learning_rate: float = control(
        1e-5,
        "LoRA text encoder learning rate",
        "How far one step moves the text encoder's LoRA; takes the place of the text encoder "
        "learning rate. Usually half the UNet's rate or less.",
        minimum=0.0,
        maximum=1.0,
    )


@dataclass(kw_only=True)
class ExtractLoraConfig:
    """Make a LoRA of what sets a trained checkpoint apart from the one that it was trained from."""

    name: str = file_called("LoRA file")
    base: str = control(
        REQUIRED,
        "Base checkpoint",
        "The checkpoint that the other one was trained from: the LoRA is to be used with it.",
        kind="checkpoint",
    )
    trained: str = control(
        REQUIRED,
        "Trained checkpoint",
        "The checkpoint whose training becomes a LoRA.",
        kind="checkpoint",
    )
    rank: int = control(
        64,
        "Rank",
        "How much of the difference is kept in linear layers, and how large the file is. 32 to "
        "128 comes close to the trained checkpoint.",
        minimum=1,
        maximum=MAX_RANK,
        step=1,
        unit="dimensions",
    )
    conv_rank: int = control(
        0,
        "Convolution rank",
        "How much of the difference is kept in the UNet's convolutions. 0 leaves them out.",
        minimum=0,
        maximum=MAX_RANK,
        step=1,
        unit="dimensions",
    )
    text_encoder: bool = control(
        True, "Extract text encoder", "Takes the text encoder's difference along."
    )
    dtype: str = control(
        "fp16",
        "Saved number format",
        "fp16 is half the size of fp32 and what most LoRA files use.",
        choices=LORA_DTYPE_CHOICES,
    )
    subfolder: str = folder_below("Lora")


@dataclass(kw_only=True)
class BakeLoraConfig:
    """Write a checkpoint that acts as another one does together with a LoRA."""

    name: str = file_called("new checkpoint file")
    checkpoint: str = control(
        REQUIRED, "Checkpoint", "The checkpoint to put the LoRA into.", kind="checkpoint"
    )
    lora: str = control(
        REQUIRED,
        "LoRA",
        "The LoRA: a file, or the name of one in the WebUI's Lora folder.",
        kind="lora",
    )
    strength: float = control(
        1.0,
        "Strength",
        "How strongly the LoRA acts on the UNet, as the number in <lora:name:1> does.",
        minimum=-4.0,
        maximum=4.0,
        step=0.05,
    )
    text_encoder_strength: float = control(
        1.0,
        "Text encoder strength",
        "How strongly the LoRA acts on the text encoder. 0 leaves it as it is.",
        minimum=-4.0,
        maximum=4.0,
        step=0.05,
    )
    dtype: str = checkpoint_format("the checkpoint")
    subfolder: str = folder_below("checkpoints")
