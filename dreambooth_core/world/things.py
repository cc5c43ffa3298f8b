"""Everything that is not a person: dog, car, house, tree, heart and star."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from dreambooth_core.world.drawing import Pen, shade
from dreambooth_core.world.palette import ALL_COLORS, RGB

PIVOT = (64.0, 66.0)
_DARK: RGB = (25, 22, 30)
_WOOD: RGB = (115, 75, 45)
_GLASS: RGB = (190, 230, 245)

Parts = Mapping[str, str]


def _dog(pen: Pen, parts: Parts) -> None:
    color, second = ALL_COLORS[parts["color"]], ALL_COLORS[parts["second"]]
    pen.line((30, 66), (18, 46), 9, color)
    for left in (28, 64):
        pen.rectangle(left + 13, 80, left + 24, 114, shade(color, 0.75), radius=3)
        pen.rectangle(left, 80, left + 12, 116, color, radius=3)
    pen.rectangle(24, 56, 92, 92, color, radius=15)
    _fur(pen, parts["pattern"], second)
    if parts["ears"] == "pointed":
        pen.polygon([(72, 36), (80, 8), (92, 28)], shade(color, 0.7))
        pen.polygon([(92, 28), (104, 8), (108, 34)], shade(color, 0.7))
    if parts["collar"] != "none":
        pen.line((74, 60), (94, 72), 13, ALL_COLORS[parts["collar"]])
    pen.circle(90, 42, 20, color)
    pen.rectangle(92, 40, 118, 57, color, radius=8)
    if parts["ears"] == "floppy":
        pen.ellipse(76, 46, 8, 18, shade(color, 0.7))
    eye: RGB = (250, 250, 250) if parts["color"] == "black" else _DARK
    pen.circle(95, 37, 3.5, eye)
    pen.circle(115, 43, 5, (90, 85, 90) if parts["color"] == "black" else _DARK)


def _fur(pen: Pen, pattern: str, color: RGB) -> None:
    if pattern == "spotted":
        for x, y in ((36, 70), (53, 80), (62, 64)):
            pen.circle(x, y, 7, color)
    elif pattern == "striped":
        for left in (34, 54):
            pen.rectangle(left, 56, left + 10, 92, color)


def _car(pen: Pen, parts: Parts) -> None:
    color = ALL_COLORS[parts["color"]]
    pen.polygon([(30, 66), (44, 38), (84, 38), (100, 66)], color)
    pen.polygon([(40, 64), (49, 45), (62, 45), (62, 64)], _GLASS)
    pen.polygon([(67, 64), (67, 45), (80, 45), (90, 64)], _GLASS)
    pen.rectangle(10, 62, 118, 92, color, radius=10)
    pen.rectangle(110, 68, 118, 77, (255, 245, 170), radius=2)
    for x in (36, 92):
        pen.circle(x, 92, 15, _DARK)
        pen.circle(x, 92, 6, (190, 190, 195))


def _house(pen: Pen, parts: Parts) -> None:
    pen.rectangle(24, 56, 104, 112, ALL_COLORS[parts["color"]])
    pen.polygon([(12, 58), (64, 14), (116, 58)], ALL_COLORS[parts["second"]])
    pen.rectangle(72, 76, 92, 112, _WOOD)
    pen.rectangle(34, 68, 58, 90, _GLASS)


def _tree(pen: Pen, parts: Parts) -> None:
    color = ALL_COLORS[parts["color"]]
    pen.rectangle(56, 78, 72, 118, _WOOD)
    if parts["form"] == "round":
        pen.circle(64, 50, 38, color)
    else:
        pen.polygon([(64, 8), (102, 88), (26, 88)], color)


def _heart(pen: Pen, parts: Parts) -> None:
    color = ALL_COLORS[parts["color"]]
    for x in (43, 85):
        pen.circle(x, 48, 24, color)
    pen.polygon([(23.5, 60), (104.5, 60), (64, 112)], color)
    pen.polygon([(43, 48), (85, 48), (104, 60), (24, 60)], color)


def _star(pen: Pen, parts: Parts) -> None:
    points = []
    for corner in range(10):
        radius = 52.0 if corner % 2 == 0 else 22.0
        angle = math.pi * corner / 5
        points.append((64 + radius * math.sin(angle), 66 - radius * math.cos(angle)))
    pen.polygon(points, ALL_COLORS[parts["color"]])


_DRAWERS: dict[str, Callable[[Pen, Parts], None]] = {
    "dog": _dog,
    "car": _car,
    "house": _house,
    "tree": _tree,
    "heart": _heart,
    "star": _star,
}


def draw_thing(pen: Pen, parts: Parts) -> None:
    """Draw the thing named by `parts["kind"]` from the attributes in `parts`."""
    _DRAWERS[parts["kind"]](pen, parts)
