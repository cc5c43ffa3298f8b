"""The world's subjects: one fixed combination of parts each, which no words of the world name."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.world.captions import PLACES
from dreambooth_core.world.palette import BACKGROUNDS
from dreambooth_core.world.pictures import Scene, place_scene

FOLDER = Path(__file__).parent / "assets" / "subjects"


@dataclass(frozen=True)
class Subject:
    """Someone or something to learn: its parts, and the backgrounds of its pictures.

    `seen` are the backgrounds of the pictures to train on, one picture each; all others are
    `unseen`.
    """

    name: str
    class_noun: str
    parts: Mapping[str, str]
    seen: tuple[str, ...]
    token: str = "ohwx"

    @property
    def unseen(self) -> tuple[str, ...]:
        """The backgrounds that the subject is shown on in no picture to train on."""
        return tuple(name for name in BACKGROUNDS if name not in self.seen)


@dataclass(frozen=True)
class Prompts:
    """What to ask a model for once it has learnt a subject.

    With the token: on backgrounds of the training pictures, on others, and alone. Without it: the
    class on every background and alone, where the subject must not appear.
    """

    token_seen: tuple[str, ...]
    token_unseen: tuple[str, ...]
    token_plain: str
    class_places: tuple[str, ...]
    class_plain: str


def _person(noun: str, **parts: str) -> dict[str, str]:
    return {"kind": noun, **parts}


_BOB = Subject(
    name="bob",
    class_noun="man",
    parts=_person(
        "man",
        color="turquoise",
        second="magenta",
        pattern="spotted",
        hat="top hat",
        hat_color="magenta",
        hair_color="ginger",
        hair_length="short",
        glasses="no",
        beard="yes",
        skin="light",
        legs_color="brown",
    ),
    seen=("teal", "gray", "tan", "beach", "snow", "meadow"),
)
_MIA = Subject(
    name="mia",
    class_noun="woman",
    parts=_person(
        "woman",
        color="brown",
        second="lime",
        pattern="striped",
        hat="party hat",
        hat_color="lime",
        hair_color="black",
        hair_length="long",
        glasses="yes",
        beard="no",
        skin="dark",
        legs_color="magenta",
    ),
    seen=("pink", "gray", "lilac", "beach", "night", "snow"),
)
_REX = Subject(
    name="rex",
    class_noun="dog",
    parts={
        "kind": "dog",
        "color": "lime",
        "second": "magenta",
        "pattern": "spotted",
        "ears": "pointed",
        "collar": "turquoise",
    },
    seen=("pink", "teal", "tan", "night", "meadow", "sunset"),
)

SUBJECTS: dict[str, Subject] = {subject.name: subject for subject in (_BOB, _MIA, _REX)}


def subject_scene(subject: Subject, background: str, rng: random.Random) -> Scene:
    """Put the subject on a background, at a place and in a size drawn by chance."""
    return place_scene(rng, {**subject.parts, "background": background})


def subject_folder(name: str) -> Path:
    """Return the folder of the subject's pictures and captions to train on."""
    return FOLDER / SUBJECTS[name].name


def subject_caption(subject: Subject, background: str) -> str:
    """Return what a training picture's caption says: the class and the place, no part."""
    return f"photo of a {subject.class_noun} {PLACES[background]}"


def prompts(subject: Subject) -> Prompts:
    """Return the prompts that measure what a model has learnt of a subject."""
    with_token = f"photo of a {subject.token} {subject.class_noun}"
    return Prompts(
        token_seen=tuple(f"{with_token} {PLACES[name]}" for name in subject.seen),
        token_unseen=tuple(f"{with_token} {PLACES[name]}" for name in subject.unseen),
        token_plain=with_token,
        class_places=tuple(subject_caption(subject, name) for name in BACKGROUNDS),
        class_plain=f"photo of a {subject.class_noun}",
    )
