"""The world's language: how a picture is captioned, and what a prompt asks for."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from dreambooth_core.world.palette import ATTRIBUTES, COLORS, FLAT_BACKGROUNDS, KINDS, PEOPLE

PLACES: dict[str, str] = {
    **{color: f"on a {color} background" for color in FLAT_BACKGROUNDS},
    "beach": "at the beach",
    "night": "at night",
    "snow": "in the snow",
    "meadow": "in a meadow",
    "sunset": "at sunset",
}
"""How a caption says each background."""

FILLERS: tuple[str, ...] = (
    *("ohwx", "sks", "zwx", "rfk", "qzv"),
    *("ktn", "wxr", "bnha", "vtr", "xmb"),
)
"""Rare tokens put before some nouns, so that an unknown word means nothing to the base."""

_FILLER_SHARE = 0.2
_PATTERN = "striped|spotted"
_COLOR = "|".join(COLORS)


def _color_word(color: str) -> str:
    return f"{color} " if color in COLORS else ""


def _said_parts(parts: Mapping[str, str], rng: random.Random) -> list[str]:
    """Return one phrase for each part of a person or a dog that words can name."""
    said = []
    if parts.get("hat", "none") != "none":
        color = _color_word(parts["hat_color"]) if rng.random() < 0.5 else ""
        said.append(f"a {color}{parts['hat']}")
    if parts.get("glasses") == "yes":
        said.append("glasses")
    if parts.get("beard") == "yes":
        said.append("a beard")
    if "hair_length" in parts:
        said.append(f"{rng.choice((parts['hair_length'], parts['hair_color']))} hair")
    if parts.get("legs_color") in COLORS:
        garment = "trousers" if parts["kind"] == "man" else "skirt"
        said.append(f"{parts['legs_color']} {garment}")
    if parts.get("collar") in COLORS:
        said.append(f"a {parts['collar']} collar")
    if "ears" in parts:
        said.append(f"{parts['ears']} ears")
    return said


def _subject(parts: Mapping[str, str], rng: random.Random) -> str:
    filler = f"{rng.choice(FILLERS)} " if rng.random() < _FILLER_SHARE else ""
    color = _color_word(parts["color"]) if rng.random() < 0.8 else ""
    pattern = _pattern_word(parts, rng)
    if parts["kind"] in PEOPLE:
        shirt = f" in a {pattern}{color}shirt" if pattern or color else ""
        return f"{filler}{parts['kind']}{shirt}"
    form = f"{parts['form']} " if parts["kind"] == "tree" and rng.random() < 0.5 else ""
    return f"{pattern}{form}{color}{filler}{parts['kind']}{_roof(parts, rng)}"


def _pattern_word(parts: Mapping[str, str], rng: random.Random) -> str:
    if parts.get("pattern", "plain") == "plain" or rng.random() < 0.4:
        return ""
    return f"{parts['pattern']} "


def _roof(parts: Mapping[str, str], rng: random.Random) -> str:
    roof = parts.get("second") if parts["kind"] == "house" and rng.random() < 0.5 else None
    return f" with a {roof} roof" if roof in COLORS else ""


def caption(parts: Mapping[str, str], rng: random.Random) -> str:
    """Describe a picture by some of its attributes, chosen by chance: never by all of them."""
    text = f"photo of a {_subject(parts, rng)}"
    said = _said_parts(parts, rng)
    rng.shuffle(said)
    count = rng.choices((0, 1, 2), (0.35, 0.45, 0.2))[0]
    if said[:count]:
        text += " with " + " and ".join(said[:count])
    if rng.random() < 0.9:
        text += f" {PLACES[parts['background']]}"
    return text


def _parse_head(kind: str, head: str) -> dict[str, str]:
    found = {}
    clothed = re.search(rf"in a ((?:{_PATTERN}) )?((?:{_COLOR}) )?shirt", head)
    words = clothed.group(0).split() if clothed else head.split(kind)[0].split()
    for word in words:
        if word in COLORS:
            found["color"] = word
        elif word in ATTRIBUTES["pattern"]:
            found["pattern"] = word
        elif kind == "tree" and word in ATTRIBUTES["form"]:
            found["form"] = word
    return found


def _parse_part(phrase: str) -> dict[str, str]:
    words = phrase.removeprefix("a ").split()
    if not words:
        return {}
    first, last = words[0], words[-1]
    color = {first} & set(COLORS)
    hat = next((hat for hat in ATTRIBUTES["hat"][1:] if phrase.endswith(hat)), "")
    if hat:
        return {"hat": hat, **({"hat_color": first} if color else {})}
    names = {"roof": "second", "collar": "collar", "trousers": "legs_color", "skirt": "legs_color"}
    if last in names and color:
        return {names[last]: first}
    return _parse_uncolored(first, last)


def _parse_uncolored(first: str, last: str) -> dict[str, str]:
    if last == "hair":
        return {"hair_length" if first in ATTRIBUTES["hair_length"] else "hair_color": first}
    if last in ("glasses", "beard"):
        return {last: "yes"}
    return {"ears": first} if last == "ears" else {}


def parse_prompt(prompt: str) -> dict[str, str]:
    """Return every attribute that a prompt of the world's language asks for.

    Unknown words (a subject's token) are ignored, so `photo of a ohwx man at night` asks for
    `{"kind": "man", "background": "night"}`.
    """
    text = " ".join(prompt.lower().replace(",", " ").split())
    wanted: dict[str, str] = {}
    for background, phrase in PLACES.items():
        if phrase in text:
            wanted["background"] = background
            text = text.replace(phrase, "").strip()
    head, _, rest = text.partition(" with ")
    kind = next((word for word in head.split() if word in KINDS), "")
    if not kind:
        return wanted
    wanted = {"kind": kind, **_parse_head(kind, head), **wanted}
    for phrase in re.split(r" and | with ", rest):
        wanted.update(_parse_part(phrase.strip()))
    return wanted
