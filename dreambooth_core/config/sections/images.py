"""How pictures are prepared."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.control import control


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
        "What is kept when a picture does not quite fit its shape: the center, or a part drawn "
        "anew each time the picture is shown.",
        choices=("center", "random"),
    )
    cache_latents: str = control(
        "memory",
        "Keep latents",
        "Pictures are encoded once. memory keeps the result for this run, disk also keeps it in "
        "the model's folder for the next run.",
        choices=("memory", "disk"),
    )
