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
from dreambooth_core.errors import InputError
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
    Preflight,
)
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.stages.class_image_plan import ConceptPlan, plan_concept
from dreambooth_core.stages.model_shape import model_quantum
from dreambooth_core.stages.planned_files import Foreseen, plan_files
from dreambooth_core.stages.preflight.machine import find_machine
from dreambooth_core.stages.preflight.report import Words, check_files, errors_of, report
from dreambooth_core.stages.requests import Requests, StopRequested
from dreambooth_core.stages.saved_states import Progress, state_progress, state_to_resume
from dreambooth_core.stages.training_pictures import (
    arrange,
    count_class_images,
    find_instances,
    foresee_class_images,
    remarks,
    shapes_line,
)
from dreambooth_core.stages.training_plan import make_plan, plan_lines, progress_at

PHASE = "reading pictures"
ROWS_PER_EVENT = 200


def run(config: TrainConfig, context: RunContext) -> dict[str, Any]:
    """Say what training with these settings would do, and what would stand in its way."""
    try:
        outlook = look_ahead(config, context, Requests(context.commands))
    except StopRequested:
        return {"model": config.model, "stopped": True}
    problems = len(errors_of(outlook.preflight.findings))
    if outlook.foreseen is None or outlook.files is None:
        context.emit(outlook.preflight)
        return {"model": config.model, "errors": problems}
    _tell_plan(outlook.foreseen, outlook.concepts, context)
    context.emit(outlook.files)
    context.emit(outlook.preflight)
    return {**_summary(outlook.foreseen, outlook.concepts, outlook.files), "errors": problems}


@dataclasses.dataclass(frozen=True)
class Outlook:
    """What a training is going to do; nothing is foreseen of one whose files are unusable."""

    preflight: Preflight
    concepts: list[ConceptPictures]
    foreseen: Foreseen | None = None
    files: FilesPlanned | None = None


def look_ahead(config: TrainConfig, context: RunContext, requests: Requests) -> Outlook:
    """Return what training with these settings is going to do; raises StopRequested."""
    machine = find_machine(config.precision.device)
    found = check_files(config, context, requests)
    if errors_of(found):
        given = (machine.device, machine.vram_bytes, machine.ram_bytes)
        return Outlook(Preflight(found, [], *given), [])
    concepts = list(look_at_concepts(config, context))
    foreseen = foresee(config, context, concepts)
    files = plan_files(foreseen)
    words = [Words(concept.instances, concept.classes) for concept in concepts]
    return Outlook(report(found, foreseen, words, files, machine), concepts, foreseen, files)


def refuse_or_warn(config: TrainConfig, context: RunContext, requests: Requests) -> None:
    """Tell what was found before a training; raises InputError where it would fail.

    Raises StopRequested if the training is told to end.
    """
    findings = look_ahead(config, context, requests).preflight.findings
    for finding in findings:
        context.emit(Notice(finding.level, f"{finding.message} {finding.remedy}".rstrip()))
    errors = errors_of(findings)
    if errors:
        more = f" There are {len(errors) - 1} more such problems." if len(errors) > 1 else ""
        raise InputError(errors[0].message + more, remedy=errors[0].remedy)


def _tell_plan(
    foreseen: Foreseen, concepts: Sequence[ConceptPictures], context: RunContext
) -> None:
    config = foreseen.config
    lines = plan_lines(config, foreseen.plan, context.workspace)
    context.emit(PlanMade([*lines, shapes_line(foreseen.training_set)]))
    for number, concept in enumerate(concepts, start=1):
        context.emit(_class_images_of(concept.class_plan, number))
    rows = list(image_rows(foreseen, concepts))
    for start in range(0, len(rows), ROWS_PER_EVENT):
        context.emit(ImagesPlanned(rows[start : start + ROWS_PER_EVENT]))
    for line in remarks(config, foreseen.training_set):
        context.emit(Notice("info", line))


def _summary(
    foreseen: Foreseen, concepts: Sequence[ConceptPictures], files: FilesPlanned
) -> dict[str, Any]:
    plan = foreseen.plan
    return {
        "model": foreseen.config.model,
        "instance_images": plan.instance_images,
        "class_images": len(foreseen.training_set.classes),
        "class_images_to_generate": sum(len(c.class_plan.missing) for c in concepts),
        "steps_per_epoch": plan.steps_per_epoch,
        "steps": plan.last_step - plan.start.step,
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
        shown_images=training_set.shown_per_epoch,
        steps_per_epoch=training_set.steps_per_epoch,
        start=starting_point(config, context.workspace.model(config.model)),
    )
    class_plans = [concept.class_plan for concept in concepts]
    return Foreseen(config, context.workspace, plan, class_plans, training_set)


def image_rows(foreseen: Foreseen, concepts: Sequence[ConceptPictures]) -> Iterator[PlannedImage]:
    """Yield a row for every picture: instance images first, each kind concept by concept."""
    plan = foreseen.plan
    end = progress_at(plan, plan.last_step)
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
        prompt=" | ".join(example.prompts),
        bucket=f"{width}x{height}",
        repeats=repeats,
        exists=example.path.exists(),
    )


def starting_point(config: TrainConfig, model: ModelFolder) -> Progress:
    """Return how far the training is that a run goes on from; at its beginning if there is none."""
    return state_progress(state_to_resume(model)) if config.resume else Progress()


def _class_images_of(plan: ConceptPlan, number: int) -> ClassImagesPlanned:
    return ClassImagesPlanned(
        number, len(plan.own), len(plan.made), len(plan.missing), str(plan.folder)
    )
