"""Where a focal crop lies: around the part of a picture with most detail."""

from __future__ import annotations

from pathlib import Path

import numpy
from numpy.typing import NDArray
from PIL import Image

from dreambooth_core.data.pictures import crop_box, open_image

FOCAL_PLACES = 33
"""How many places a focal crop is chosen from: every 32nd of the slack, the center among them."""
FOCAL_SIDE = 128
"""The longer side, in pixels, at which edges are looked for: finer ones are grain."""
EDGE_OF_CROP = 0.5
"""What an edge at the border of a crop counts beside one in its middle."""


def focus_of(path: Path, size: tuple[int, int]) -> float:
    """Return the `focal_position` of a picture file; raises InputError if it cannot be read."""
    return focal_position(open_image(path), size)


def focal_position(image: Image.Image, size: tuple[int, int]) -> float:
    """Return where along the slack of `crop_box` the part of a picture with most detail lies.

    Detail is the squared difference of neighbouring pixels of the gray picture, scaled down to 128
    pixels, so that it is found by strong edges; what lies in the middle of a crop counts twice what
    lies at its border. Of equal places the one nearest to the center wins: 0.5 for an even picture.
    """
    left, top, right, bottom = crop_box(image.size, size)
    kept = ((right - left) / image.size[0], (bottom - top) / image.size[1])
    axis = 0 if kept[0] < kept[1] else 1  # 0: columns, 1: rows
    energy = _edge_energy(image).sum(axis=axis)  # (n,) along the axis that has slack
    centers = (numpy.arange(len(energy)) + 0.5) / len(energy)
    places = numpy.linspace(0, 1, FOCAL_PLACES)
    half = kept[axis] / 2
    middles = half + places * (1 - 2 * half)
    distance = numpy.abs(centers[None] - middles[:, None]) / half  # (places,n)
    weights = numpy.where(distance <= 1, 1 - (1 - EDGE_OF_CROP) * distance**2, 0.0)
    scores = (weights * energy).sum(axis=1)
    best = places[scores >= scores.max() * (1 - 1e-9)]
    return float(min(best, key=lambda place: (abs(place - 0.5), place)))


def _edge_energy(image: Image.Image) -> NDArray[numpy.float64]:
    """Return the squared difference of each pixel from its neighbours, (H,W), scaled down."""
    scale = min(1.0, FOCAL_SIDE / max(image.size))
    size = (max(2, round(image.size[0] * scale)), max(2, round(image.size[1] * scale)))
    gray = numpy.asarray(image.convert("L").resize(size, Image.Resampling.BOX), numpy.float64)
    padded = numpy.pad(gray, 1, mode="edge")
    across = padded[1:-1, 2:] - padded[1:-1, :-2]
    down = padded[2:, 1:-1] - padded[:-2, 1:-1]
    energy: NDArray[numpy.float64] = across**2 + down**2
    return energy
