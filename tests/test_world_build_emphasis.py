"""The weights of a scene's latents: the ground counts once, the object more, its parts most."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dreambooth_core.world.build.emphasis import OBJECT_WEIGHT, PARTS_WEIGHT, emphasis
from dreambooth_core.world.pictures import Scene

MAN = {
    "kind": "man",
    "background": "teal",
    "color": "blue",
    "second": "white",
    "pattern": "plain",
    "hat": "top hat",
    "hat_color": "red",
    "hair_color": "black",
    "hair_length": "short",
    "glasses": "no",
    "beard": "no",
    "skin": "light",
    "legs_color": "green",
}


def _scene(**parts: str) -> Scene:
    return Scene(parts={**MAN, **parts}, seed=1)


def test_the_ground_counts_once_and_nothing_more_than_all_three() -> None:
    weights = emphasis(_scene())
    assert weights.shape == (16, 16)
    assert weights[0, 0] == 1
    assert weights.max().item() == pytest.approx(1 + OBJECT_WEIGHT + PARTS_WEIGHT)


def test_a_hat_lifts_the_head_and_leaves_the_rest() -> None:
    lifted = emphasis(_scene()) - emphasis(_scene(hat="none"))
    assert lifted[:6].max() > 2
    assert torch.equal(lifted[12:], torch.zeros(4, 16))


def test_a_thing_without_nameable_parts_is_lifted_as_a_whole() -> None:
    star = Scene(parts={"kind": "star", "color": "red", "background": "teal"}, seed=1)
    assert emphasis(star).max().item() == pytest.approx(1 + OBJECT_WEIGHT)


def test_a_roof_counts_as_a_part_whatever_its_colour() -> None:
    house = {"kind": "house", "color": "white", "second": "red", "background": "teal"}
    red = Scene(parts=house, seed=1)
    blue = dataclasses.replace(red, parts={**house, "second": "blue"})
    for scene in (red, blue):
        assert emphasis(scene).max() > 1 + OBJECT_WEIGHT
