"""Men and women, drawn from their parts: clothes, hair, hat, glasses, beard, skin."""

from __future__ import annotations

from collections.abc import Mapping

from dreambooth_core.world.drawing import Pen, shade
from dreambooth_core.world.palette import ALL_COLORS, HAIR_COLORS, RGB, SKIN

PIVOT = (64.0, 122.0)
_DARK: RGB = (25, 22, 30)
_SHOES: RGB = (60, 45, 40)
_SPOTS = ((53, 67), (75, 67), (64, 77), (53, 87), (75, 87))


def _legs(pen: Pen, color: RGB, skin: RGB, skirt: bool) -> None:
    for left in (50, 66):
        if skirt:
            pen.rectangle(left + 3, 100, left + 10, 118, skin)
        else:
            pen.rectangle(left, 90, left + 13, 118, color)
        pen.ellipse(left + 6.5, 118, 8, 4.5, _SHOES)
    if skirt:
        pen.polygon([(48, 88), (80, 88), (90, 110), (38, 110)], color)
    else:
        pen.rectangle(49, 88, 79, 97, color)


def _shirt(pen: Pen, parts: Mapping[str, str], skin: RGB) -> None:
    color, second = ALL_COLORS[parts["color"]], ALL_COLORS[parts["second"]]
    for side in (-1, 1):
        pen.line((64 + side * 18, 66), (64 + side * 27, 84), 11, shade(color, 0.85))
        pen.circle(64 + side * 28, 88, 6, skin)
    pen.rectangle(45, 58, 83, 93, color, radius=6)
    if parts["pattern"] == "striped":
        for top in (64, 79):
            pen.rectangle(45, top, 83, top + 8, second)
    elif parts["pattern"] == "spotted":
        for x, y in _SPOTS:
            pen.circle(x, y, 5, second)


def _face(pen: Pen, parts: Mapping[str, str], hair: RGB) -> None:
    if parts["beard"] == "yes":
        pen.dome(64, 44, 18, hair, upper=False)
        pen.ellipse(64, 44, 12, 4, SKIN[parts["skin"]])
    lips: RGB = (205, 40, 60) if parts["kind"] == "woman" else (130, 50, 50)
    pen.ellipse(64, 52, 5.5, 2.5, lips)
    for side in (-1, 1):
        if parts["glasses"] == "yes":
            pen.circle(64 + side * 8.5, 41, 7.5, _DARK)
        else:
            pen.circle(64 + side * 7.5, 42, 3, _DARK)
    if parts["glasses"] == "yes":
        pen.rectangle(46, 38, 82, 42, _DARK)


def _hat(pen: Pen, hat: str, color: RGB) -> None:
    if hat == "cap":
        pen.dome(64, 32, 20, color)
        pen.rectangle(62, 27, 92, 33, shade(color, 0.75), radius=3)
    elif hat == "top hat":
        pen.rectangle(49, 3, 79, 29, color)
        pen.rectangle(40, 25, 88, 32, color, radius=3)
    elif hat == "party hat":
        pen.polygon([(45, 31), (83, 31), (64, 2)], color)


def draw_person(pen: Pen, parts: Mapping[str, str]) -> None:
    """Draw a man or a woman from the attributes in `parts`."""
    skin, hair = SKIN[parts["skin"]], HAIR_COLORS[parts["hair_color"]]
    _legs(pen, ALL_COLORS[parts["legs_color"]], skin, skirt=parts["kind"] == "woman")
    _shirt(pen, parts, skin)
    if parts["hair_length"] == "long":
        pen.rectangle(40, 24, 88, 70, hair, radius=16)
    pen.ellipse(64, 42, 18, 19, skin)
    pen.dome(64, 40, 20.5, hair)
    pen.ellipse(64, 44, 16, 10, skin)
    _face(pen, parts, hair)
    if parts["hat"] != "none":
        _hat(pen, parts["hat"], ALL_COLORS[parts["hat_color"]])
