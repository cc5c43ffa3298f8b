"""The world's pictures: the same scene is the same picture, and every attribute shows."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageOps

from dreambooth_core.world.palette import (
    ALL_COLORS,
    ATTRIBUTES,
    BACKGROUNDS,
    COLORS,
    FLAT_BACKGROUNDS,
    KINDS,
    UNNAMED_COLORS,
)
from dreambooth_core.world.pictures import Scene, place_scene, render, sample_parts, sample_scene


def scene(kind: str, background: str = "gray", **parts: str) -> Scene:
    """Return a centred scene whose unsaid parts are always the same."""
    drawn = sample_parts(random.Random(kind), kind)
    return Scene({**drawn, "background": background, **parts})


def differing(one: Image.Image, other: Image.Image) -> float:
    """Return the share of pixels in which two pictures differ."""
    pair = np.asarray(one).astype(int), np.asarray(other).astype(int)
    return float((np.abs(pair[0] - pair[1]).max(axis=2) > 8).mean())


def test_a_seed_draws_the_same_scene_and_picture_again() -> None:
    first, second = (sample_scene(random.Random(5)) for _ in range(2))
    assert first == second
    assert render(first).tobytes() == render(second).tobytes()
    assert sample_scene(random.Random(6)) != first


def test_a_picture_does_not_depend_on_what_was_drawn_before() -> None:
    wanted = render(scene("man", "night"))
    random.seed(3)
    render(scene("dog", "snow"))
    assert render(scene("man", "night")).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("size", [64, 128])
def test_pictures_are_rgb_of_the_size_asked_for(size: int) -> None:
    picture = render(scene("house"), size)
    assert picture.mode == "RGB"
    assert picture.size == (size, size)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_flat_backgrounds_fill_the_corners_and_scenes_differ(background: str) -> None:
    picture = render(scene("heart", background))
    if background in FLAT_BACKGROUNDS:
        ground = picture.getpixel((1, 1))
        assert ground == pytest.approx(FLAT_BACKGROUNDS[background], abs=12)
        assert picture.getpixel((126, 126)) == ground
    others = [name for name in BACKGROUNDS if name != background]
    assert all(differing(picture, render(scene("heart", name))) > 0.1 for name in others)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("color", ALL_COLORS)
def test_every_color_is_painted_as_it_is(kind: str, color: str) -> None:
    second = "red" if color != "red" else "blue"
    parts = {"color": color, "second": second}
    if kind == "dog":
        parts["collar"] = "none"
    picture = np.asarray(render(scene(kind, **parts)))
    assert (picture == ALL_COLORS[color]).all(axis=2).mean() > 0.02


def shows(kind: str, attribute: str) -> bool:
    return attribute in sample_parts(random.Random(0), kind)


@pytest.mark.parametrize("attribute", sorted(set(ATTRIBUTES) - {"kind", "background"}))
def test_every_value_of_an_attribute_is_another_picture(attribute: str) -> None:
    worn = {"pattern": "spotted", "hat": "top hat", "collar": "white", "second": "white"}
    for kind in (kind for kind in KINDS if shows(kind, attribute)):
        if kind == "woman" and attribute == "beard":
            continue
        base = scene(kind, **{**worn, "color": "orange"})
        pictures = [
            render(dataclasses.replace(base, parts={**base.parts, attribute: value}))
            for value in ATTRIBUTES[attribute]
        ]
        pairs = [(a, b) for a in range(len(pictures)) for b in range(a)]
        assert min(differing(pictures[a], pictures[b]) for a, b in pairs) > 0.003, kind


def test_mirroring_turns_the_object_round() -> None:
    plain = scene("dog", "pink")
    mirrored = dataclasses.replace(plain, mirrored=True)
    assert differing(render(plain), render(mirrored)) > 0.05
    assert differing(ImageOps.mirror(render(plain)), render(mirrored)) < 0.04


def test_shift_and_scale_move_and_shrink_the_object() -> None:
    def box(one: Scene) -> tuple[int, int, int, int]:
        ground = np.array(FLAT_BACKGROUNDS["gray"])
        rows, columns = np.nonzero(np.abs(np.asarray(render(one)) - ground).max(axis=2) > 20)
        return columns.min(), columns.max(), rows.min(), rows.max()

    star = scene("star", color="yellow")
    left, right, top, bottom = box(star)
    moved = box(dataclasses.replace(star, shift=(8.0, -5.0)))
    assert moved == pytest.approx((left + 8, right + 8, top - 5, bottom - 5), abs=1)
    small = box(dataclasses.replace(star, scale=0.5))
    assert (small[1] - small[0]) / (right - left) == pytest.approx(0.5, abs=0.03)


def test_places_and_sizes_stay_in_the_picture() -> None:
    rng = random.Random(1)
    for kind in KINDS:
        one = place_scene(rng, scene(kind, "pink", color="blue").parts)
        edge = np.asarray(render(one)).astype(int)[:, [0, -1]]
        assert np.abs(edge - FLAT_BACKGROUNDS["pink"]).max() < 20, kind


def test_chance_draws_every_value_and_few_unnamed_colors() -> None:
    rng = random.Random(2)
    scenes = [sample_scene(rng) for _ in range(4000)]
    for attribute, values in ATTRIBUTES.items():
        drawn = {one.parts[attribute] for one in scenes if attribute in one.parts}
        assert drawn == set(values), attribute
    colors = Counter(one.parts["color"] for one in scenes)
    unnamed = sum(colors[color] for color in UNNAMED_COLORS) / len(scenes)
    assert 0.10 < unnamed < 0.20
    assert set(colors) == {*COLORS, *UNNAMED_COLORS}


def test_second_colors_and_collars_never_vanish_into_the_first() -> None:
    rng = random.Random(3)
    for _ in range(2000):
        parts = sample_scene(rng).parts
        assert parts["color"] != parts.get("second")
        assert parts["color"] != parts.get("collar")


def test_only_men_have_beards() -> None:
    rng = random.Random(4)
    bearded = {
        one.kind for one in (sample_scene(rng) for _ in range(1000))
        if one.parts.get("beard") == "yes"
    }  # fmt: skip
    assert bearded == {"man"}
