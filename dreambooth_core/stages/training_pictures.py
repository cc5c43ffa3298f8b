"""From folders of pictures to the examples of a training set, told from files alone.

`quantum` is what the model's family wants sides to be multiples of, in pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dreambooth_core.config.schema import ImagesSection, TrainConfig
from dreambooth_core.config.sections.images import NO_MASKS
from dreambooth_core.data.buckets import Size, assign, make_buckets
from dreambooth_core.data.dataset import TrainingSet
from dreambooth_core.data.examples import Example, instance_examples, make_example
from dreambooth_core.data.prompts import has_emphasis
from dreambooth_core.errors import InputError
from dreambooth_core.stages.class_image_plan import (
    ClassImage,
    ClassImages,
    ConceptPlan,
    class_image_count,
)


def find_instances(config: TrainConfig, quantum: int, *, hashed: bool = True) -> list[Example]:
    """Return the instance images of every concept; without `hashed` no file is read whole."""
    buckets = make_buckets(config.images.resolution, quantum)
    return [
        example
        for concept in config.concepts
        for example in instance_examples(
            concept, buckets, config.captions, config.images, hashed=hashed
        )
    ]


def count_class_images(config: TrainConfig) -> int:
    """Return how many class images a training will have."""
    return sum(map(class_image_count, config.concepts))


def find_class_images(
    config: TrainConfig, quantum: int, class_images: ClassImages
) -> list[Example]:
    """Return the class images of every concept, weighted by the prior loss and the concept."""
    buckets = make_buckets(config.images.resolution, quantum)
    prior = config.loss.prior_loss_weight
    return [
        class_example(image, buckets, prior * concept.loss_weight, crop=config.images.crop)
        for concept, images in zip(config.concepts, class_images.per_concept, strict=True)
        for image in images
        if prior
    ]


def foresee_class_images(config: TrainConfig, quantum: int, plan: ConceptPlan) -> list[Example]:
    """Return a concept's class images as they will be once the missing ones are painted."""
    buckets = make_buckets(config.images.resolution, quantum)
    weight = config.loss.prior_loss_weight
    missing = {
        image.path: assign((want.width, want.height), buckets)
        for image, want in zip(plan.new_images(), plan.missing.values(), strict=True)
    }
    return [
        Example(image.path, image.prompt, missing[image.path], weight, is_class=True)
        if image.path in missing
        else class_example(image, buckets, weight, hashed=False)
        for image in plan.images()
        if weight
    ]


def arrange(
    config: TrainConfig, instances: Sequence[Example], classes: Sequence[Example] = ()
) -> TrainingSet:
    """Return the examples arranged into epochs.

    Raises InputError if masks are asked for and no instance image has one.
    """
    _require_masks(config, instances)
    return TrainingSet(
        instances,
        classes,
        seed=config.seed,
        batch_size=config.batch.batch_size,
        class_batch_size=config.batch.class_batch_size,
        gradient_accumulation_steps=config.batch.gradient_accumulation_steps,
        horizontal_flip=config.images.horizontal_flip,
        random_crop=config.images.crop == "random",
        caption_dropout=config.captions.dropout,
        shuffle_tags=config.captions.shuffle_tags,
        keep_tags=config.captions.keep_tags,
    )


def _require_masks(config: TrainConfig, instances: Sequence[Example]) -> None:
    source = config.images.masks
    if source != NO_MASKS and not any(example.masked for example in instances):
        raise InputError(
            f"images.masks is {source}, but no instance image has such a mask.",
            remedy="Put NAME.mask.png beside the picture NAME.*, or, for alpha, make parts of it"
            f" transparent; or choose {NO_MASKS}.",
            field="images.masks",
        )


def class_example(
    image: ClassImage,
    buckets: Sequence[Size],
    weight: float,
    *,
    crop: str = ImagesSection.crop,
    hashed: bool = True,
) -> Example:
    """Return a class picture as an example; its prompt came with it."""
    return make_example(
        image.path, image.prompt, buckets, weight=weight, is_class=True, crop=crop, hashed=hashed
    )


def all_prompts(training_set: TrainingSet) -> list[str]:
    """Return every distinct prompt that a step can use, tags in the order they are written in."""
    examples = (*training_set.instances, *training_set.classes)
    dropped = [""] if training_set.caption_dropout else []
    prompts = (prompt for example in examples for prompt in example.prompts)
    return list(dict.fromkeys([*prompts, *dropped]))


def shapes_line(training_set: TrainingSet) -> str:
    """Return how many instance and class images each shape (bucket) of a training set has."""
    examples = (training_set.instances, training_set.classes)
    counts = [Counter(example.bucket for example in group) for group in examples]
    shapes = [
        f"{width}x{height}: {counts[0][width, height]} and {counts[1][width, height]}"
        for width, height in sorted({*counts[0], *counts[1]})
    ]
    return f"Shapes, with their instance and class images: {'; '.join(shapes)}."


def remarks(config: TrainConfig, training_set: TrainingSet) -> list[str]:
    """Return what a table of prompts cannot show of what is drawn anew, and what is read as it is.

    One sentence each: tags in another order, template lines, dropped captions, emphasis, masks.
    """
    captions, instances = config.captions, training_set.instances
    lines = []
    if captions.shuffle_tags:
        kept = f"all but the first {captions.keep_tags}" if captions.keep_tags else "all"
        lines.append(f"Tags: {kept} come in a new order each time a picture is shown.")
    if any(example.other_prompts for example in instances):
        lines.append("Prompt templates: one of a picture's prompts is drawn each time it is shown.")
    if captions.dropout:
        lines.append(f"{captions.dropout:.0%} of the time an instance image has an empty prompt.")
    emphasis = sum(map(has_emphasis, all_prompts(training_set)))
    if emphasis:
        lines.append(
            f"{emphasis} prompts hold emphasis, such as (word:1.2), or BREAK. Captions are read"
            " letter by letter: only drawing weighs words."
        )
    if config.images.masks != NO_MASKS:
        masked = sum(example.masked for example in instances)
        lines.append(
            f"{masked} of {len(instances)} instance images have a mask; others count whole."
        )
    return lines
