"""From folders of pictures to a training set whose latents are cached."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.data.buckets import Size, assign, make_buckets
from dreambooth_core.data.cache import LatentCache
from dreambooth_core.data.dataset import TrainingSet
from dreambooth_core.data.examples import Example, instance_examples
from dreambooth_core.data.images import file_hash, image_size, list_images
from dreambooth_core.data.loading import LatentSource
from dreambooth_core.families import FAMILIES
from dreambooth_core.families.base import Components
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import Notice, PhaseProgress, PhaseStarted
from dreambooth_core.stages.class_images import ClassImage, ClassImages
from dreambooth_core.stages.requests import Requests

PHASE = "caching latents"


def find_instances(config: TrainConfig, components: Components) -> list[Example]:
    """Return the instance images of every concept."""
    buckets = _buckets(config, components)
    return [
        example for concept in config.concepts for example in instance_examples(concept, buckets)
    ]


def count_class_images(config: TrainConfig) -> int:
    """Return how many class images the settings ask for."""
    return sum(
        concept.class_images_per_instance_image * len(list_images(Path(concept.instance_folder)))
        for concept in config.concepts
        if concept.class_images_per_instance_image
    )


def find_class_images(
    config: TrainConfig, components: Components, class_images: ClassImages
) -> list[Example]:
    """Return the class images of every concept; each carries the prior loss weight."""
    buckets, weight = _buckets(config, components), config.loss.prior_loss_weight
    pictures = [image for images in class_images.per_concept for image in images]
    return [class_example(image, buckets, weight) for image in pictures] if weight else []


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


def class_example(image: ClassImage, buckets: Sequence[Size], weight: float) -> Example:
    """Return a class picture as an example; its prompt came with it."""
    size = image_size(image.path)
    return Example(
        path=image.path,
        prompt=image.prompt,
        bucket=assign(size, buckets),
        weight=weight,
        is_class=True,
        file_hash=file_hash(image.path),
        source_size=size,
    )


def cache_latents(
    config: TrainConfig,
    context: RunContext,
    components: Components,
    training_set: TrainingSet,
    requests: Requests,
) -> LatentSource:
    """Encode every picture in every form it can appear in; the VAE is not needed after.

    Always in fp32, so that latents do not depend on the run's precision. Raises StopRequested.
    """
    model = context.workspace.model(config.model)
    family, device = FAMILIES[components.family], components.vae.device

    def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, deviation = family.encode_images(components, pixels.to(device))
        # In one order of memory, whatever the convolutions chose: latents from disk have that one.
        return mean.contiguous(), deviation.contiguous()

    def progress(done: int, total: int) -> None:
        context.emit(PhaseProgress(PHASE, done, total))
        requests.stop_if_asked()

    cache = LatentCache(model.cache_dir if config.images.cache_latents == "disk" else None)
    source = LatentSource(cache, encode, vae_hash=model.read_info().source_sha256)
    variants = training_set.variants()
    context.emit(PhaseStarted(PHASE, len(variants), "images"))
    source.fill(variants, batch_size=config.batch.batch_size, on_progress=progress)
    if cache.damaged:
        context.emit(Notice("warning", f"Encoded anew: {len(cache.damaged)} damaged cache files."))
    return source


def all_prompts(training_set: TrainingSet) -> list[str]:
    """Return every distinct prompt that a step can use."""
    examples = (*training_set.instances, *training_set.classes)
    dropped = [""] if training_set.caption_dropout else []
    return list(dict.fromkeys([*(example.prompt for example in examples), *dropped]))


def _buckets(config: TrainConfig, components: Components) -> list[Size]:
    return make_buckets(config.images.resolution, FAMILIES[components.family].quantum(components))
