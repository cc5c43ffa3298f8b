"""From folders of pictures to the examples of a training set, told from files alone.

`quantum` is what the model's family wants sides to be multiples of, in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.data.buckets import Size, assign, make_buckets
from dreambooth_core.data.dataset import TrainingSet
from dreambooth_core.data.examples import Example, instance_examples, make_example
from dreambooth_core.data.picture_files import list_images
from dreambooth_core.stages.class_image_plan import ClassImage, ClassImages, ConceptPlan


def find_instances(config: TrainConfig, quantum: int, *, hashed: bool = True) -> list[Example]:
    """Return the instance images of every concept; without `hashed` no file is read whole."""
    buckets = make_buckets(config.images.resolution, quantum)
    return [
        example
        for concept in config.concepts
        for example in instance_examples(concept, buckets, hashed=hashed)
    ]


def count_class_images(config: TrainConfig) -> int:
    """Return how many class images the settings ask for."""
    return sum(
        concept.class_images_per_instance_image * len(list_images(Path(concept.instance_folder)))
        for concept in config.concepts
        if concept.class_images_per_instance_image
    )


def find_class_images(
    config: TrainConfig, quantum: int, class_images: ClassImages
) -> list[Example]:
    """Return the class images of every concept; each carries the prior loss weight."""
    buckets = make_buckets(config.images.resolution, quantum)
    weight = config.loss.prior_loss_weight
    pictures = [image for images in class_images.per_concept for image in images]
    return [class_example(image, buckets, weight) for image in pictures] if weight else []


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
    """Return the examples arranged into epochs."""
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
    )


def class_example(
    image: ClassImage, buckets: Sequence[Size], weight: float, *, hashed: bool = True
) -> Example:
    """Return a class picture as an example; its prompt came with it."""
    return make_example(
        image.path, image.prompt, buckets, weight=weight, is_class=True, hashed=hashed
    )


def all_prompts(training_set: TrainingSet) -> list[str]:
    """Return every distinct prompt that a step can use."""
    examples = (*training_set.instances, *training_set.classes)
    dropped = [""] if training_set.caption_dropout else []
    return list(dict.fromkeys([*(example.prompt for example in examples), *dropped]))
