"""What is trained of the text encoder and the UNet, and how."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.control import control

UNET_PARTS_CHOICES = ("all", "attention", "cross_attention", "cross_attention_kv")


@dataclass(kw_only=True)
class TextEncoderSection:
    """What happens to the text encoder."""

    train_ratio: float = control(
        0.75,
        "Step ratio of text encoder training",
        "The share of the steps, from the start, in which the text encoder is trained too. "
        "0 leaves it as it is, 1 trains it to the end. It helps likeness and costs memory.",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
    )
    freeze_norm_layers: bool = control(
        False,
        "Freeze CLIP normalization layers",
        "Leaves the text encoder's normalization layers as they are while the rest of it is "
        "trained, which keeps it calmer. A LoRA leaves them alone in any case.",
        advanced=True,
    )
    clip_skip: int = control(
        1,
        "Clip skip",
        "Which layer of the text encoder is read, counted from the end: 1 is the last, 2 the one "
        "before it. Use what your checkpoint was made for and the WebUI will be set to. Counts for "
        "Stable Diffusion 1 alone: in the others the layer is fixed, here as in the WebUI.",
        minimum=1,
        maximum=12,
        step=1,
        unit="layers",
    )


@dataclass(kw_only=True)
class UnetSection:
    """What happens to the UNet."""

    train: bool = control(
        True,
        "Train UNet",
        "Trains the UNet, which draws the pictures. Off leaves it as it is and trains only the "
        "text encoder.",
    )
    parts: str = control(
        "all",
        "UNet parts to train",
        "Which layers of the UNet learn; the others are frozen, which spares memory and keeps more "
        "of what the model knows. attention: all attention layers; cross_attention: those that "
        "read the prompt; cross_attention_kv: of these only the keys and values, as in Custom "
        "Diffusion.",
        choices=UNET_PARTS_CHOICES,
        advanced=True,
        source="Kumari et al. 2022 (arXiv 2212.04488) for cross_attention_kv",
    )
    freeze_spectral_norm: bool = control(
        False,
        "Freeze spectral norm",
        "After every step scales each trained layer of the UNet back to the largest factor by "
        "which it could stretch its input before training, so that no layer grows louder. Not "
        "for a LoRA.",
        advanced=True,
        source="Miyato et al. 2018 (arXiv 1802.05957)",
    )
