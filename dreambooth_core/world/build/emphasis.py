"""Where in a picture the denoiser has to look hardest: at the object, and most at its parts.

A hat is two of a picture's 256 latents; the plain mean of the error hardly feels it. Weighting
pixels changes what a small network spends itself on, not what the best answer is.

Shapes: H W pixels, h w latents.
"""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dreambooth_core.world.backgrounds import paint_background
from dreambooth_core.world.palette import PEOPLE
from dreambooth_core.world.pictures import Scene, render

OBJECT_WEIGHT = 1.5
PARTS_WEIGHT = 4.0
_FACTOR = 8
_VISIBLE = 12
_ABSENT = {"hat": "none", "glasses": "no", "beard": "no", "pattern": "plain", "collar": "none"}


def emphasis(scene: Scene) -> Tensor:
    """Return the weights (h,w) of a scene's latents: 1 for the ground, more for the object."""
    picture = _pixels(render(scene))
    ground = paint_background(scene.background, random.Random(scene.seed))
    there = _share(
        picture, _pixels(ground.resize((picture.shape[1], picture.shape[0]), Image.Resampling.BOX))
    )
    parts = _share(picture, _pixels(render(dataclasses.replace(scene, parts=_without(scene)))))
    return 1 + OBJECT_WEIGHT * _spread(there) + PARTS_WEIGHT * _spread(parts).sqrt()


def _without(scene: Scene) -> dict[str, str]:
    """Return the scene's attributes with every nameable part absent or of another colour."""
    parts = dict(scene.parts)
    parts.update({name: value for name, value in _ABSENT.items() if name in parts})
    if scene.kind in PEOPLE:
        parts["hair_color"] = _other(parts["hair_color"], "ginger", "black")
        parts["legs_color"] = _other(parts["legs_color"], "red", "blue")
    if scene.kind == "house":
        parts["second"] = _other(parts["second"], "red", "blue")
    return parts


def _other(value: str, first: str, second: str) -> str:
    return first if value != first else second


def _pixels(image: Image.Image) -> npt.NDArray[np.int16]:
    return np.asarray(image).astype(np.int16)  # (H,W,3)


def _share(picture: npt.NDArray[np.int16], other: npt.NDArray[np.int16]) -> Tensor:
    """Return the share (h,w) of each latent's pixels that differ visibly."""
    differs = np.abs(picture - other).max(axis=2) > _VISIBLE
    return F.avg_pool2d(torch.from_numpy(differs.astype(np.float32))[None], _FACTOR)[0]


def _spread(share: Tensor) -> Tensor:
    """Return the share (h,w) of each latent or of its best neighbour, which sees it too."""
    return F.max_pool2d(share[None], 3, 1, 1)[0]
