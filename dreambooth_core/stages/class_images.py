"""Class images: what the untouched model paints for the class, so that training can hold on to it.

Our pictures lie in `class_images/<key of prompt and settings>/` of the model as `00012.png` with
their prompt in `00012.txt`. A person's own folder is only ever read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from dreambooth_core.config.schema import Concept, TrainConfig
from dreambooth_core.families import FAMILIES, load_components
from dreambooth_core.families.base import Components
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import PhaseProgress, PhaseStarted, PlanMade, SampleSaved
from dreambooth_core.job.storage import atomic_write_bytes
from dreambooth_core.stages.class_image_plan import (
    ClassImages,
    ConceptPlan,
    Wanted,
    class_image_file,
    plan_concept,
)
from dreambooth_core.stages.device import autocast, place, resolve_device
from dreambooth_core.stages.png import save_png
from dreambooth_core.stages.sampling import generate, picture_info

PHASE = "class images"


def by_size(missing: Mapping[int, Wanted]) -> Iterator[list[tuple[int, Wanted]]]:
    """Yield what can be painted together: pictures of one size, with their numbers."""

    def size(item: tuple[int, Wanted]) -> tuple[int, int]:
        return item[1].width, item[1].height

    for _, group in itertools.groupby(sorted(missing.items(), key=size), key=size):
        yield list(group)


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
        batch_size=config.batch.class_batch_size or config.batch.batch_size,
        clip_skip=config.text_encoder.clip_skip,
    )
    for (number, _), picture in zip(group, pictures, strict=True):
        yield number, picture


def _save(
    config: TrainConfig, concept: Concept, plan: ConceptPlan, number: int, picture: Image.Image
) -> SampleSaved:
    """Write a picture with its prompt beside it, and return what is to be told of it."""
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
    return SampleSaved(str(path), want.prompt, seed)


def _make_missing(
    config: TrainConfig, context: RunContext, components: Components, plans: Sequence[ConceptPlan]
) -> bool:
    """Paint what is missing; return False if a command ended it."""
    total = sum(len(plan.missing) for plan in plans)
    done = 0
    context.emit(PhaseStarted(PHASE, total, "images"))
    for concept, plan in zip(config.concepts, plans, strict=True):
        for group in by_size(plan.missing):
            for number, picture in paint(config, concept, plan, components, group):
                context.emit(_save(config, concept, plan, number, picture))
                done += 1
                context.emit(PhaseProgress(PHASE, done, total))
                if any(command.name.startswith("stop") for command in context.commands.poll()):
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
    config: TrainConfig, context: RunContext, components: Components
) -> ClassImages:
    """Return every concept's class pictures; the base `components` paint the missing ones."""
    plans = plan_class_images(config, context, components)
    finished = True
    if any(plan.missing for plan in plans):
        with autocast(components, config.precision.mixed_precision):
            finished = _make_missing(config, context, components, plans)
    return ClassImages([plan.images() for plan in plans], stopped=not finished)


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
