"""What every step of every epoch consists of: decided by (seed, epoch), looked up, not replayed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from dreambooth_core.data.buckets import Size
from dreambooth_core.data.chance import draw, permutation
from dreambooth_core.data.examples import Example
from dreambooth_core.data.prompts import reordered_tags, tags_of

# Random crops come from this many evenly spaced places, so that each can be encoded once.
RANDOM_CROP_POSITIONS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Sample:
    """An example as one epoch shows it."""

    example: Example
    prompt: str
    flip: bool = False
    crop: float = 0.5


@dataclass(frozen=True)
class MicroBatch:
    """Samples of one bucket that go through the UNet together."""

    bucket: Size
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class StepBatch:
    """The micro-batches whose gradients make up one optimizer step."""

    epoch: int
    index: int
    micro_batches: tuple[MicroBatch, ...]

    @property
    def samples(self) -> list[Sample]:
        """Return all samples of the step."""
        return [s for micro_batch in self.micro_batches for s in micro_batch.samples]


class TrainingSet:
    """Instance and class examples arranged into epochs of steps.

    An epoch shows each instance image exactly once, or as often as its repeats say: each bucket is
    shuffled and cut into batches (a bucket's last one may be short, none is dropped), the batches
    are shuffled, and `gradient_accumulation_steps` of them make a step (the last may hold fewer).
    Every full instance batch brings `class_batch_size` class images, a short one its share, rounded
    up. They come from a cycle of their own that runs on from epoch to epoch and shows every class
    image once before any twice; they join the step's instance batch of their bucket if it has room,
    and form batches of their own otherwise. With `shuffle_tags` a prompt's parts behind the first
    `keep_tags` are in a new order each time.
    """

    def __init__(
        self,
        instances: Sequence[Example],
        classes: Sequence[Example] = (),
        *,
        seed: int,
        batch_size: int = 1,
        class_batch_size: int = 0,
        gradient_accumulation_steps: int = 1,
        horizontal_flip: bool = False,
        random_crop: bool = False,
        caption_dropout: float = 0.0,
        shuffle_tags: bool = False,
        keep_tags: int = 1,
    ) -> None:
        """Keep the examples and the arrangement; `class_batch_size` 0 means `batch_size`."""
        if not instances:
            raise ValueError("a training set needs at least one instance example")
        self.instances = tuple(instances)
        self.classes = tuple(classes)
        self.seed = seed
        self.batch_size = batch_size
        self.class_batch_size = (class_batch_size or batch_size) if classes else 0
        self.accumulation = gradient_accumulation_steps
        self.horizontal_flip = horizontal_flip
        self.random_crop = random_crop
        self.caption_dropout = caption_dropout
        self.shuffle_tags = shuffle_tags
        self.keep_tags = keep_tags
        self._shown = [
            (number, copy)
            for number, example in enumerate(self.instances)
            for copy in range(example.repeats)
        ]
        self._buckets = _by_bucket([self.instances[number] for number, _ in self._shown])
        counts = [len(members) for members in self._buckets.values()]
        sizes = [size for count in counts for size in _cut_sizes(count, batch_size)]
        self._batches_per_epoch = len(sizes)
        self._classes_per_epoch = sum(map(self._class_count, sizes))

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of optimizer steps of an epoch; the same for every epoch."""
        return -(-self._batches_per_epoch // self.accumulation)

    @property
    def shown_per_epoch(self) -> int:
        """Return how many instance images an epoch shows, each as often as it is repeated."""
        return len(self._shown)

    def epoch_batches(self, epoch: int) -> list[StepBatch]:
        """Return the steps of epoch `epoch` (from 0), in order."""
        batches = self._instance_batches(epoch)
        classes_used = epoch * self._classes_per_epoch
        steps: list[StepBatch] = []
        for start in range(0, len(batches), self.accumulation):
            group = batches[start : start + self.accumulation]
            wanted = sum(self._class_count(len(batch)) for batch in group)
            drawn = [self._class_index(classes_used + k) for k in range(wanted)]
            steps.append(self._step(epoch, len(steps), group, classes_used, drawn))
            classes_used += wanted
        return steps

    def times_shown(self, epoch: int, position: int) -> tuple[list[int], list[int]]:
        """Return how often each instance and class image is shown before a step of an epoch."""
        instances = [epoch * example.repeats for example in self.instances]
        cycles, rest = divmod(epoch * self._classes_per_epoch, max(1, len(self.classes)))
        classes = [cycles] * len(self.classes)
        for index in range(rest):
            classes[self._class_index(cycles * len(self.classes) + index)] += 1
        counts = {id(e): n for n, e in enumerate((*self.instances, *self.classes))}
        for step in self.epoch_batches(epoch)[:position] if position else ():
            for sample in step.samples:
                number = counts[id(sample.example)] - sample.example.is_class * len(instances)
                (classes if sample.example.is_class else instances)[number] += 1
        return instances, classes

    def variants(self) -> list[Sample]:
        """Return every form in which a picture can appear: all that has to be encoded."""
        flips = (False, True) if self.horizontal_flip else (False,)
        return [
            Sample(example, example.prompt, flip, crop)
            for example in (*self.instances, *self.classes)
            for flip in flips
            for crop in (RANDOM_CROP_POSITIONS if self.random_crop else (example.focus,))
        ]

    def _class_count(self, instance_count: int) -> int:
        return -(-self.class_batch_size * instance_count // self.batch_size)

    def _instance_batches(self, epoch: int) -> list[list[int]]:
        """Return the epoch's instance batches as lists of places in `_shown`."""
        batches = []
        for bucket, members in self._buckets.items():
            order = permutation(self.seed, "instance order", f"{epoch}/{bucket}", len(members))
            shuffled = [members[index] for index in order]
            batches.extend(_cut(shuffled, self.batch_size))
        order = permutation(self.seed, "batch order", str(epoch), len(batches))
        return [batches[index] for index in order]

    def _class_index(self, position: int) -> int:
        cycle, index = divmod(position, len(self.classes))
        return permutation(self.seed, "class order", str(cycle), len(self.classes))[index]

    def _step(
        self,
        epoch: int,
        index: int,
        instance_batches: list[list[int]],
        first_class_position: int,
        class_indices: list[int],
    ) -> StepBatch:
        """Return the step with its class samples joined to the instance batches where they fit."""
        batches = [
            [self._instance_sample(epoch, place) for place in batch] for batch in instance_batches
        ]
        room = self.batch_size + self.class_batch_size
        for offset, number in enumerate(class_indices):
            position = first_class_position + offset
            sample = self._sample(self.classes[number], ("class", 0, position))
            _join(batches, sample, room)
        micro_batches = [MicroBatch(batch[0].example.bucket, tuple(batch)) for batch in batches]
        return StepBatch(epoch, index, tuple(micro_batches))

    def _instance_sample(self, epoch: int, place: int) -> Sample:
        number, copy = self._shown[place]
        address = ("instance", epoch, number, *((copy,) if copy else ()))
        return self._sample(self.instances[number], address)

    def _sample(self, example: Example, address: Sequence[object]) -> Sample:
        """Return the example with the flip, crop and prompt of this appearance."""
        flip = self.horizontal_flip and draw(self.seed, "flip", *address) < 0.5
        crop = example.focus
        if self.random_crop:
            place = int(draw(self.seed, "crop", *address) * len(RANDOM_CROP_POSITIONS))
            crop = RANDOM_CROP_POSITIONS[place]
        return Sample(example, self._prompt(example, address), flip, crop)

    def _prompt(self, example: Example, address: Sequence[object]) -> str:
        """Return the prompt of this appearance: drawn, dropped, or with its tags in a new order."""
        chance = draw(self.seed, "caption dropout", *address)
        if not example.is_class and chance < self.caption_dropout:
            return ""
        prompt = example.prompt
        if example.other_prompts:
            prompts = example.prompts
            prompt = prompts[int(draw(self.seed, "template", *address) * len(prompts))]
        movable = len(tags_of(prompt)) - self.keep_tags if self.shuffle_tags else 0
        if movable < 2:
            return prompt
        order = permutation(self.seed, "tag order", "/".join(map(str, address)), movable)
        return reordered_tags(prompt, self.keep_tags, order)


def _by_bucket(examples: Sequence[Example]) -> dict[Size, list[int]]:
    buckets: dict[Size, list[int]] = defaultdict(list)
    for number, example in enumerate(examples):
        buckets[example.bucket].append(number)
    return dict(sorted(buckets.items()))


def _cut(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _cut_sizes(count: int, size: int) -> list[int]:
    return [len(part) for part in _cut(list(range(count)), size)]


def _join(batches: list[list[Sample]], sample: Sample, room: int) -> None:
    """Add a class sample to the first batch of its bucket that has room, else start a new one."""
    for batch in batches:
        if batch[0].example.bucket == sample.example.bucket and len(batch) < room:
            batch.append(sample)
            return
    batches.append([sample])
