"""Masks of pictures, from their own opacity or from files, for the loss.

Shapes: H W pixels, h w latents.
"""

from __future__ import annotations

from pathlib import Path

import numpy
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dreambooth_core.config.pictures import mask_file
from dreambooth_core.config.sections.images import ALPHA, MASK_FILES
from dreambooth_core.data.picture_files import image_size
from dreambooth_core.data.pictures import crop_box, open_alpha, open_image
from dreambooth_core.errors import InputError

MOST_ASPECT_ERROR = 0.02


def open_mask(picture: Path, source: str) -> Image.Image | None:
    """Return a picture's mask, 8-bit gray, white where it counts; None if it has none.

    Raises InputError naming the mask file if it is unreadable or not of the picture's shape.
    """
    if source == ALPHA:
        return open_alpha(picture)
    file = mask_file(picture) if source == MASK_FILES else None
    if file is None:
        return None
    mask = open_image(file).convert("L")
    (mask_width, mask_height), (width, height) = mask.size, image_size(picture)
    if abs(mask_width * height / (mask_height * width) - 1) > MOST_ASPECT_ERROR:
        raise InputError(
            f"The mask {file} is {mask_width}x{mask_height} pixels, but its picture is"
            f" {width}x{height}.",
            remedy="Give the mask the shape of its picture.",
        )
    return mask


def fit_mask(
    mask: Image.Image,
    bucket: tuple[int, int],
    latents: tuple[int, int],
    position: float = 0.5,
    *,
    flip: bool = False,
) -> Tensor:
    """Return a mask cropped and mirrored as `fit_to_bucket` does its picture, (1,h,w) in 0..1.

    `bucket` is (width, height) in pixels and `latents` (w, h); each value is the mean of the area
    that one latent stands for.
    """
    left, top, right, bottom = crop_box(mask.size, bucket, position)
    box = (left, top, min(right, mask.size[0]), min(bottom, mask.size[1]))
    fitted = mask.convert("F").resize(latents, Image.Resampling.BOX, box=box)
    fitted = ImageOps.mirror(fitted) if flip else fitted
    values = torch.from_numpy(numpy.array(fitted, dtype=numpy.float32))  # (h,w)
    return (values / 255.0).clamp(0, 1)[None]
