"""What a training would do, told before it starts and without its model: the `plan` job.

It reads pictures' headers, captions and the model's records, needs no torch and changes nothing,
so that it answers in a moment and beside a running job. The pictures, prompts, steps and files come
from the functions that training itself uses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.data.examples import Example
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import (
    ClassImagesPlanned,
    FilesPlanned,
    ImagesPlanned,
    Notice,
    PhaseProgress,
    PhaseStarted,
    PlanMade,
    PlannedImage,
)
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.stages.class_image_plan import ConceptPlan, plan_concept
from dreambooth_core.stages.model_shape import model_quantum
from dreambooth_core.stages.planned_files import Foreseen, plan_files
from dreambooth_core.stages.requests import Requests, StopRequested
from dreambooth_core.stages.saved_states import Progress, state_progress, state_to_resume
from dreambooth_core.stages.training_pictures import (
    arrange,
    count_class_images,
    find_instances,
    foresee_class_images,
)
from dreambooth_core.stages.training_plan import make_plan, plan_lines, progress_at

PHASE = "reading pictures"
ROWS_PER_EVENT = 200


def run(config: TrainConfig, context: RunContext) -> dict[str, Any]:
    """Say what training with these settings would do."""
    try:
        concepts = list(look_at_concepts(config, context))
    except StopRequested:
        return {"model": config.model, "stopped": True}
    foreseen = foresee(config, context, concepts)
    plan, files = foreseen.plan, plan_files(foreseen)
    context.emit(PlanMade(plan_lines(config, plan, context.workspace)))
    for number, concept in enumerate(concepts, start=1):
        context.emit(_class_images_of(concept.class_plan, number))
    rows = list(image_rows(foreseen, concepts))
    for start in range(0, len(rows), ROWS_PER_EVENT):
        context.emit(ImagesPlanned(rows[start : start + ROWS_PER_EVENT]))
    context.emit(files)
    if files.needed_bytes > files.free_bytes:
        context.emit(_no_room(files))
    return {
        "model": config.model,
        "instance_images": plan.instance_images,
        "class_images": len(foreseen.training_set.classes),
        "class_images_to_generate": sum(len(c.class_plan.missing) for c in concepts),
        "steps_per_epoch": plan.steps_per_epoch,
        "steps": plan.total_steps - plan.start.step,
        "total_steps": plan.total_steps,
        "checkpoints": sum(row.path.endswith(".safetensors") for row in files.rows),
        "needed_bytes": files.needed_bytes,
        "free_bytes": files.free_bytes,
    }


@dataclasses.dataclass(frozen=True)
class ConceptPictures:
    """One concept's pictures, those that have to be painted first included."""

    instances: list[Example]
    classes: list[Example]
    class_plan: ConceptPlan


def look_at_concepts(config: TrainConfig, context: RunContext) -> Iterator[ConceptPictures]:
    """Yield the pictures of each concept; raises StopRequested."""
    model = context.workspace.model(config.model)
    quantum, requests = model_quantum(model), Requests(context.commands)
    context.emit(PhaseStarted(PHASE, len(config.concepts), "concepts"))
    for number, concept in enumerate(config.concepts, start=1):
        requests.stop_if_asked()
        alone = dataclasses.replace(config, concepts=[concept])
        class_plan = plan_concept(config, concept, model, quantum)
        yield ConceptPictures(
            instances=find_instances(alone, quantum, hashed=False),
            classes=foresee_class_images(config, quantum, class_plan),
            class_plan=class_plan,
        )
        context.emit(PhaseProgress(PHASE, number, len(config.concepts)))


def foresee(
    config: TrainConfig, context: RunContext, concepts: Sequence[ConceptPictures]
) -> Foreseen:
    """Return the run that these pictures and settings lead to."""
    instances = [example for concept in concepts for example in concept.instances]
    classes = [example for concept in concepts for example in concept.classes]
    training_set = arrange(config, instances, classes)
    plan = make_plan(
        config,
        instance_images=len(instances),
        class_images=count_class_images(config),
        steps_per_epoch=training_set.steps_per_epoch,
        start=_start(config, context.workspace.model(config.model)),
    )
    class_plans = [concept.class_plan for concept in concepts]
    return Foreseen(config, context.workspace, plan, class_plans, training_set)


def image_rows(foreseen: Foreseen, concepts: Sequence[ConceptPictures]) -> Iterator[PlannedImage]:
    """Yield a row for every picture: instance images first, each kind concept by concept."""
    plan = foreseen.plan
    end = progress_at(plan, plan.total_steps)
    before = foreseen.training_set.times_shown(plan.start.epoch, plan.start.position)
    after = foreseen.training_set.times_shown(end.epoch, end.position)
    kinds = (
        ("instance", [concept.instances for concept in concepts]),
        ("class", [concept.classes for concept in concepts]),
    )
    for (kind, groups), first, last in zip(kinds, before, after, strict=True):
        shown = iter([b - a for a, b in zip(first, last, strict=True)])
        for number, examples in enumerate(groups, start=1):
            yield from (_row(kind, number, example, next(shown)) for example in examples)


def _row(kind: str, concept: int, example: Example, repeats: int) -> PlannedImage:
    width, height = example.bucket
    return PlannedImage(
        file=str(example.path),
        kind=kind,
        concept=concept,
        prompt=example.prompt,
        bucket=f"{width}x{height}",
        repeats=repeats,
        exists=example.path.exists(),
    )


def _start(config: TrainConfig, model: ModelFolder) -> Progress:
    return state_progress(state_to_resume(model)) if config.resume else Progress()


def _class_images_of(plan: ConceptPlan, number: int) -> ClassImagesPlanned:
    return ClassImagesPlanned(
        number, len(plan.own), len(plan.made), len(plan.missing), str(plan.folder)
    )


def _no_room(files: FilesPlanned) -> Notice:
    needed, free = files.needed_bytes / 2**30, files.free_bytes / 2**30
    message = f"The files of this run need about {needed:.1f} GB, and {free:.1f} GB are free."
    return Notice("warning", f"{message} Free some space, or save less often.")
