"""Reads pictures of the world: all attributes, how surely a subject is shown, how they differ.

Shapes: B pictures, H W pixels, F features, A values of all attributes together.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from dreambooth_core.errors import InputError
from dreambooth_core.world.palette import (
    ALL_COLORS,
    ATTRIBUTES,
    FLAT_BACKGROUNDS,
    HAIR_COLORS,
    SKIN,
)

SIDE = 64
FEATURES = 160
ASSET = Path(__file__).parent / "assets" / "judge.safetensors"
_VALUES = [len(values) for values in ATTRIBUTES.values()]
CELL = 4
COLORED = (
    "color",
    "second",
    "hat_color",
    "legs_color",
    "hair_color",
    "skin",
    "collar",
    "background",
)
"""The attributes whose values are colours: what is looked for in each is a place."""

_PROTOTYPES = {**ALL_COLORS, **FLAT_BACKGROUNDS, **SKIN, **HAIR_COLORS}
_COLORS = len(_PROTOTYPES)
_SHARPNESS = 35.0
_PLACES = 12
"""Places in a picture that are told apart: those of the coloured attributes, and four more."""
_FLOOR = -7.0
_BATCH = 32

Pictures = Tensor | Sequence[Image.Image]
"""Pictures as pixels (B, 3, H, W) in 0..1, or as images of one size."""


def to_pixels(images: Pictures) -> Tensor:
    """Return pixels (B, 3, H, W) in 0..1."""
    if isinstance(images, Tensor):
        return images.float()
    arrays = [np.asarray(image.convert("RGB"), dtype=np.float32) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 255


def reduce_pixels(pixels: Tensor) -> Tensor:
    """Reduce pixels (B, 3, H, W) by area to the judge's size (B, 3, 64, 64)."""
    return F.interpolate(pixels, size=(SIDE, SIDE), mode="area")


class ColorCells(nn.Module):
    """How much of each colour of the palette is where: what a colour is need not be learnt.

    Every pixel is shared out among the colours c by softmax(-s |x - c|^2); the shares and the
    pixel itself are then averaged over cells of 4 by 4 pixels.
    """

    def __init__(self) -> None:
        """Take the colours from the palette."""
        super().__init__()
        colors = torch.tensor(list(_PROTOTYPES.values())) / 255
        self.register_buffer("colors", colors, persistent=False)

    @property
    def channels(self) -> int:
        """The number of channels that come out."""
        return len(_PROTOTYPES) + 3

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Return cells (B, colours + 3, H / 4, W / 4) of pixels (B, 3, H, W) in 0..1."""
        colors: Tensor = self.colors  # type: ignore[assignment]
        # |x|^2 is the same for all colours, so that the softmax does without it.
        nearness = F.conv2d(pixels, 2 * colors[:, :, None, None], -colors.square().sum(1))
        shares = (_SHARPNESS * nearness).softmax(dim=1)
        return F.avg_pool2d(torch.cat([shares, pixels], dim=1), CELL)


def _block(channels: int, width: int, stride: int) -> nn.Sequential:
    # One group: with more, each group's mean is lost, and with it colours.
    norm = nn.GroupNorm(1, width)
    return nn.Sequential(nn.Conv2d(channels, width, 3, stride, padding=1), norm, nn.ReLU())


class JudgeNetwork(nn.Module):
    """A small convolutional network with one classifier for each attribute.

    It finds places first (the hat, the shirt) and then which colours are there, so that it need
    not learn every colour in every place. Where the colours of a place are is the place's shape,
    whatever they are: stripes are found so.
    """

    def __init__(self) -> None:
        """Build it with random weights."""
        super().__init__()
        self.cells = ColorCells()
        self.near = _block(self.cells.channels, 48, 1)
        self.far = nn.Sequential(_block(48, 64, 2), _block(64, 64, 1))
        self.places = nn.Conv2d(48 + 64, _PLACES, 1)
        squeeze = nn.Conv2d(128, 48, 1)
        self.shape = nn.Sequential(
            _block(48 + _PLACES, 96, 2), _block(96, 128, 2), squeeze, nn.Flatten()
        )
        flat = 48 * (SIDE // CELL // 4) ** 2 + _PLACES * _COLORS
        self.features = nn.Sequential(nn.ReLU(), nn.Linear(flat, FEATURES), nn.ReLU())
        self.heads = nn.Linear(FEATURES, sum(_VALUES))
        self.trust = nn.Parameter(torch.ones(len(COLORED), 1))
        self.register_buffer("match", _color_match(), persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return features (B, F) and each attribute's logits of pixels (B, 3, 64, 64) in 0..1."""
        return self.read_cells(self.cells(pixels))

    def read_cells(self, cells: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return features and logits of the colour cells of pictures."""
        near = self.near(cells)
        far = F.interpolate(self.far(near), scale_factor=2)
        where = self.places(torch.cat([near, far], dim=1)).flatten(2).softmax(dim=2)
        shares = cells[:, :_COLORS].flatten(2)
        found = where @ shares.transpose(1, 2)  # (B, places, colours)
        spread = (found @ shares).unflatten(2, cells.shape[2:])
        shape = self.shape(torch.cat([near, spread], dim=1))
        features = self.features(torch.cat([shape, 4 * found.flatten(1)], dim=1))
        match: Tensor = self.match  # type: ignore[assignment]
        named = self.trust * (found[:, : len(COLORED)] + 0.03).log()
        logits = self.heads(features) + named.flatten(1) @ match
        return features, dict(zip(ATTRIBUTES, logits.split(_VALUES, dim=1), strict=True))


def _color_match() -> Tensor:
    """Return which logit (places times colours, A) a colour found in a place speaks for."""
    values = [(name, value) for name, names in ATTRIBUTES.items() for value in names]
    match = torch.zeros(len(COLORED), _COLORS, len(values))
    for column, (name, value) in enumerate(values):
        if name in COLORED and value in _PROTOTYPES:
            match[COLORED.index(name), list(_PROTOTYPES).index(value), column] = 1
    return match.flatten(0, 1)


def signature(features: Tensor, logits: Mapping[str, Tensor]) -> Tensor:
    """Join features and all attributes' log-probabilities, floored: (B, F + A)."""
    chances = [logits[name].log_softmax(1).clamp(min=_FLOOR) for name in ATTRIBUTES]
    return torch.cat([features, *chances], dim=1)


class Judge:
    """Reads attributes and recognises the subjects of the world."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of the network (`network.*`) and of each subject (`subject.*`)."""
        self._network = JudgeNetwork()
        self._network.load_state_dict(_under("network.", weights))
        self._network.eval()
        self._subjects = _under("subject.", weights)

    @staticmethod
    @functools.lru_cache(maxsize=1)
    def load() -> Judge:
        """Return the judge that comes with the world, read once."""
        return Judge({name: weight.float() for name, weight in load_file(ASSET).items()})

    @torch.no_grad()
    def _look(self, images: Pictures) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = reduce_pixels(to_pixels(images))
        seen = [self._network(part) for part in pixels.split(_BATCH)]
        features = torch.cat([features for features, _ in seen])
        return features, {name: torch.cat([part[name] for _, part in seen]) for name in ATTRIBUTES}

    def read(self, images: Pictures) -> dict[str, Tensor]:
        """Return the probabilities (B, values) of each attribute's values.

        Attributes that a picture's kind does not have (a car's hat) are read all the same.
        """
        return {name: logits.softmax(1) for name, logits in self._look(images)[1].items()}

    def features(self, images: Pictures) -> Tensor:
        """Return what the judge sees, before it names anything: (B, F)."""
        return self._look(images)[0]

    def signature(self, images: Pictures) -> Tensor:
        """Return what subjects are recognised by (B, F + A)."""
        return signature(*self._look(images))

    def subject_score(self, images: Pictures, subject: str) -> list[float]:
        """Return how surely (0..1) each picture shows the subject, by logistic regression."""
        if f"{subject}.weight" not in self._subjects:
            known = sorted({name.partition(".")[0] for name in self._subjects})
            raise InputError(
                f"The judge knows no subject {subject!r}.",
                remedy=f"Its subjects are: {', '.join(known)}.",
            )
        weight, bias = (self._subjects[f"{subject}.{part}"] for part in ("weight", "bias"))
        scores = torch.sigmoid(self.signature(images) @ weight + bias)
        return [float(score) for score in scores]

    def attributes_right(
        self, images: Pictures, expected: Mapping[str, str] | Sequence[Mapping[str, str]]
    ) -> list[float]:
        """Return the share (0..1) of the expected attributes that each picture shows.

        `expected` is one mapping for all pictures or one for each; an empty one counts as met.
        """
        reading = {name: chances.argmax(1).tolist() for name, chances in self.read(images).items()}
        count = len(reading["kind"])
        wanted = [expected] * count if isinstance(expected, Mapping) else list(expected)
        if len(wanted) != count:
            raise ValueError(f"{count} pictures but {len(wanted)} expectations")
        shares = []
        for picture, one in enumerate(wanted):
            right = [reading[n][picture] == ATTRIBUTES[n].index(value) for n, value in one.items()]
            shares.append(sum(right) / len(right) if right else 1.0)
        return shares

    def prompt_fidelity(
        self, images: Pictures, expected: Mapping[str, str] | Sequence[Mapping[str, str]]
    ) -> float:
        """Return the mean share of expected attributes that the pictures show."""
        shares = self.attributes_right(images, expected)
        return sum(shares) / len(shares)

    def diversity(self, images: Pictures) -> float:
        """Return the mean distance of the pictures' features of length 1, two at a time (0..1.42).

        Fewer than two pictures have none: 0.
        """
        directions = F.normalize(self.features(images), dim=1)
        if len(directions) < 2:
            return 0.0
        return float(torch.pdist(directions).mean())


def _under(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): weight
        for name, weight in weights.items()
        if name.startswith(prefix)
    }
