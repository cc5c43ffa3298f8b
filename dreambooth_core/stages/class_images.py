"""Class images: what the untouched model paints for the class, so that training can hold on to it.

Our pictures lie in `class_images/<key of prompt and settings>/` of the model as `00012.png` with
their prompt in `00012.txt`. A person's own folder is only ever read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from PIL import Image

from dreambooth_core.config.schema import Concept, TrainConfig
from dreambooth_core.errors import FullDiskError
from dreambooth_core.families import FAMILIES, load_components
from dreambooth_core.families.base import Components
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import PhaseProgress, PhaseStarted, PlanMade, SampleSaved
from dreambooth_core.job.storage import atomic_write_bytes
from dreambooth_core.stages.class_image_plan import (
    ClassImage,
    ClassImages,
    ConceptPlan,
    Wanted,
    class_image_file,
    plan_concept,
)
from dreambooth_core.stages.device import autocast, place, resolve_device
from dreambooth_core.stages.full_disk import Room
from dreambooth_core.stages.png import save_png
from dreambooth_core.stages.requests import Requests
from dreambooth_core.stages.sampling import generate, picture_info

PHASE = "class images"


def groups_to_paint(plan: ConceptPlan, batch_size: int) -> Iterator[list[tuple[int, Wanted]]]:
    """Yield what is painted together: pictures of one size, with their numbers, in whole batches.

    A picture's last bits depend on how many are painted at once. So a batch that lacks one is
    painted whole, and a run that was ended among them gets what one that was not would have got.
    """

    def size(item: tuple[int, Wanted]) -> tuple[int, int]:
        return item[1].width, item[1].height

    everything = sorted({**plan.found, **plan.missing}.items())
    for _, members in itertools.groupby(sorted(everything, key=size), key=size):
        group = list(members)
        batches = [group[start : start + batch_size] for start in range(0, len(group), batch_size)]
        lacking = [batch for batch in batches if any(n in plan.missing for n, _ in batch)]
        if lacking:
            yield list(itertools.chain.from_iterable(lacking))


def batch_size_of(config: TrainConfig) -> int:
    """Return how many class images are painted at once."""
    return config.batch.class_batch_size or config.batch.batch_size


def paint(
    config: TrainConfig,
    concept: Concept,
    plan: ConceptPlan,
    components: Components,
    group: Sequence[tuple[int, Wanted]],
) -> Iterator[tuple[int, Image.Image]]:
    """Yield the pictures of a group of one size with their numbers; nothing is written."""
    first = group[0][1]
    pictures = generate(
        components,
        [want.prompt for _, want in group],
        [concept.class_negative_prompt] * len(group),
        width=first.width,
        height=first.height,
        steps=concept.class_steps,
        cfg_scale=concept.class_cfg_scale,
        sampler=concept.class_sampler,
        seeds=[plan.base_seed + number for number, _ in group],
        batch_size=batch_size_of(config),
        clip_skip=config.text_encoder.clip_skip,
    )
    for (number, _), picture in zip(group, pictures, strict=True):
        yield number, picture


def _save(
    config: TrainConfig,
    context: RunContext,
    concept: Concept,
    plan: ConceptPlan,
    number: int,
    picture: Image.Image,
) -> None:
    """Write a picture with its prompt beside it, and tell of it."""
    want, seed = plan.missing[number], plan.base_seed + number
    path = class_image_file(plan.folder, number)
    # The prompt goes first: a picture that is there always has one.
    atomic_write_bytes(path.with_suffix(".txt"), want.prompt.encode("utf-8"))
    text = picture_info(
        want.prompt,
        concept.class_negative_prompt,
        steps=concept.class_steps,
        sampler=concept.class_sampler,
        cfg_scale=concept.class_cfg_scale,
        seed=seed,
        size=picture.size,
        model=config.model,
    )
    save_png(picture, path, text)
    context.emit(SampleSaved(str(path), want.prompt, seed))


def _make_missing(
    config: TrainConfig,
    context: RunContext,
    components: Components,
    plans: Sequence[ConceptPlan],
    room: Room,
    requests: Requests,
) -> bool:
    """Paint what is missing; return False if a command ended it.

    It ends early where there is no room for more, and the settings say to go on.
    """
    total = sum(len(plan.missing) for plan in plans)
    done = 0
    context.emit(PhaseStarted(PHASE, total, "images"))
    for concept, plan in zip(config.concepts, plans, strict=True):
        for group in groups_to_paint(plan, batch_size_of(config)):
            for number, picture in paint(config, concept, plan, components, group):
                if number not in plan.missing:
                    continue
                save = partial(_save, config, context, concept, plan, number, picture)
                if not room.write("A class image", save):
                    return not room.given_up
                done += 1
                context.emit(PhaseProgress(PHASE, done, total))
                requests.look()
                if requests.wants("stop") or requests.wants("stop_after_epoch"):
                    return False
    return True


def plan_class_images(
    config: TrainConfig, context: RunContext, components: Components
) -> list[ConceptPlan]:
    """Return every concept's plan."""
    model = context.workspace.model(config.model)
    quantum = FAMILIES[components.family].quantum(components)
    return [plan_concept(config, concept, model, quantum) for concept in config.concepts]


def ensure_class_images(
    config: TrainConfig,
    context: RunContext,
    components: Components,
    requests: Requests | None = None,
) -> ClassImages:
    """Return every concept's class pictures; the base `components` paint the missing ones."""
    plans = plan_class_images(config, context, components)
    finished, requests = True, requests or Requests(context.commands)
    room = Room(config.saving.on_full_disk, context.emit, requests)
    if any(plan.missing for plan in plans):
        with autocast(components, config.precision.mixed_precision):
            finished = _make_missing(config, context, components, plans, room, requests)
    images = [plan.images() for plan in plans]
    if finished and room.left_out:
        images = [_those_there(plan, number, context) for number, plan in enumerate(plans, start=1)]
    return ClassImages(images, stopped=not finished)


def _those_there(plan: ConceptPlan, number: int, context: RunContext) -> list[ClassImage]:
    """Return a concept's class images as far as there was room; raises FullDiskError for none."""
    wanted = plan.images()
    there = [image for image in wanted if image.path.is_file()]
    if wanted and not there:
        raise FullDiskError(
            f"Concept {number} has no class image, as there is no room for one in {plan.folder}.",
            remedy="Free some space on that disk.",
        )
    if len(there) < len(wanted):
        context.warn(f"Concept {number} has {len(there)} of {len(wanted)} class images.")
    return there


def run(config: TrainConfig, context: RunContext) -> dict[str, Any]:
    """Make the class images of a training without training: the `class-images` verb."""
    components = load_components(context.workspace.model(config.model))
    place(components, resolve_device(config.precision.device))
    plans = plan_class_images(config, context, components)
    context.emit(PlanMade([plan.line(n) for n, plan in enumerate(plans, start=1)]))
    result = ensure_class_images(config, context, components)
    generated = [number for plan in plans for number in plan.missing if _is_there(plan, number)]
    summary: dict[str, Any] = {
        "model": config.model,
        "own": sum(len(plan.own) for plan in plans),
        "found": sum(len(plan.made) for plan in plans),
        "generated": len(generated),
        "folders": sorted({str(plan.folder) for plan in plans if plan.made or plan.missing}),
    }
    return {**summary, "stopped": True} if result.stopped else summary


def _is_there(plan: ConceptPlan, number: int) -> bool:
    return class_image_file(plan.folder, number).is_file()
