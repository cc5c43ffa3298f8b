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
from dreambooth_core.world.palette import ATTRIBUTES

SIDE = 64
FEATURES = 160
ASSET = Path(__file__).parent / "assets" / "judge.safetensors"
_VALUES = [len(values) for values in ATTRIBUTES.values()]
_LAYERS = ((24, 5, 2), (48, 3, 2), (64, 3, 1), (96, 3, 2), (128, 3, 2))
"""Channels, kernel and stride of each convolution."""

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


class JudgeNetwork(nn.Module):
    """A small convolutional network with one classifier for each attribute."""

    def __init__(self) -> None:
        """Build it with random weights."""
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, kernel, stride in _LAYERS:
            layers += [
                nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2),
                # One group: with more, each group's mean is lost, and with it colours.
                nn.GroupNorm(1, width),
                nn.ReLU(),
            ]
            channels = width
        flat = 48 * (SIDE // 16) ** 2
        self.body = nn.Sequential(*layers, nn.Conv2d(channels, 48, 1), nn.Flatten())
        self.features = nn.Sequential(nn.ReLU(), nn.Linear(flat, FEATURES), nn.ReLU())
        self.heads = nn.Linear(FEATURES, sum(_VALUES))

    def forward(self, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return features (B, F) and each attribute's logits of pixels (B, 3, 64, 64) in 0..1."""
        features = self.features(self.body(pixels * 2 - 1))
        logits = self.heads(features).split(_VALUES, dim=1)
        return features, dict(zip(ATTRIBUTES, logits, strict=True))


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
