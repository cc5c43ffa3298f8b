"""Picture files opened as 8-bit RGB, and what of them is kept."""

from __future__ import annotations

from pathlib import Path

import numpy
from PIL import Image, ImageOps

from dreambooth_core.data.picture_files import has_alpha, opened

_EIGHT_OF_SIXTEEN_BITS = (numpy.arange(65536) / 257.0).round().astype(numpy.uint8)
"""A table, as a large picture in floating point would take up gigabytes."""


def open_image(path: Path) -> Image.Image:
    """Return the picture upright, as 8-bit RGB, transparency over white.

    Raises InputError naming the file if it is missing, damaged, cut short or too large to be safe.
    """
    with opened(path) as image:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))


def open_alpha(path: Path) -> Image.Image | None:
    """Return the picture's opacity upright, 8-bit gray; None if it has none. Raises InputError."""
    with opened(path) as image:
        if not has_alpha(image):
            return None
        image.load()
        return ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")


def crop_box(
    source: tuple[int, int], size: tuple[int, int], position: float = 0.5
) -> tuple[float, float, float, float]:
    """Return the largest box (left, top, right, bottom) of `source` in the aspect of `size`.

    Both sizes are (width, height). Only one axis has slack; `position` says where along it the box
    lies: 0 is left or top, 0.5 the center, 1 right or bottom.
    """
    scale = min(source[0] / size[0], source[1] / size[1])
    width, height = min(size[0] * scale, source[0]), min(size[1] * scale, source[1])
    left, top = (source[0] - width) * position, (source[1] - height) * position
    return (left, top, left + width, top + height)


def told_sizes(
    source: tuple[int, int], size: tuple[int, int], position: float = 0.5, *, flip: bool = False
) -> tuple[int, int, int, int, int, int]:
    """Return what Stable Diffusion XL is told of a picture fitted to `size`, in pixels.

    Height and width of the picture; top and left of the crop, in the picture scaled so that it
    covers `size`; height and width of `size` (Podell et al. 2023, arXiv 2307.01952, section 2.2).
    `source` and `size` are (width, height); of a mirrored picture it is the mirror's left.
    """
    left, top, right, _ = crop_box(source, size, position)
    scale = size[0] / (right - left)
    from_left = source[0] - right if flip else left
    return (source[1], source[0], round(top * scale), round(from_left * scale), size[1], size[0])


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("it holds floating point values, not 8 or 16 bits per channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _from_16_bit(image)
    if has_alpha(image):
        canvas = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Return 16-bit gray scaled to 8 bits: Pillow's own conversion clips at 255 instead."""
    return Image.fromarray(_EIGHT_OF_SIXTEEN_BITS[numpy.asarray(image).clip(0, 65535)])
