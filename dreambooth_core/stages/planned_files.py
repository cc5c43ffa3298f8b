"""Which files a training will write, how large they are, and whether the disk has room for them."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from dreambooth_core.adapters.targets import adapter_numbers
from dreambooth_core.checkpoint.header import DTYPE_BYTES
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.data.dataset import TrainingSet
from dreambooth_core.job.checkpoint_files import card_path, card_picture_path, side_path
from dreambooth_core.job.events import FilesPlanned, PlannedFile
from dreambooth_core.job.workspace import ModelFolder, Workspace
from dreambooth_core.stages.class_image_plan import ConceptPlan
from dreambooth_core.stages.learning_weights import learning_weights
from dreambooth_core.stages.lora_sizes import adapter_sizes
from dreambooth_core.stages.model_shape import (
    SAVED_DTYPES,
    checkpoint_bytes,
    latent_numbers,
    text_encoders,
    weight_shapes,
)
from dreambooth_core.stages.optimizer_sizes import OPTIMIZER_SIZES
from dreambooth_core.stages.saved_states import state_folder
from dreambooth_core.stages.training_plan import (
    TrainingPlan,
    checkpoint_file,
    planned_checkpoints,
    preview_prompts,
    progress_at,
    what_is_due,
)

MOST_ROWS = 200
RUN = "RUN"
"""Stands in a path for the id of the run, which it gets when it starts."""

PNG_BYTES_PER_PIXEL = 1.6
"""What photographs take as PNG, measured roughly; noise takes 3, drawings far less."""

CARD_BYTES = 300
"""What the words of a card take, about."""

LORA_LAYER_BYTES = 512
"""What a LoRA file's header says of a layer, about."""

FP32_BYTES = 4


@dataclass(frozen=True)
class Foreseen:
    """What a training is foreseen to do."""

    config: TrainConfig
    workspace: Workspace
    plan: TrainingPlan
    class_plans: Sequence[ConceptPlan]
    training_set: TrainingSet

    @property
    def model(self) -> ModelFolder:
        """The model's folder."""
        return self.workspace.model(self.config.model)

    @property
    def steps(self) -> range:
        """The steps that are made, from 1."""
        return range(self.plan.start.step + 1, self.plan.last_step + 1)


def plan_files(foreseen: Foreseen) -> FilesPlanned:
    """Return every file that the run writes, in the order in which they first appear."""
    states = list(_states(foreseen))
    rows = [
        *_class_images(foreseen),
        *_latents(foreseen),
        *_previews(foreseen),
        *_checkpoints(foreseen),
        *states,
    ]
    # A state is on the disk before the oldest one is deleted.
    passing = [row for row in states if not row.kept][:1]
    needed, free = _tightest_disk([*(row for row in rows if row.kept), *passing])
    return FilesPlanned(shortened(rows), needed, free)


def shortened(rows: Sequence[PlannedFile]) -> list[PlannedFile]:
    """Return at most MOST_ROWS rows; the last one then stands for all that are left out."""
    if len(rows) <= MOST_ROWS:
        return list(rows)
    shown, rest = list(rows[: MOST_ROWS - 1]), rows[MOST_ROWS - 1 :]
    total = sum(row.bytes for row in rest if row.kept)
    folder = str(Path(rest[-1].path).parent)
    return [*shown, PlannedFile(folder, total, f"and {len(rest)} more files", estimated=True)]


def _class_images(foreseen: Foreseen) -> Iterator[PlannedFile]:
    for plan in foreseen.class_plans:
        pixels = sum(want.width * want.height for want in plan.missing.values())
        if pixels:
            when = f"before training, {len(plan.missing)} class images"
            size = round(pixels * PNG_BYTES_PER_PIXEL)
            yield PlannedFile(str(plan.folder), size, when, estimated=True)


def _latents(foreseen: Foreseen) -> Iterator[PlannedFile]:
    if foreseen.config.images.cache_latents != "disk":
        return
    variants = foreseen.training_set.variants()
    numbers = sum(latent_numbers(foreseen.model, *sample.example.bucket) for sample in variants)
    size = 2 * FP32_BYTES * numbers  # mean and deviation
    when = f"before training, latents of {len(variants)} pictures that are not there yet"
    yield PlannedFile(str(foreseen.model.cache_dir), size, when, estimated=True)


def _previews(foreseen: Foreseen) -> Iterator[PlannedFile]:
    config, plan = foreseen.config, foreseen.plan
    prompts = len(preview_prompts(config))
    due = [s for s in foreseen.steps if what_is_due(config, progress_at(plan, s)).preview]
    if prompts and due:
        size = round(prompts * len(due) * config.images.resolution**2 * PNG_BYTES_PER_PIXEL)
        when = f"{prompts} previews each after {_steps(due)}"
        yield PlannedFile(str(foreseen.model.samples_dir / RUN), size, when, estimated=True)


def _checkpoints(foreseen: Foreseen) -> Iterator[PlannedFile]:
    config, plan, model = foreseen.config, foreseen.plan, foreseen.model
    steps, lora = planned_checkpoints(config, plan), config.lora.enabled
    size = _saved_bytes(foreseen) if steps else 0
    for step in steps:
        path = checkpoint_file(config, foreseen.workspace, step)
        yield PlannedFile(str(path), size, _when(plan, step), estimated=lora)
        if model.kept_side_file.exists() and not lora:
            side = model.kept_side_file.stat().st_size
            yield PlannedFile(str(side_path(path)), side, _when(plan, step))
        if not lora:
            yield from _card(foreseen, path, step)


def _card(foreseen: Foreseen, path: Path, step: int) -> Iterator[PlannedFile]:
    """Yield what the WebUI shows of a checkpoint: words, and a preview if there is one by then."""
    config, when = foreseen.config, _when(foreseen.plan, step)
    yield PlannedFile(str(card_path(path)), CARD_BYTES, when, estimated=True)
    steps = range(foreseen.plan.start.step + 1, step + 1)
    due = (what_is_due(config, progress_at(foreseen.plan, s)).preview for s in steps)
    if preview_prompts(config) and any(due):
        size = round(config.images.resolution**2 * PNG_BYTES_PER_PIXEL)
        yield PlannedFile(str(card_picture_path(path)), size, when, estimated=True)


def _saved_bytes(foreseen: Foreseen) -> int:
    config, model = foreseen.config, foreseen.model
    if not config.lora.enabled:
        ema_keys = config.saving.ema_keys and config.ema.enabled
        return checkpoint_bytes(model, config.saving.dtype, ema_keys)
    layers = [count for part in _parts(foreseen) for count in _adapter_numbers(foreseen, part)]
    number = DTYPE_BYTES[SAVED_DTYPES[config.saving.dtype]]
    return number * sum(layers) + LORA_LAYER_BYTES * len(layers)


def _states(foreseen: Foreseen) -> Iterator[PlannedFile]:
    config, plan = foreseen.config, foreseen.plan
    steps = [s for s in foreseen.steps if what_is_due(config, progress_at(plan, s)).state]
    steps = list(dict.fromkeys([*steps, plan.last_step]))
    size = _state_bytes(foreseen)
    first_kept = len(steps) - config.saving.keep_states
    for number, step in enumerate(steps):
        path, kept = str(state_folder(foreseen.model, RUN, step)), number >= first_kept
        when = _when(plan, step) + ("" if kept else ", deleted again")
        yield PlannedFile(path, size, when, kept=kept, estimated=True)


def _state_bytes(foreseen: Foreseen) -> int:
    config = foreseen.config
    kept = FP32_BYTES * (1 + config.ema.enabled) + OPTIMIZER_SIZES[config.optimizer.name].state
    return round(kept * learning_numbers(foreseen))


def learning_numbers(foreseen: Foreseen) -> int:
    """Return how many numbers learn in a training: weights, or those of its LoRA."""
    return sum(_trained_numbers(foreseen, part) for part in _parts(foreseen))


def _parts(foreseen: Foreseen) -> list[str]:
    parts = ["unet"] if foreseen.config.unet.train else []
    return parts + (text_encoders(foreseen.model) if foreseen.plan.text_encoder_steps else [])


def _trained_numbers(foreseen: Foreseen, part: str) -> int:
    if foreseen.config.lora.enabled:
        return sum(_adapter_numbers(foreseen, part))
    shapes = weight_shapes(foreseen.model, part)
    return sum(prod(shapes[name]) for name in learning_weights(foreseen.config, part, shapes))


def _adapter_numbers(foreseen: Foreseen, part: str) -> Iterator[int]:
    lora = foreseen.config.lora
    shapes = weight_shapes(foreseen.model, part)
    return adapter_numbers(part, shapes, adapter_sizes(lora, part), dora=lora.dora)


def _when(plan: TrainingPlan, step: int) -> str:
    progress = progress_at(plan, step)
    epoch = progress.epoch if progress.position == 0 else progress.epoch + 1
    end = "at the end, " if step == plan.last_step else ""
    return f"{end}step {step}, epoch {epoch}"


def _steps(steps: Sequence[int]) -> str:
    if len(steps) == 1:
        return f"step {steps[0]}"
    listed = ", ".join(map(str, steps[:3]))
    return f"steps {listed}{' ...' if len(steps) > 3 else ''} ({len(steps)} times)"


def _tightest_disk(rows: Sequence[PlannedFile]) -> tuple[int, int]:
    """Return the bytes needed and free of the disk that is left with the least."""
    needed: dict[int, int] = defaultdict(int)
    free: dict[int, int] = {}
    for row in rows:
        folder = _existing(Path(row.path))
        disk = os.stat(folder).st_dev
        needed[disk] += row.bytes
        free[disk] = shutil.disk_usage(folder).free
    return min(((needed[d], free[d]) for d in free), key=lambda pair: pair[1] - pair[0])


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())
