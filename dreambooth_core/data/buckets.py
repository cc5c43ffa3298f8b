"""Aspect-ratio buckets: a few sizes of about equal area that every picture is fitted to."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dreambooth_core.errors import InputError

Size = tuple[int, int]
"""(width, height) in pixels."""

ASPECTS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0)
MAX_AREA_RATIO = 1.1


def make_buckets(resolution: int, quantum: int) -> list[Size]:
    """Return the sizes with sides that are multiples of `quantum`, from tall to wide.

    One for each aspect of `ASPECTS` and its inverse: width R sqrt(a) and height R / sqrt(a), each
    rounded to the quantum; the longer side (of a square both) is shortened while the area exceeds
    1.1 R^2. Sizes that coincide are listed once. `quantum` is what sides must be multiples of for
    the model family, in pixels.
    """
    if resolution < quantum:
        raise InputError(
            f"A resolution of {resolution} is below the {quantum} pixels that this model needs.",
            remedy=f"Set the resolution to {quantum} or more.",
            field="images.resolution",
        )
    wide = {_wide_size(resolution, quantum, aspect) for aspect in ASPECTS}
    sizes = wide | {(height, width) for width, height in wide}
    return sorted(sizes, key=lambda size: (size[0] / size[1], size))


def sides_quantum(vae_levels: int, unet_levels: int) -> int:
    """Return what sides must be multiples of, in pixels: each level but the last halves them.

    A Stable Diffusion VAE and UNet of four levels each make it 64.
    """
    return int(2 ** (vae_levels - 1 + unet_levels - 1))


def assign(size: Size, buckets: Sequence[Size]) -> Size:
    """Return the bucket whose aspect is nearest to that of `size` on a log scale.

    The log makes portrait and landscape alike: the same factor off is the same distance.
    """
    aspect = math.log(size[0] / size[1])
    return min(buckets, key=lambda bucket: (abs(math.log(bucket[0] / bucket[1]) - aspect), bucket))


def _wide_size(resolution: int, quantum: int, aspect: float) -> Size:
    width = _round_to(resolution * math.sqrt(aspect), quantum)
    height = _round_to(resolution / math.sqrt(aspect), quantum)
    while width * height > MAX_AREA_RATIO * resolution**2:
        shrink_both = width == height
        width -= quantum
        height -= quantum if shrink_both else 0
    return (width, height)


def _round_to(value: float, quantum: int) -> int:
    return max(quantum, math.floor(value / quantum + 0.5) * quantum)
