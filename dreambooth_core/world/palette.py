"""The words and colours of the picture world: every attribute, its values and its RGB."""

from __future__ import annotations

RGB = tuple[int, int, int]

COLORS: dict[str, RGB] = {
    "red": (220, 30, 35),
    "orange": (250, 135, 15),
    "yellow": (250, 225, 40),
    "green": (35, 150, 55),
    "blue": (40, 80, 225),
    "purple": (125, 40, 165),
    "white": (248, 248, 248),
    "black": (18, 18, 20),
}
"""The colours that captions name."""

UNNAMED_COLORS: dict[str, RGB] = {
    "magenta": (240, 45, 160),
    "turquoise": (25, 215, 205),
    "brown": (120, 70, 35),
    "lime": (165, 235, 50),
}
"""Colours that occur in pictures but in no caption: what makes a subject unnameable."""

ALL_COLORS: dict[str, RGB] = {**COLORS, **UNNAMED_COLORS}

HAIR_COLORS: dict[str, RGB] = {
    "black": (28, 24, 24),
    "brown": (115, 68, 35),
    "blond": (245, 215, 110),
    "ginger": (215, 95, 25),
}

SKIN: dict[str, RGB] = {
    "light": (250, 215, 185),
    "medium": (215, 160, 115),
    "dark": (135, 88, 58),
}

FLAT_BACKGROUNDS: dict[str, RGB] = {
    "pink": (240, 165, 185),
    "teal": (90, 160, 160),
    "gray": (140, 140, 145),
    "tan": (205, 175, 130),
    "lilac": (185, 160, 225),
}

SCENIC_BACKGROUNDS: tuple[str, ...] = ("beach", "night", "snow", "meadow", "sunset")

BACKGROUNDS: tuple[str, ...] = (*FLAT_BACKGROUNDS, *SCENIC_BACKGROUNDS)

PEOPLE: tuple[str, ...] = ("man", "woman")
KINDS: tuple[str, ...] = (*PEOPLE, "dog", "car", "house", "tree", "heart", "star")

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "background": BACKGROUNDS,
    "color": tuple(ALL_COLORS),
    "second": tuple(ALL_COLORS),
    "pattern": ("plain", "striped", "spotted"),
    "hat": ("none", "cap", "top hat", "party hat"),
    "hat_color": tuple(ALL_COLORS),
    "hair_color": tuple(HAIR_COLORS),
    "hair_length": ("short", "long"),
    "glasses": ("no", "yes"),
    "beard": ("no", "yes"),
    "skin": tuple(SKIN),
    "legs_color": tuple(ALL_COLORS),
    "ears": ("floppy", "pointed"),
    "collar": ("none", *ALL_COLORS),
    "form": ("round", "pointed"),
}
"""Every attribute a scene may have and its values, in the judge's order of classes."""
