"""How pictures are prepared."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.control import control

CROPS = ("center", "random", "focal")
NO_MASKS, ALPHA, MASK_FILES = "none", "alpha", "files"
MASKS = (NO_MASKS, ALPHA, MASK_FILES)


@dataclass(kw_only=True)
class ImagesSection:
    """How pictures are prepared."""

    resolution: int = control(
        512,
        "Max resolution",
        "Pictures are scaled to about this many pixels squared, each in the shape nearest to its "
        "own. Use what the model was made for: 512 for Stable Diffusion 1.",
        minimum=32,
        maximum=2048,
        step=32,
        unit="pixels",
    )
    horizontal_flip: bool = control(
        False,
        "Apply horizontal flip",
        "Shows each picture mirrored half of the time. Doubles small sets of symmetric things; "
        "leave it off for faces, text and anything with a left and a right.",
    )
    crop: str = control(
        "center",
        "Crop",
        "What is kept when a picture does not quite fit its shape: the center; a part drawn anew "
        "each time the picture is shown; or, with focal, the part with the most detail, found "
        "from the edges in the picture, not by looking for faces.",
        choices=CROPS,
    )
    dynamic_normalization: bool = control(
        False,
        "Dynamic image normalization",
        "Gives every picture the same brightness and contrast before it is encoded: its own mean "
        "and deviation take the place of 0.5 and 0.5. The model learns the pictures so changed.",
        advanced=True,
    )
    masks: str = control(
        NO_MASKS,
        "Masks",
        "What of an instance image is to be learned (masked loss): alpha takes the opaque part; "
        "files takes the white part of NAME.mask.png or NAME-masklabel.png beside the picture "
        "NAME.*. Gray counts in part, a picture without a mask counts whole, and so do class "
        "images. The loss settings say how much the rest counts.",
        choices=MASKS,
        advanced=True,
    )
    cache_latents: str = control(
        "memory",
        "Keep latents",
        "Pictures are encoded once. memory keeps the result for this run, disk also keeps it in "
        "the model's folder for the next run.",
        choices=("memory", "disk"),
    )
