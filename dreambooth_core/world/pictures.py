"""A scene of the world as plain attributes, how one is drawn by chance, and its picture."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from dreambooth_core.world import people, things
from dreambooth_core.world.backgrounds import paint_background
from dreambooth_core.world.drawing import Pen
from dreambooth_core.world.palette import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLORS,
    HAIR_COLORS,
    KINDS,
    PEOPLE,
    SKIN,
    UNNAMED_COLORS,
)

KIND_WEIGHTS: dict[str, float] = dict(
    zip(KINDS, (0.22, 0.22, 0.14, 0.1, 0.09, 0.08, 0.07, 0.08), strict=True)
)
_UNNAMED_SHARE = 0.15


@dataclass(frozen=True)
class Scene:
    """One picture: its attributes, where the object stands, and the seed of small variations."""

    parts: Mapping[str, str]
    shift: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    mirrored: bool = False
    seed: int = 0

    @property
    def kind(self) -> str:
        """The kind of object."""
        return self.parts["kind"]

    @property
    def background(self) -> str:
        """The name of the ground."""
        return self.parts["background"]


def _color(rng: random.Random, *taken: str) -> str:
    source = UNNAMED_COLORS if rng.random() < _UNNAMED_SHARE else COLORS
    return rng.choice([color for color in source if color not in taken])


def _person_parts(rng: random.Random, kind: str) -> dict[str, str]:
    color = _color(rng)
    return {
        "color": color,
        "second": _color(rng, color),
        "pattern": rng.choices(ATTRIBUTES["pattern"], (0.5, 0.25, 0.25))[0],
        "hat": rng.choices(ATTRIBUTES["hat"], (0.34, 0.22, 0.22, 0.22))[0],
        "hat_color": _color(rng),
        "hair_color": rng.choice(tuple(HAIR_COLORS)),
        "hair_length": "long" if rng.random() < (0.7 if kind == "woman" else 0.35) else "short",
        "glasses": "yes" if rng.random() < 0.35 else "no",
        "beard": "yes" if kind == "man" and rng.random() < 0.4 else "no",
        "skin": rng.choice(tuple(SKIN)),
        "legs_color": _color(rng),
    }


def _dog_parts(rng: random.Random) -> dict[str, str]:
    color = _color(rng)
    return {
        "color": color,
        "second": _color(rng, color),
        "pattern": rng.choices(ATTRIBUTES["pattern"], (0.5, 0.2, 0.3))[0],
        "ears": rng.choice(ATTRIBUTES["ears"]),
        "collar": "none" if rng.random() < 0.35 else _color(rng, color),
    }


def _thing_parts(rng: random.Random, kind: str) -> dict[str, str]:
    color = _color(rng)
    parts = {"color": color}
    if kind == "house":
        parts["second"] = _color(rng, color)
    if kind == "tree":
        parts["form"] = rng.choice(ATTRIBUTES["form"])
    return parts


def sample_parts(rng: random.Random, kind: str) -> dict[str, str]:
    """Draw the attributes of one object, without its background."""
    if kind in PEOPLE:
        parts = _person_parts(rng, kind)
    elif kind == "dog":
        parts = _dog_parts(rng)
    else:
        parts = _thing_parts(rng, kind)
    return {"kind": kind, **parts}


def place_scene(rng: random.Random, parts: Mapping[str, str]) -> Scene:
    """Give attributes a place, a size and a seed.

    Everything faces one way: two facings cost a small UNet most of its training (a dog begins
    with a head on either side).
    """
    person = parts["kind"] in PEOPLE
    return Scene(
        parts=dict(parts),
        shift=(rng.uniform(-9, 9), rng.uniform(-2, 3) if person else rng.uniform(-6, 6)),
        scale=rng.uniform(0.88, 1.0) if person else rng.uniform(0.82, 0.98),
        seed=rng.getrandbits(31),
    )


def sample_scene(rng: random.Random, kind_weights: Mapping[str, float] = KIND_WEIGHTS) -> Scene:
    """Draw a whole scene: kind, background, parts and place."""
    kind = rng.choices(KINDS, [kind_weights[name] for name in KINDS])[0]
    parts = sample_parts(rng, kind)
    return place_scene(rng, {**parts, "background": rng.choice(BACKGROUNDS)})


def render(scene: Scene, size: int = 128) -> Image.Image:
    """Draw the scene as an RGB picture of `size` by `size` pixels."""
    image = paint_background(scene.background, random.Random(scene.seed))
    person = scene.kind in PEOPLE
    pivot = people.PIVOT if person else things.PIVOT
    pen = Pen(image, pivot, scene.shift, scene.scale, scene.mirrored)
    (people.draw_person if person else things.draw_thing)(pen, scene.parts)
    return image.resize((size, size), Image.Resampling.BOX)
