"""Epochs without replacement, decided by (seed, epoch), exact counts and weights."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_core.data.dataset import RANDOM_CROP_POSITIONS, Sample, StepBatch, TrainingSet
from dreambooth_core.data.examples import Example

SQUARE, WIDE, TALL = (64, 64), (96, 48), (48, 96)


def examples(count: int, *, is_class: bool = False, buckets: int = 1) -> list[Example]:
    """Return examples spread over the first `buckets` buckets in turn."""
    shapes = (SQUARE, WIDE, TALL)
    kind = "class" if is_class else "instance"
    return [
        Example(
            path=Path(f"{kind}{number}.png"),
            prompt=f"{kind} {number}",
            bucket=shapes[number % buckets],
            weight=0.75 if is_class else 1.0,
            is_class=is_class,
        )
        for number in range(count)
    ]


def names(steps: list[StepBatch], *, is_class: bool) -> list[str]:
    """Return the pictures that steps show, in order."""
    samples = [sample for step in steps for sample in step.samples]
    return [s.example.path.stem for s in samples if s.example.is_class == is_class]


@settings(deadline=None)
@given(
    count=st.integers(1, 23),
    buckets=st.integers(1, 3),
    batch_size=st.integers(1, 5),
    accumulation=st.integers(1, 4),
    classes=st.integers(0, 9),
    class_batch_size=st.integers(0, 4),
    epoch=st.integers(0, 50),
)
def test_every_epoch_is_complete_and_exact(
    count: int,
    buckets: int,
    batch_size: int,
    accumulation: int,
    classes: int,
    class_batch_size: int,
    epoch: int,
) -> None:
    """Each instance once, one bucket per micro-batch, sizes within limits, counts as announced."""
    training_set = TrainingSet(
        examples(count, buckets=buckets),
        examples(classes, is_class=True, buckets=2),
        seed=1,
        batch_size=batch_size,
        class_batch_size=class_batch_size,
        gradient_accumulation_steps=accumulation,
    )
    steps = training_set.epoch_batches(epoch)
    assert len(steps) == training_set.steps_per_epoch
    shown = names(steps, is_class=False)
    assert sorted(shown) == sorted(f"instance{number}" for number in range(count))
    room = batch_size + (class_batch_size or batch_size) * bool(classes)
    for number, step in enumerate(steps):
        assert (step.epoch, step.index) == (epoch, number)
        with_instances = [m for m in step.micro_batches if not m.samples[0].example.is_class]
        assert 1 <= len(with_instances) <= accumulation
        for micro_batch in step.micro_batches:
            assert {s.example.bucket for s in micro_batch.samples} == {micro_batch.bucket}
            assert len(micro_batch.samples) <= room
        instance_count = sum(not s.example.is_class for s in step.samples)
        class_count = len(step.samples) - instance_count
        assert bool(class_count) == bool(classes)


def test_steps_per_epoch_by_hand() -> None:
    """7 square, 3 wide; batches of 2: 4 + 2 = 6; steps of 4 batches: 2, the last with 2."""
    pictures = examples(7) + [e for e in examples(6, buckets=2) if e.bucket == WIDE]
    training_set = TrainingSet(pictures, seed=0, batch_size=2, gradient_accumulation_steps=4)
    assert training_set.steps_per_epoch == 2
    steps = training_set.epoch_batches(0)
    assert [len(step.micro_batches) for step in steps] == [4, 2]
    sizes = Counter(len(m.samples) for step in steps for m in step.micro_batches)
    assert sizes == {2: 4, 1: 2}


def test_an_epoch_is_looked_up_not_replayed() -> None:
    """Two objects, asked in different orders, agree."""
    first, second = (
        TrainingSet(
            examples(7, buckets=2),
            examples(5, is_class=True),
            seed=5,
            batch_size=2,
            horizontal_flip=True,
            random_crop=True,
            caption_dropout=0.3,
        )
        for _ in range(2)
    )
    straight = [first.epoch_batches(epoch) for epoch in range(4)]
    assert second.epoch_batches(3) == straight[3]
    assert second.epoch_batches(1) == straight[1]


def test_orders_differ_between_epochs_and_seeds() -> None:
    """20 pictures: an equal order would be a 1 in 20! chance."""
    orders = [
        tuple(names(TrainingSet(examples(20), seed=seed).epoch_batches(epoch), is_class=False))
        for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    assert len(set(orders)) == 4


def test_buckets_are_mixed_over_the_epoch() -> None:
    """Batches of the two buckets alternate at random instead of coming one after the other."""
    steps = TrainingSet(examples(20, buckets=2), seed=0).epoch_batches(0)
    buckets = [step.micro_batches[0].bucket for step in steps]
    changes = sum(left != right for left, right in itertools.pairwise(buckets))
    assert 4 <= changes <= 15


@pytest.mark.parametrize("classes", [1, 3, 7, 12])
def test_class_images_run_in_their_own_cycle(classes: int) -> None:
    """Over any stretch from the start, no class image is shown twice before all were shown once."""
    training_set = TrainingSet(
        examples(5), examples(classes, is_class=True), seed=3, batch_size=2, class_batch_size=2
    )
    steps = [step for epoch in range(12) for step in training_set.epoch_batches(epoch)]
    shown = names(steps, is_class=True)
    assert len(shown) == 12 * 5
    for start in range(0, len(shown) - classes + 1, classes):
        assert len(set(shown[start : start + classes])) == classes


def test_class_share_of_full_and_short_batches() -> None:
    """5 pictures in batches of 2 with 3 class images: 3, 3 and, for the half batch, 2."""
    training_set = TrainingSet(
        examples(5), examples(9, is_class=True), seed=0, batch_size=2, class_batch_size=3
    )
    counts = Counter(
        (sum(not s.example.is_class for s in step.samples), len(step.samples))
        for step in training_set.epoch_batches(0)
    )
    assert counts == {(2, 5): 2, (1, 3): 1}


def test_class_images_join_their_bucket_or_stand_alone() -> None:
    """Wide instances, square class images: own micro-batch in the same step; else together."""
    wide = [e for e in examples(4, buckets=2) if e.bucket == WIDE]
    apart = TrainingSet(wide, examples(4, is_class=True), seed=0, batch_size=2)
    (step,) = apart.epoch_batches(0)
    assert [m.bucket for m in step.micro_batches] == [WIDE, SQUARE]
    assert [len(m.samples) for m in step.micro_batches] == [2, 2]
    together = TrainingSet(examples(2), examples(4, is_class=True), seed=0, batch_size=2)
    (step,) = together.epoch_batches(0)
    assert [len(m.samples) for m in step.micro_batches] == [4]


def test_flip_is_half_of_the_time_and_anew_each_epoch() -> None:
    """1000 appearances, within 5 standard deviations; both forms of each picture occur."""
    training_set = TrainingSet(examples(10), seed=0, horizontal_flip=True)
    samples = [
        s for e in range(100) for step in training_set.epoch_batches(e) for s in step.samples
    ]
    assert abs(sum(s.flip for s in samples) - 500) < 80
    assert len({(s.example.path, s.flip) for s in samples}) == 20
    assert len(training_set.variants()) == 20


def test_random_crop_uses_all_positions_and_center_only_the_middle() -> None:
    """What appears is exactly what variants() announces for encoding."""
    for random_crop, positions in ((True, RANDOM_CROP_POSITIONS), (False, (0.5,))):
        training_set = TrainingSet(examples(4), seed=0, random_crop=random_crop)
        steps = [s for epoch in range(60) for s in training_set.epoch_batches(epoch)]
        shown = {(s.example.path, s.crop) for step in steps for s in step.samples}
        announced = {(s.example.path, s.crop) for s in training_set.variants()}
        assert shown == announced
        assert {crop for _, crop in shown} == set(positions)


def test_random_crop_positions_are_five_even_ones() -> None:
    """From one edge to the other."""
    assert RANDOM_CROP_POSITIONS == (0.0, 0.25, 0.5, 0.75, 1.0)


def test_the_defaults_change_nothing() -> None:
    """One picture at a time, as it is, in the center, with its prompt."""
    steps = [
        s for epoch in range(20) for s in TrainingSet(examples(6), seed=0).epoch_batches(epoch)
    ]
    assert {len(step.samples) for step in steps} == {1}
    samples = [step.samples[0] for step in steps]
    assert all(s == Sample(s.example, s.example.prompt, False, 0.5) for s in samples)
    assert Sample(samples[0].example, "") == Sample(samples[0].example, "", False, 0.5)


def test_class_images_flip_too() -> None:
    """Each appearance of a class image decides anew."""
    training_set = TrainingSet(
        examples(4), examples(2, is_class=True), seed=0, horizontal_flip=True
    )
    steps = [s for epoch in range(30) for s in training_set.epoch_batches(epoch)]
    shown = {(s.example.path, s.flip) for step in steps for s in step.samples if s.example.is_class}
    assert len(shown) == 4


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_caption_dropout_empties_that_share_of_instance_prompts(rate: float) -> None:
    """1000 appearances, within 5 standard deviations; class prompts are never dropped."""
    training_set = TrainingSet(
        examples(10), examples(3, is_class=True), seed=0, caption_dropout=rate
    )
    samples = [
        s for e in range(100) for step in training_set.epoch_batches(e) for s in step.samples
    ]
    dropped = sum(s.prompt == "" for s in samples if not s.example.is_class)
    assert abs(dropped - 1000 * rate) <= 5 * (1000 * rate * (1 - rate)) ** 0.5
    assert all(s.prompt == s.example.prompt for s in samples if s.example.is_class)


def test_no_instances_is_an_error() -> None:
    """Class images alone are no training set."""
    with pytest.raises(ValueError, match="at least one instance"):
        TrainingSet([], examples(2, is_class=True), seed=0)


def shown(training_set: TrainingSet, epochs: int) -> list[Sample]:
    """All samples of the first epochs."""
    steps = [step for epoch in range(epochs) for step in training_set.epoch_batches(epoch)]
    return [sample for step in steps for sample in step.samples]


def test_an_epoch_shows_an_image_exactly_its_repeats() -> None:
    """Three pictures, shown 3, 1 and 2 times: six in an epoch, none more or less often."""
    repeated = [replace(e, repeats=n) for e, n in zip(examples(3), (3, 1, 2), strict=True)]
    training_set = TrainingSet(repeated, seed=0, batch_size=4)
    assert training_set.shown_per_epoch == 6
    assert training_set.steps_per_epoch == 2
    for epoch in range(5):
        steps = training_set.epoch_batches(epoch)
        assert Counter(names(steps, is_class=False)) == {
            "instance0": 3,
            "instance1": 1,
            "instance2": 2,
        }
    assert training_set.times_shown(2, 0)[0] == [6, 2, 4]
    after = training_set.times_shown(2, 1)[0]
    assert sum(after) == 12 + 4
    assert len(training_set.variants()) == 3


def test_repeats_are_appearances_of_their_own() -> None:
    """Each of the copies in an epoch decides its flip itself, and the first as it did alone."""
    one = examples(1)
    alone = TrainingSet(one, seed=0, horizontal_flip=True)
    twice = TrainingSet([replace(one[0], repeats=2)], seed=0, horizontal_flip=True)
    flips = {
        tuple(s.flip for step in twice.epoch_batches(epoch) for s in step.samples)
        for epoch in range(40)
    }
    assert len(flips) == 4
    for epoch in range(20):
        (first,) = (s.flip for s in shown_in(alone, epoch))
        assert first in [s.flip for s in shown_in(twice, epoch)]


def shown_in(training_set: TrainingSet, epoch: int) -> list[Sample]:
    """The samples of one epoch."""
    return [s for step in training_set.epoch_batches(epoch) for s in step.samples]


# Made by TrainingSet as it was at commit 0f58a90, before repeats, templates and tags were added.
GOLDEN = [
    ("instance2", "instance 2", True, 1.0),
    ("instance0", "instance 0", False, 0.75),
    ("class0", "class 0", True, 0.25),
    ("class2", "class 2", False, 0.75),
    ("instance3", "", True, 0.5),
    ("instance1", "", True, 1.0),
    ("class1", "class 1", True, 1.0),
    ("class1", "class 1", False, 0.5),
    ("instance4", "instance 4", True, 1.0),
    ("class2", "class 2", False, 0.25),
    ("instance5", "", False, 0.0),
    ("class0", "class 0", False, 0.75),
]


def test_without_repeats_nothing_changes() -> None:
    """Orders and draws are those of runs that were begun before."""
    training_set = TrainingSet(
        examples(6, buckets=2),
        examples(3, is_class=True),
        seed=11,
        batch_size=2,
        horizontal_flip=True,
        random_crop=True,
        caption_dropout=0.3,
    )
    samples = shown_in(training_set, 1)
    assert [(s.example.path.stem, s.prompt, s.flip, s.crop) for s in samples] == GOLDEN


def test_one_of_the_templates_is_drawn_each_time() -> None:
    """1000 appearances of 4 prompts: each about 250 times, within 5 standard deviations."""
    one = replace(examples(1)[0], other_prompts=("b", "c", "d"))
    counts = Counter(s.prompt for s in shown(TrainingSet([one], seed=0), 1000))
    assert set(counts) == {"instance 0", "b", "c", "d"}
    assert all(abs(count - 250) < 70 for count in counts.values())


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_tags_are_shuffled_behind_the_first(keep: int) -> None:
    """All orders of the others occur, none is lost, and the first stay; class images too."""
    prompt = "zwx dog, red, blue, green"
    pictures = [replace(examples(1)[0], prompt=prompt)]
    classes = [replace(examples(1, is_class=True)[0], prompt="dog, red, blue, green")]
    training_set = TrainingSet(pictures, classes, seed=0, shuffle_tags=True, keep_tags=keep)
    samples = shown(training_set, 300)
    for is_class, written in ((False, prompt), (True, classes[0].prompt)):
        prompts = {s.prompt for s in samples if s.example.is_class == is_class}
        tags = written.split(", ")
        assert len(prompts) == {0: 24, 1: 6, 2: 2}[keep]
        assert all(sorted(text.split(", ")) == sorted(tags) for text in prompts)
        assert all(text.split(", ")[:keep] == tags[:keep] for text in prompts)
    again = TrainingSet(pictures, classes, seed=0, shuffle_tags=True, keep_tags=keep)
    assert again.epoch_batches(7) == training_set.epoch_batches(7)


def test_a_prompt_with_nothing_to_shuffle_stays_as_it_is_written() -> None:
    """One tag behind those that are kept, or no comma; the spacing too."""
    for prompt in ("zwx dog,red", "zwx  dog", ""):
        one = [replace(examples(1)[0], prompt=prompt)]
        training_set = TrainingSet(one, seed=0, shuffle_tags=True, keep_tags=1)
        assert {s.prompt for s in shown(training_set, 5)} == {prompt}


def test_a_dropped_caption_is_empty_whatever_its_tags() -> None:
    one = [replace(examples(1)[0], prompt="a, b, c", other_prompts=("d, e, f",))]
    training_set = TrainingSet(one, seed=0, shuffle_tags=True, caption_dropout=1.0)
    assert {s.prompt for s in shown(training_set, 5)} == {""}


def test_a_focus_is_where_the_crop_lies_unless_it_is_drawn() -> None:
    one = [replace(examples(1)[0], focus=0.75)]
    focal, drawn = TrainingSet(one, seed=0), TrainingSet(one, seed=0, random_crop=True)
    assert {s.crop for s in shown(focal, 10)} == {0.75} == {s.crop for s in focal.variants()}
    assert len({s.crop for s in shown(drawn, 50)}) == 5
