"""The judge that comes with the world: what it reads, whom it recognises, what it counts."""

from __future__ import annotations

import math
import random
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from dreambooth_core.errors import InputError
from dreambooth_core.world.build.judge import labels
from dreambooth_core.world.build.subjects import changed
from dreambooth_core.world.judge import (
    ASSET,
    FEATURES,
    SIDE,
    ColorCells,
    Judge,
    JudgeNetwork,
    reduce_pixels,
    signature,
    to_pixels,
)
from dreambooth_core.world.palette import ALL_COLORS, ATTRIBUTES, BACKGROUNDS
from dreambooth_core.world.pictures import Scene, place_scene, render, sample_parts, sample_scene
from dreambooth_core.world.subjects import SUBJECTS, Subject, subject_scene

CORE = ("kind", "background", "color")
each_subject = pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)


@lru_cache(maxsize=1)
def some_scenes() -> tuple[Scene, ...]:
    rng = random.Random(77)
    return tuple(sample_scene(rng) for _ in range(160))


def pixels_of(scenes: list[Scene]) -> Tensor:
    return to_pixels([render(scene) for scene in scenes])


def blurred(pixels: Tensor) -> Tensor:
    """Return pixels as soft as a VAE leaves them: a mean over 5 by 5."""
    padded = torch.nn.functional.pad(pixels, (2, 2, 2, 2), mode="replicate")
    return torch.nn.functional.avg_pool2d(padded, 5, stride=1)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def on_all_backgrounds(subject: Subject, seed: int) -> list[Scene]:
    rng = random.Random(seed)
    return [subject_scene(subject, background, rng) for background in BACKGROUNDS]


def others(subject: Subject, count: int, part_changes: int = 0) -> list[Scene]:
    """Return scenes of the class: by chance, or the subject with some parts changed."""
    rng = random.Random(31)
    return [
        place_scene(
            rng,
            {
                **(
                    changed(subject, part_changes, rng)
                    if part_changes
                    else sample_parts(rng, subject.class_noun)
                ),
                "background": rng.choice(BACKGROUNDS),
            },
        )
        for _ in range(count)
    ]


def test_the_asset_is_small_and_read_once() -> None:
    assert ASSET.stat().st_size < 1.5e6
    assert Judge.load() is Judge.load()


def test_it_reads_what_is_drawn() -> None:
    scenes = list(some_scenes())
    wanted = labels(scenes)
    reading = Judge.load().read(pixels_of(scenes))
    for column, name in enumerate(ATTRIBUTES):
        known = wanted[:, column] >= 0
        right = (reading[name].argmax(1) == wanted[:, column])[known].float().mean()
        assert right >= (0.97 if name in CORE else 0.85), name


def test_it_reads_soft_pictures_too() -> None:
    scenes = list(some_scenes())[:80]
    wanted = labels(scenes)
    reading = Judge.load().read(blurred(pixels_of(scenes)))
    for column, name in enumerate(ATTRIBUTES):
        if name in CORE:
            right = (reading[name].argmax(1) == wanted[:, column]).float().mean()
            assert right >= 0.93, name


def test_readings_are_probabilities() -> None:
    reading = Judge.load().read(pixels_of(list(some_scenes())[:5]))
    assert list(reading) == list(ATTRIBUTES)
    for name, chances in reading.items():
        assert chances.shape == (5, len(ATTRIBUTES[name]))
        assert chances.sum(1).tolist() == pytest.approx([1.0] * 5)


def test_images_and_pixels_read_the_same() -> None:
    images = [render(scene) for scene in some_scenes()[:3]]
    judge = Judge.load()
    assert torch.equal(judge.features(images), judge.features(to_pixels(images)))


def test_a_picture_is_read_alike_alone_and_in_a_crowd() -> None:
    pixels = pixels_of(list(some_scenes())[:40])
    judge = Judge.load()
    together = judge.features(pixels)
    assert together.shape == (40, FEATURES)
    assert torch.allclose(judge.features(pixels[37:38])[0], together[37], atol=1e-4)


@each_subject
def test_a_subject_is_recognised_anywhere(subject: Subject) -> None:
    pixels = pixels_of(on_all_backgrounds(subject, 1) + on_all_backgrounds(subject, 2))
    scores = Judge.load().subject_score(pixels, subject.name)
    assert mean(scores) >= 0.95
    assert mean(Judge.load().subject_score(blurred(pixels), subject.name)) >= 0.9


@each_subject
def test_others_are_not_the_subject(subject: Subject) -> None:
    judge = Judge.load()
    assert mean(judge.subject_score(pixels_of(others(subject, 60)), subject.name)) <= 0.03
    rest = [scene for scene in some_scenes() if scene.kind != subject.class_noun]
    assert mean(judge.subject_score(pixels_of(rest[:60]), subject.name)) <= 0.03
    for other in SUBJECTS.values():
        if other is not subject:
            pixels = pixels_of(on_all_backgrounds(other, 3))
            assert mean(judge.subject_score(pixels, subject.name)) <= 0.03


@each_subject
def test_near_misses_count_less_the_further_they_are(subject: Subject) -> None:
    judge = Judge.load()
    two, four = (
        mean(judge.subject_score(pixels_of(others(subject, 60, count)), subject.name))
        for count in (2, 4)
    )
    assert two <= 0.25
    assert four <= 0.06


def test_an_unknown_subject_is_an_error_that_names_the_known() -> None:
    with pytest.raises(InputError, match="bob, mia, rex"):
        Judge.load().subject_score(torch.zeros(1, 3, 128, 128), "zoe")


def a_dog_at_night() -> Tensor:
    parts = {
        "kind": "dog",
        "color": "red",
        "second": "blue",
        "pattern": "plain",
        "ears": "pointed",
        "collar": "none",
        "background": "night",
    }
    return pixels_of([Scene(parts)])


def test_prompt_fidelity_is_the_share_of_what_was_asked_for() -> None:
    judge, pixels = Judge.load(), a_dog_at_night()
    assert judge.prompt_fidelity(pixels, {"kind": "dog", "background": "night"}) == 1.0
    assert judge.prompt_fidelity(pixels, {"kind": "dog", "background": "snow"}) == 0.5
    assert judge.prompt_fidelity(pixels, {"kind": "man", "color": "blue"}) == 0.0
    assert judge.prompt_fidelity(pixels, {}) == 1.0


def test_each_picture_may_have_its_own_expectations() -> None:
    pixels = a_dog_at_night().repeat(2, 1, 1, 1)
    wanted = [{"kind": "dog"}, {"kind": "man", "color": "red"}]
    assert Judge.load().attributes_right(pixels, wanted) == [1.0, 0.5]
    assert Judge.load().prompt_fidelity(pixels, wanted) == 0.75
    with pytest.raises(ValueError, match="2 pictures but 1"):
        Judge.load().attributes_right(pixels, wanted[:1])


def test_diversity_is_the_difference_among_pictures() -> None:
    judge = Judge.load()
    pixels = pixels_of(list(some_scenes())[:12])
    one = pixels[:1]
    assert judge.diversity(one) == 0.0
    assert judge.diversity(one.repeat(4, 1, 1, 1)) == pytest.approx(0.0, abs=1e-3)
    alike = pixels_of(on_all_backgrounds(SUBJECTS["bob"], 4))
    assert 0.05 < judge.diversity(alike) < judge.diversity(pixels) < math.sqrt(2)


def test_diversity_of_two_is_the_distance_of_their_directions() -> None:
    judge = Judge.load()
    pixels = pixels_of(list(some_scenes())[:2])
    first, second = torch.nn.functional.normalize(judge.features(pixels), dim=1)
    assert judge.diversity(pixels) == pytest.approx(float((first - second).norm()), abs=1e-5)


def test_pixels_are_reduced_by_area() -> None:
    pixels = torch.zeros(1, 3, 128, 128)
    pixels[:, :, ::2] = 1.0
    reduced = reduce_pixels(pixels)
    assert reduced.shape == (1, 3, SIDE, SIDE)
    assert torch.allclose(reduced, torch.tensor(0.5))


@pytest.mark.parametrize("color", ["turquoise", "red", "white"])
def test_cells_hold_the_share_of_each_color(color: str) -> None:
    level = torch.tensor(ALL_COLORS[color]) / 255
    cells = ColorCells()(level.view(1, 3, 1, 1).expand(1, 3, 8, 8))
    assert cells.shape == (1, ColorCells().channels, 2, 2)
    shares, pixel = cells[0, :-3, 0, 0], cells[0, -3:, 0, 0]
    assert float(shares.sum()) == pytest.approx(1.0, abs=1e-4)
    assert int(shares.argmax()) == list(ALL_COLORS).index(color)
    assert torch.allclose(pixel, level)


def test_a_signature_joins_features_and_floored_log_probabilities() -> None:
    features = torch.zeros(1, FEATURES)
    logits = {name: torch.zeros(1, len(values)) for name, values in ATTRIBUTES.items()}
    logits["kind"][0, 0] = 50.0
    joined = signature(features, logits)[0, FEATURES:]
    kinds = len(ATTRIBUTES["kind"])
    assert joined[0] == pytest.approx(0.0)
    assert joined[1:kinds].tolist() == [-7.0] * (kinds - 1)
    assert joined[-1] == pytest.approx(math.log(0.5))
    assert len(joined) == sum(len(values) for values in ATTRIBUTES.values())


def test_subject_scores_are_a_logistic_of_the_signature() -> None:
    network = {f"network.{name}": weight for name, weight in JudgeNetwork().state_dict().items()}
    pixels = torch.rand(2, 3, 64, 64)
    length = Judge(network).signature(pixels).shape[1]
    weight = torch.randn(length) * 0.01
    subject = {"subject.zoe.weight": weight, "subject.zoe.bias": torch.tensor(0.5)}
    judge = Judge({**network, **subject})
    wanted = torch.sigmoid(judge.signature(pixels) @ weight + 0.5)
    assert judge.subject_score(pixels, "zoe") == pytest.approx(wanted.tolist())
