"""The grounds that everything stands on: five flat ones and five scenes."""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import Image

from dreambooth_core.world.drawing import OVERSAMPLING, UNITS, Pen
from dreambooth_core.world.palette import FLAT_BACKGROUNDS, RGB


def _two_grounds(upper: RGB, lower: RGB, horizon: float) -> Pen:
    side = UNITS * OVERSAMPLING
    pen = Pen(Image.new("RGB", (side, side), upper))
    pen.rectangle(-2, horizon, UNITS + 2, UNITS + 2, lower)
    return pen


def _beach(rng: random.Random) -> Pen:
    pen = _two_grounds((135, 205, 245), (240, 215, 140), rng.uniform(86, 96))
    sea = rng.uniform(62, 70)
    pen.rectangle(-2, sea, UNITS + 2, sea + 20, (30, 125, 190))
    return pen


def _night(rng: random.Random) -> Pen:
    pen = _two_grounds((32, 40, 105), (22, 26, 62), rng.uniform(96, 106))
    pen.circle(16 + rng.uniform(-4, 4), 20 + rng.uniform(-5, 5), 10, (250, 240, 180))
    return pen


def _snow(rng: random.Random) -> Pen:
    pen = _two_grounds((165, 190, 220), (238, 243, 250), rng.uniform(84, 96))
    for column, row in ((14, 16), (40, 44), (112, 18), (14, 66), (116, 60), (88, 12)):
        x, y = column + rng.uniform(-5, 5), row + rng.uniform(-7, 7)
        pen.circle(x, y, 3.5, (250, 252, 255))
    return pen


def _meadow(rng: random.Random) -> Pen:
    pen = _two_grounds((160, 220, 250), (110, 190, 70), rng.uniform(78, 92))
    pen.ellipse(rng.uniform(16, 112), 96, 46, 22, (110, 190, 70))
    return pen


def _sunset(rng: random.Random) -> Pen:
    pen = _two_grounds((250, 165, 95), (110, 60, 85), rng.uniform(92, 102))
    pen.rectangle(-2, -2, UNITS + 2, rng.uniform(34, 44), (225, 105, 100))
    return pen


_SCENES: dict[str, Callable[[random.Random], Pen]] = {
    "beach": _beach,
    "night": _night,
    "snow": _snow,
    "meadow": _meadow,
    "sunset": _sunset,
}


def paint_background(name: str, rng: random.Random) -> Image.Image:
    """Return the oversampled ground called `name`, with a little variation from `rng`."""
    if name in _SCENES:
        return _SCENES[name](rng).image
    side = UNITS * OVERSAMPLING
    red, green, blue = (channel + rng.randint(-6, 6) for channel in FLAT_BACKGROUNDS[name])
    return Image.new("RGB", (side, side), (red, green, blue))
