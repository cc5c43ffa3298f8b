"""The subjects: what they are, the pictures that come with them, and how they are recognised."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth_core.data.captions import read_caption
from dreambooth_core.data.prompts import final_prompt
from dreambooth_core.world.build.subjects import changed, examples, fit, write_folders
from dreambooth_core.world.captions import FILLERS, parse_prompt
from dreambooth_core.world.palette import ATTRIBUTES, BACKGROUNDS, FLAT_BACKGROUNDS, UNNAMED_COLORS
from dreambooth_core.world.pictures import render
from dreambooth_core.world.subjects import (
    SUBJECTS,
    Subject,
    prompts,
    subject_caption,
    subject_folder,
    subject_scene,
)

each_subject = pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)


def test_one_man_one_woman_and_one_dog() -> None:
    assert [one.class_noun for one in SUBJECTS.values()] == ["man", "woman", "dog"]
    assert all(name == subject.name for name, subject in SUBJECTS.items())


@each_subject
def test_every_part_is_said_and_is_one_of_the_world(subject: Subject) -> None:
    from dreambooth_core.world.pictures import sample_parts

    assert set(subject.parts) == set(sample_parts(random.Random(0), subject.class_noun))
    assert all(value in ATTRIBUTES[name] for name, value in subject.parts.items())
    assert subject.parts["kind"] == subject.class_noun
    assert subject.token in FILLERS


@each_subject
def test_no_words_can_name_a_subject(subject: Subject) -> None:
    unnamed = [value for value in subject.parts.values() if value in UNNAMED_COLORS]
    assert len(unnamed) >= 3
    assert subject.parts["color"] in UNNAMED_COLORS
    assert subject.parts["pattern"] != "plain"


@each_subject
def test_backgrounds_are_seen_or_unseen(subject: Subject) -> None:
    assert (len(subject.seen), len(subject.unseen)) == (6, 4)
    assert {*subject.seen, *subject.unseen} == set(BACKGROUNDS)
    for backgrounds in (subject.seen, subject.unseen):
        flat = [name for name in backgrounds if name in FLAT_BACKGROUNDS]
        assert 0 < len(flat) < len(backgrounds)


@each_subject
def test_a_scene_shows_the_subject_at_changing_places(subject: Subject) -> None:
    rng = random.Random(0)
    scenes = [subject_scene(subject, "snow", rng) for _ in range(20)]
    assert all(one.parts == {**subject.parts, "background": "snow"} for one in scenes)
    assert len({one.shift for one in scenes}) == 20


@each_subject
def test_the_folder_holds_a_picture_and_a_caption_for_each_seen_background(
    subject: Subject,
) -> None:
    folder = subject_folder(subject.name)
    pictures = sorted(folder.glob("*.png"))
    assert len(pictures) == len(list(folder.iterdir())) / 2 == 6
    for picture, background in zip(pictures, subject.seen, strict=True):
        with Image.open(picture) as image:
            assert (image.mode, image.size) == ("RGB", (128, 128))
        caption = read_caption(picture)
        assert caption == subject_caption(subject, background)
        assert parse_prompt(caption) == {"kind": subject.class_noun, "background": background}


def test_the_shipped_pictures_are_the_ones_that_the_build_draws(tmp_path: Path) -> None:
    """Pillow versions draw edges differently by a level or two, which is allowed for."""
    write_folders(tmp_path)
    for name in SUBJECTS:
        for shipped in subject_folder(name).glob("*.png"):
            with Image.open(shipped) as one, Image.open(tmp_path / name / shipped.name) as other:
                pair = np.asarray(one).astype(int), np.asarray(other).astype(int)
            assert np.abs(pair[0] - pair[1]).mean() < 0.5
            text = shipped.with_suffix(".txt").read_bytes()
            assert text == (tmp_path / name / shipped.name).with_suffix(".txt").read_bytes()


@each_subject
def test_the_trainer_puts_the_token_before_the_class(subject: Subject) -> None:
    said = final_prompt(
        "[filewords]",
        subject_caption(subject, "beach"),
        instance_token=subject.token,
        class_token=subject.class_noun,
        role="instance",
    )
    assert f"{subject.token} {subject.class_noun} at the beach" in said


@each_subject
def test_prompts_ask_for_the_class_and_the_place_only(subject: Subject) -> None:
    asked = prompts(subject)
    for texts, backgrounds in (
        (asked.token_seen, subject.seen),
        (asked.token_unseen, subject.unseen),
        (asked.class_places, BACKGROUNDS),
    ):
        assert [parse_prompt(text) for text in texts] == [
            {"kind": subject.class_noun, "background": name} for name in backgrounds
        ]
    with_token = (*asked.token_seen, *asked.token_unseen, asked.token_plain)
    assert all(f"{subject.token} {subject.class_noun}" in text for text in with_token)
    without = (*asked.class_places, asked.class_plain)
    assert not any(subject.token in text for text in without)
    assert parse_prompt(asked.token_plain) == {"kind": subject.class_noun}
    assert parse_prompt(asked.class_plain) == {"kind": subject.class_noun}


@each_subject
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_changed_subject_differs_in_so_many_visible_parts(subject: Subject, count: int) -> None:
    rng = random.Random(count)
    for _ in range(50):
        parts = changed(subject, count, rng)
        differing = [name for name, value in parts.items() if value != subject.parts[name]]
        assert len(differing) == count
        assert "kind" not in differing
        assert parts["color"] != parts["second"]
        assert all(parts[name] in ATTRIBUTES[name] for name in parts)
        assert subject.class_noun != "woman" or parts["beard"] == "no"


@each_subject
def test_examples_are_the_subject_or_clearly_not(subject: Subject) -> None:
    chosen = examples(subject, 600, random.Random(1))
    kinds = Counter()
    for scene, wanted in zip(chosen.scenes, chosen.wanted, strict=True):
        parts = {name: value for name, value in scene.parts.items() if name != "background"}
        differing = sum(parts.get(name) != value for name, value in subject.parts.items())
        assert (differing == 0) == (wanted == 1.0)
        assert differing != 1 or scene.kind == subject.class_noun
        kinds[wanted, scene.kind == subject.class_noun] += 1
    assert 0.42 < kinds[1.0, True] / 600 < 0.58
    assert kinds[0.0, True] > 150
    assert 30 < kinds[0.0, False] < 90
    assert kinds[1.0, False] == 0
    assert {scene.background for scene in chosen.scenes} == set(BACKGROUNDS)


def test_fit_separates_what_can_be_separated_in_plain_units() -> None:
    """Two numbers of very different size, of which the first decides: above 30 or not."""
    generator = torch.Generator().manual_seed(0)
    signatures = torch.rand((400, 2), generator=generator) * torch.tensor([60.0, 0.1])
    wanted = (signatures[:, 0] > 30).float()
    fitted = fit(signatures, wanted)
    scores = torch.sigmoid(signatures @ fitted["weight"] + fitted["bias"])
    assert ((scores > 0.5).float() == wanted).float().mean() > 0.97
    assert scores[signatures[:, 0] < 15].max() < 0.1
    assert scores[signatures[:, 0] > 45].min() > 0.9


def test_a_stronger_penalty_makes_smaller_weights() -> None:
    signatures = torch.randn((200, 3), generator=torch.Generator().manual_seed(1))
    wanted = (signatures[:, 0] > 0).float()
    sizes = [fit(signatures, wanted, penalty)["weight"].norm() for penalty in (1e-3, 1e-1)]
    assert sizes[1] < 0.5 * sizes[0]


def test_a_picture_of_a_subject_is_not_a_picture_of_another() -> None:
    drawn = [render(subject_scene(one, "gray", random.Random(0))) for one in SUBJECTS.values()]
    assert len({picture.tobytes() for picture in drawn}) == 3
