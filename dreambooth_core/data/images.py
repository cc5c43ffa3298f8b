"""Pictures as tensors: fitted to a bucket, normalized. Shapes: H W pixels."""

from __future__ import annotations

import numpy
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dreambooth_core.data.pictures import crop_box

LEAST_DEVIATION = 1e-6


def fit_to_bucket(
    image: Image.Image, size: tuple[int, int], position: float = 0.5, *, flip: bool = False
) -> Tensor:
    """Return the picture cropped to the aspect of `size` and scaled to it, (3,H,W) in -1..1.

    One Lanczos resampling of the box of `crop_box`; `flip` mirrors left and right.
    """
    left, top, right, bottom = crop_box(image.size, size, position)
    box = (left, top, min(right, image.size[0]), min(bottom, image.size[1]))
    fitted = image.resize(size, Image.Resampling.LANCZOS, box=box)
    fitted = ImageOps.mirror(fitted) if flip else fitted
    pixels = torch.from_numpy(numpy.array(fitted, dtype=numpy.float32))  # (H,W,3)
    return pixels.permute(2, 0, 1).contiguous() / 127.5 - 1.0  # (3,H,W)


def normalized(pixels: Tensor) -> Tensor:
    """Return pixels (3,H,W) with mean 0 and deviation 1 over all of them.

    With their own mean and deviation in the place of 0.5 and 0.5 of pixels in 0..1, as
    sd_dreambooth_extension's "dynamic image normalization" did; usual pixels become -2..2.
    """
    return (pixels - pixels.mean()) / pixels.std().clamp(min=LEAST_DEVIATION)
