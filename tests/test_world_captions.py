"""The world's language: captions say what is true, and prompts are read as they are meant."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from dreambooth_core.world.captions import FILLERS, PLACES, caption, parse_prompt
from dreambooth_core.world.palette import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLORS,
    HAIR_COLORS,
    KINDS,
    UNNAMED_COLORS,
)
from dreambooth_core.world.pictures import sample_scene

MAN = {
    "kind": "man",
    "background": "beach",
    "color": "red",
    "second": "blue",
    "pattern": "striped",
    "hat": "cap",
    "hat_color": "green",
    "hair_color": "ginger",
    "hair_length": "long",
    "glasses": "yes",
    "beard": "yes",
    "skin": "dark",
    "legs_color": "white",
}


def said(parts: dict[str, str], count: int = 400) -> list[str]:
    rng = random.Random(0)
    return [caption(parts, rng) for _ in range(count)]


def test_whatever_a_caption_says_is_true() -> None:
    rng = random.Random(1)
    for _ in range(5000):
        parts = sample_scene(rng).parts
        text = caption(parts, rng)
        wanted = parse_prompt(text)
        assert wanted.items() <= dict(parts).items(), text
        assert wanted["kind"] == parts["kind"]


def test_a_caption_is_said_by_the_same_chance_again() -> None:
    assert caption(MAN, random.Random(9)) == caption(MAN, random.Random(9))


def test_every_attribute_that_words_name_is_said_and_read() -> None:
    rng = random.Random(2)
    read: Counter[tuple[str, str]] = Counter()
    for _ in range(8000):
        read.update(parse_prompt(caption(sample_scene(rng).parts, rng)).items())
    named: dict[str, tuple[str, ...]] = {
        "kind": KINDS,
        "background": BACKGROUNDS,
        "color": tuple(COLORS),
        "second": tuple(COLORS),
        "pattern": ("striped", "spotted"),
        "hat": ATTRIBUTES["hat"][1:],
        "hat_color": tuple(COLORS),
        "hair_color": tuple(HAIR_COLORS),
        "hair_length": ("short", "long"),
        "glasses": ("yes",),
        "beard": ("yes",),
        "legs_color": tuple(COLORS),
        "ears": ("floppy", "pointed"),
        "collar": tuple(COLORS),
        "form": ("round", "pointed"),
    }
    assert set(read) == {(name, value) for name, values in named.items() for value in values}


def test_captions_never_say_an_unnamed_color_or_all_there_is() -> None:
    rng = random.Random(3)
    for _ in range(3000):
        parts = {**sample_scene(rng).parts}
        words = caption(parts, rng).split()
        brown_hair = ["brown", "hair"] in [words[i : i + 2] for i in range(len(words))]
        assert brown_hair or not set(words) & set(UNNAMED_COLORS)
    longest = max(len(parse_prompt(text)) for text in said(MAN))
    assert longest < len(MAN) - 2


def test_a_man_is_said_in_these_ways() -> None:
    texts = said(MAN)
    assert any(text.startswith("photo of a man in a striped red shirt") for text in texts)
    for phrase in ("a cap", "a green cap", "glasses", "a beard", "white trousers"):
        assert any(
            f"with {phrase} " in text or f"and {phrase} " in text or text.endswith(phrase)
            for text in texts
        ), phrase
    woman = {**MAN, "kind": "woman", "beard": "no"}
    assert any("white skirt" in text for text in said(woman))
    assert not any("trousers" in text or "beard" in text for text in said(woman))


def test_fillers_are_said_now_and_then_and_mean_nothing() -> None:
    texts = said(MAN, 2000)
    filled = [text for text in texts if set(text.split()) & set(FILLERS)]
    assert 0.15 < len(filled) / len(texts) < 0.25
    for filler in FILLERS:
        assert parse_prompt(f"photo of a {filler} man at night") == {
            "kind": "man",
            "background": "night",
        }


def test_the_place_is_left_out_now_and_then() -> None:
    texts = said(MAN, 2000)
    assert 0.86 < sum(text.endswith("at the beach") for text in texts) / len(texts) < 0.94


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("", {}),
        ("a sunny day", {}),
        ("photo of a man", {"kind": "man"}),
        ("Photo of a WOMAN,  in the snow", {"kind": "woman", "background": "snow"}),
        ("photo of a ohwx dog in a meadow", {"kind": "dog", "background": "meadow"}),
        ("photo of a red car at sunset", {"kind": "car", "color": "red", "background": "sunset"}),
        (
            "photo of a man in a spotted blue shirt",
            {"kind": "man", "pattern": "spotted", "color": "blue"},
        ),
        ("photo of a woman with black hair", {"kind": "woman", "hair_color": "black"}),
        ("photo of a woman with short hair", {"kind": "woman", "hair_length": "short"}),
        (
            "photo of a man with a purple top hat and a beard on a teal background",
            {
                "kind": "man",
                "hat": "top hat",
                "hat_color": "purple",
                "beard": "yes",
                "background": "teal",
            },
        ),
        ("photo of a man with a party hat", {"kind": "man", "hat": "party hat"}),
        (
            "photo of a man with white trousers and glasses",
            {"kind": "man", "legs_color": "white", "glasses": "yes"},
        ),
        ("photo of a woman with red skirt", {"kind": "woman", "legs_color": "red"}),
        (
            "photo of a striped black dog with a green collar and pointed ears",
            {
                "kind": "dog",
                "pattern": "striped",
                "color": "black",
                "collar": "green",
                "ears": "pointed",
            },
        ),
        (
            "photo of a white house with a red roof",
            {"kind": "house", "color": "white", "second": "red"},
        ),
        ("photo of a round green tree", {"kind": "tree", "form": "round", "color": "green"}),
        ("photo of a pointed star", {"kind": "star"}),
        ("photo of a man with", {"kind": "man"}),
    ],
)
def test_prompts_and_what_they_ask_for(prompt: str, wanted: dict[str, str]) -> None:
    assert parse_prompt(prompt) == wanted


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_place_is_read(background: str) -> None:
    prompt = f"photo of a star {PLACES[background]}"
    assert parse_prompt(prompt) == {"kind": "star", "background": background}


def test_a_place_is_no_color_of_the_object() -> None:
    """`orange` and `tan` are both words for colours; only one of them is the car's."""
    assert parse_prompt("photo of a orange car on a tan background")["color"] == "orange"
    assert "color" not in parse_prompt("photo of a car on a tan background")
