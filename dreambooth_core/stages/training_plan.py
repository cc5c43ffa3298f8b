"""The arithmetic of a run, shown before it starts: how many steps, and what is written when.

A *step* is one optimizer update; an *epoch* shows every instance image once. Steps and epochs that
are done count from 1, so "every 10 epochs" means after the 10th, the 20th and so on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.errors import InputError
from dreambooth_core.job.checkpoint_files import checkpoint_path
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.stages.saved_states import Progress

LISTED_FILES = 3


@dataclass(frozen=True)
class TrainingPlan:
    """How long a run is and how its steps fall into epochs.

    An epoch shows `shown_images`, which are the instance images as often as they repeat.
    `total_steps` is the end of the training; a session may be told to end before it, after
    `last_step`.
    """

    instance_images: int
    shown_images: int
    class_images: int
    steps_per_epoch: int
    start: Progress
    total_steps: int
    last_step: int
    text_encoder_steps: int

    def after(self, progress: Progress) -> Progress:
        """Return the progress one step later."""
        position = progress.position + 1
        epoch_ended = position >= self.steps_per_epoch
        return Progress(
            step=progress.step + 1,
            epoch=progress.epoch + epoch_ended,
            position=0 if epoch_ended else position,
        )


@dataclass(frozen=True)
class Due:
    """What is to be written after a step."""

    preview: bool
    checkpoint: bool
    state: bool


def make_plan(
    config: TrainConfig,
    *,
    instance_images: int,
    class_images: int,
    steps_per_epoch: int,
    start: Progress,
    shown_images: int = 0,
) -> TrainingPlan:
    """Return the plan of a run that goes on from `start`; raises InputError if nothing is left.

    `shown_images` 0 is as many as there are instance images.
    """
    if start.position >= steps_per_epoch:  # the set of pictures shrank since the state was written
        start = Progress(start.step, start.epoch + 1, 0)
    total_steps, field = _length(config, start, steps_per_epoch)
    if total_steps <= start.step:
        raise InputError(
            f"The state to resume from has {start.step} steps and {start.epoch} epochs done, which"
            " is all that the settings ask for.",
            remedy=f"Raise {field} to train on, save a checkpoint of it (Generate checkpoint), or"
            " start a new run without resume.",
            field=field,
        )
    return TrainingPlan(
        instance_images=instance_images,
        shown_images=shown_images or instance_images,
        class_images=class_images,
        steps_per_epoch=steps_per_epoch,
        start=start,
        total_steps=total_steps,
        last_step=_session_end(config, start, steps_per_epoch, total_steps),
        text_encoder_steps=text_encoder_steps(config, total_steps),
    )


def _length(config: TrainConfig, start: Progress, steps_per_epoch: int) -> tuple[int, str]:
    """Return how many steps the training has, and the setting that says so."""
    epochs, max_steps = config.intervals.epochs, config.intervals.max_steps
    by_epochs = start.step + (epochs - start.epoch) * steps_per_epoch - start.position
    if max_steps and (not epochs or max_steps < by_epochs):
        return max_steps, "intervals.max_steps"
    return by_epochs, "intervals.epochs"


def _session_end(
    config: TrainConfig, start: Progress, steps_per_epoch: int, total_steps: int
) -> int:
    """Return the step after which this session ends, which is the training's end or before."""
    intervals, ends = config.intervals, [total_steps]
    if intervals.stop_after_steps:
        ends.append(start.step + intervals.stop_after_steps)
    if intervals.stop_after_epochs:
        ends.append(start.step + intervals.stop_after_epochs * steps_per_epoch - start.position)
    return min(ends)


def text_encoder_steps(config: TrainConfig, total_steps: int) -> int:
    """Return how many steps, from the first, train the text encoder; all if it alone is trained."""
    ratio = config.text_encoder.train_ratio
    if ratio > 0 and not config.unet.train:
        return total_steps
    return min(total_steps, math.ceil(ratio * total_steps - 1e-9))  # 0.1 * 30 exceeds 3 a little


def progress_at(plan: TrainingPlan, step: int) -> Progress:
    """Return how far the run is after a step, as `after` would get there."""
    epochs, position = divmod(plan.start.position + step - plan.start.step, plan.steps_per_epoch)
    return Progress(step, plan.start.epoch + epochs, position)


def what_is_due(config: TrainConfig, progress: Progress) -> Due:
    """Return what the intervals ask for after the step that led to `progress`."""

    def due(every_steps: int, every_epochs: int) -> bool:
        by_step = every_steps > 0 and progress.step % every_steps == 0
        epoch_ended = progress.position == 0
        return by_step or (epoch_ended and every_epochs > 0 and progress.epoch % every_epochs == 0)

    saving, previews = config.saving, config.previews
    return Due(
        preview=due(previews.every_steps, previews.every_epochs),
        checkpoint=due(saving.save_every_steps, saving.save_every_epochs),
        state=due(0, saving.state_every_epochs),
    )


def checkpoint_file(config: TrainConfig, workspace: Workspace, step: int) -> Path:
    """Return where a step's checkpoint or LoRA goes; a file that is there is not written over."""
    name, subfolder = config.saving.name or config.model, config.saving.subfolder
    folder = workspace.lora_dir if config.lora.enabled else workspace.checkpoints_dir
    return checkpoint_path(folder, name, step, subfolder)


def preview_prompts(config: TrainConfig) -> list[str]:
    """Return the run's preview prompts: the general ones, then each concept's."""
    prompts = [*config.previews.prompts, *(p for c in config.concepts for p in c.sample_prompts)]
    return [prompt for prompt in prompts if prompt.strip()]


def preview_file(folder: Path, step: int, number: int) -> Path:
    """Return where the preview `number` (from 0) of a step goes, in the run's samples folder."""
    return folder / f"step_{step:08d}_{number:02d}.png"


def plan_lines(config: TrainConfig, plan: TrainingPlan, workspace: Workspace) -> list[str]:
    """Return the plan in words."""
    lines = [
        _pictures_line(plan),
        _steps_line(config, plan),
        _class_line(config, plan),
        _start_line(plan),
        _session_line(plan),
        _pauses_line(config),
        _parts_line(config, plan),
        _files_line(config, plan, workspace),
    ]
    return [line for line in lines if line]


def planned_checkpoints(config: TrainConfig, plan: TrainingPlan) -> list[int]:
    """Return the steps after which the plan writes a checkpoint."""
    progress, steps = plan.start, []
    saving, finishes = config.saving, plan.last_step == plan.total_steps
    wanted_at_end = saving.save_at_end if finishes else saving.save_on_stop
    while progress.step < plan.last_step:
        progress = plan.after(progress)
        at_end = wanted_at_end and progress.step == plan.last_step
        if at_end or what_is_due(config, progress).checkpoint:
            steps.append(progress.step)
    return steps


def _pictures_line(plan: TrainingPlan) -> str:
    if not plan.class_images:
        return f"{plan.instance_images} instance images, no class images."
    return (
        f"{plan.instance_images} instance images and {plan.class_images} class images;"
        " class images that are missing are made first."
    )


def _steps_line(config: TrainConfig, plan: TrainingPlan) -> str:
    """Return the arithmetic of the steps: images / batch size / accumulation x epochs."""
    batch, per_epoch = config.batch, plan.steps_per_epoch
    shown, divisor = plan.shown_images, batch.batch_size * batch.gradient_accumulation_steps
    line = f"{plan.instance_images} images"
    if shown != plan.instance_images:
        line += f" with their repeats = {shown} images an epoch; {shown}"
    line += f" / batch size {batch.batch_size}"
    if batch.gradient_accumulation_steps > 1:
        line += f" / {batch.gradient_accumulation_steps} accumulated batches"
    line += f" = {per_epoch} steps an epoch"
    line += "" if per_epoch * divisor == shown else " (smaller last batches included)"
    return f"{line}; {_length_words(config, plan)}."


def _length_words(config: TrainConfig, plan: TrainingPlan) -> str:
    epochs, per_epoch, total = config.intervals.epochs, plan.steps_per_epoch, plan.total_steps
    if not epochs:
        return f"{total} steps = {total / per_epoch:.4g} epochs"
    line = f"{per_epoch} x {epochs} epochs = {epochs * per_epoch} steps"
    return line + (f", ended after step {total}" if total == config.intervals.max_steps else "")


def _class_line(config: TrainConfig, plan: TrainingPlan) -> str:
    if not plan.class_images:
        return ""
    size = config.batch.class_batch_size or config.batch.batch_size
    return f"Class images are shown beside them, {size} with every full batch; they add no steps."


def _start_line(plan: TrainingPlan) -> str:
    if not plan.start.step:
        return ""
    left = plan.total_steps - plan.start.step
    return f"Goes on from step {plan.start.step}: {left} steps are left."


def _session_line(plan: TrainingPlan) -> str:
    if plan.last_step == plan.total_steps:
        return ""
    return f"This session ends after step {plan.last_step}; resume goes on from there."


def _pauses_line(config: TrainConfig) -> str:
    seconds, every = config.intervals.pause_seconds, config.intervals.pause_every_epochs
    return f"Pauses {seconds} s after every {every} epochs." if seconds and every else ""


def _parts_line(config: TrainConfig, plan: TrainingPlan) -> str:
    parts = ["the UNet"] if config.unet.train else []
    steps = plan.text_encoder_steps
    if steps:
        share = "" if steps == plan.total_steps else f" (up to step {steps})"
        parts.append(f"the text encoder{share}")
    adapted = f"a LoRA of rank {config.lora.rank} for " if config.lora.enabled else ""
    return f"Trains {adapted}{' and '.join(parts)}."


def _files_line(config: TrainConfig, plan: TrainingPlan, workspace: Workspace) -> str:
    paths = [checkpoint_file(config, workspace, s) for s in planned_checkpoints(config, plan)]
    if not paths:
        kind = "LoRA" if config.lora.enabled else "checkpoint"
        return f"Writes no {kind}, only the state to resume from."
    names = ", ".join(path.name for path in paths[:LISTED_FILES])
    more = f" and {len(paths) - LISTED_FILES} more" if len(paths) > LISTED_FILES else ""
    return f"Writes {names}{more} into {paths[0].parent}."
