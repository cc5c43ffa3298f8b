"""Pictures of noise to train on, made without torch."""

from __future__ import annotations

from pathlib import Path

import numpy
from PIL import Image


def write_pictures(
    folder: Path, count: int, seed: int = 0, size: tuple[int, int] = (64, 64)
) -> Path:
    """Write pictures of noise, named so that their captions differ."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = numpy.random.default_rng(seed)
    for number in range(count):
        pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8)
        Image.fromarray(pixels).save(folder / f"{'abcdefgh'[number]} red dog.png")
    return folder
