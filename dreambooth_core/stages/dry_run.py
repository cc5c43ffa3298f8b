"""One real step of a training that keeps nothing: its loss, time and memory, and what is foretold.

Everything is as in a training (networks, optimizer, EMA, precision), but only the pictures of the
first step are encoded, and of the class images that it lacks one batch at most is painted, into a
folder that is deleted again. No state, checkpoint, class image or cache comes of it.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.data.dataset import Sample, TrainingSet
from dreambooth_core.data.examples import Example
from dreambooth_core.data.loading import LatentSource
from dreambooth_core.data.picture_files import file_hash
from dreambooth_core.families import FAMILIES
from dreambooth_core.families.base import Components
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import INFO, Notice
from dreambooth_core.job.run_view import duration
from dreambooth_core.stages.class_image_plan import ConceptPlan, Wanted, class_image_file
from dreambooth_core.stages.class_images import paint, plan_class_images
from dreambooth_core.stages.dataset_setup import cache_latents
from dreambooth_core.stages.device import autocast
from dreambooth_core.stages.plan import refuse_or_warn, starting_point
from dreambooth_core.stages.png import save_png
from dreambooth_core.stages.process_memory import peak_memory, reset_peak_memory
from dreambooth_core.stages.requests import Requests, StopRequested
from dreambooth_core.stages.train import prepare, take_step
from dreambooth_core.stages.training_pictures import arrange, foresee_class_images
from dreambooth_core.stages.training_setup import step_batches

MIB = 2**20
PAINTING, ENCODING, TRAINING = "class images", "caching latents", "training"


@dataclass
class Measured:
    """What a part of a training took: for `done` of its `total` pictures or steps."""

    total: int = 0
    done: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0

    @property
    def foretold_seconds(self) -> float:
        """How long the whole part would take."""
        return self.seconds / self.done * self.total if self.done else 0.0


def run(config: TrainConfig, context: RunContext) -> dict[str, Any]:
    """Make one step with these settings and tell how it went."""
    requests = Requests(context.commands)
    images = dataclasses.replace(config.images, cache_latents="memory")
    config = dataclasses.replace(config, images=images)
    try:
        refuse_or_warn(config, context, requests)
        with tempfile.TemporaryDirectory(prefix="dreambooth-") as folder:
            rehearsal = Rehearsal(Path(folder))
            trainer = prepare(config, context, requests, rehearsal.find)
            steps = trainer.plan.last_step - trainer.plan.start.step
            with rehearsal.measured(TRAINING, steps, 1, trainer.objective.device):
                take_step(trainer)
    except StopRequested:
        return {"model": config.model, "stopped": True}
    if trainer.progress.step > trainer.config.learning_rate.warmup_steps:
        for sentence in trainer.health.stillness():
            context.warn(sentence)
    parts, loss = rehearsal.parts, trainer.last_loss
    context.emit(Notice(INFO, in_words(loss, parts)))
    return {
        "model": config.model,
        "loss": loss,
        "step_seconds": parts[TRAINING].seconds,
        "steps": steps,
        "class_images_to_generate": parts[PAINTING].total if PAINTING in parts else 0,
        "foretold_seconds": {n: round(p.foretold_seconds, 1) for n, p in parts.items()},
        "foretold_time": duration(sum(part.foretold_seconds for part in parts.values())),
        "peak_memory_mb": {name: round(part.peak_bytes / MIB) for name, part in parts.items()},
    }


def in_words(loss: float, parts: dict[str, Measured]) -> str:
    """Return how the step went, and what is to be expected of the training."""
    step, total = parts[TRAINING], sum(part.foretold_seconds for part in parts.values())
    peak = max(part.peak_bytes for part in parts.values())
    return (
        f"One step works: loss {loss:.4f}, {step.seconds:.2f} s, at most {peak / MIB:.0f} MB."
        f" All {step.total} steps and what comes before them take about {duration(total)}, without"
        " previews and saving; a first step is slower than the others. Nothing was kept."
    )


@dataclass
class Rehearsal:
    """Gets the pictures of a training's first step ready, and measures what each part takes."""

    folder: Path
    parts: dict[str, Measured] = field(default_factory=dict)

    def find(
        self,
        config: TrainConfig,
        context: RunContext,
        components: Components,
        instances: Sequence[Example],
        requests: Requests,
    ) -> tuple[TrainingSet, LatentSource]:
        """Return all pictures, of which those of the first step are there, and their latents."""
        quantum = FAMILIES[components.family].quantum(components)
        plans = plan_class_images(config, context, components)
        classes = [e for plan in plans for e in foresee_class_images(config, quantum, plan)]
        start = starting_point(config, context.workspace.model(config.model))

        def first_step(pictures: Sequence[Example]) -> list[Sample]:
            return next(step_batches(arrange(config, instances, pictures), start)).samples

        needed = {sample.example.path for sample in first_step(classes)}
        painted = self._paint(config, components, plans, needed)
        classes = [_there(e, painted) if e.path in needed else e for e in classes]
        whole = arrange(config, instances, classes)
        shown = [sample.example for sample in first_step(classes)]
        first = _of_one_step(config, shown)
        total, device = len(whole.variants()), components.unet.device
        with self.measured(ENCODING, total, len(first.variants()), device):
            latents = cache_latents(config, context, components, first, requests)
        return whole, latents

    @contextmanager
    def measured(self, name: str, total: int, done: int, device: torch.device) -> Iterator[None]:
        """Measure the block, which does `done` of the `total` that the whole training does."""
        reset_peak_memory(device)
        began = time.monotonic()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = round(time.monotonic() - began, 3)
        self.parts[name] = Measured(total, done, seconds, peak_memory(device))

    def _paint(
        self,
        config: TrainConfig,
        components: Components,
        plans: Sequence[ConceptPlan],
        needed: set[Path],
    ) -> list[Path]:
        """Paint one batch of the class images that are needed and missing; return the files."""
        place, group = _first_batch(config, plans, needed)
        if not group:
            return []
        concept, plan, device = config.concepts[place], plans[place], components.unet.device
        total, files = sum(len(plan.missing) for plan in plans), []
        precision = config.precision.mixed_precision
        with self.measured(PAINTING, total, len(group), device), autocast(components, precision):
            for number, picture in paint(config, concept, plan, components, group):
                files.append(class_image_file(self.folder, number))
                save_png(picture, files[-1])
        return files


def _first_batch(
    config: TrainConfig, plans: Sequence[ConceptPlan], needed: set[Path]
) -> tuple[int, list[tuple[int, Wanted]]]:
    """Return which concept's class images of one size are painted first, and these."""
    most = config.batch.class_batch_size or config.batch.batch_size
    for place, plan in enumerate(plans):
        missing = {
            n: w for n, w in plan.missing.items() if class_image_file(plan.folder, n) in needed
        }
        if missing:
            first = next(iter(missing.values()))
            size = (first.width, first.height)
            alike = [(n, w) for n, w in missing.items() if (w.width, w.height) == size]
            return place, alike[:most]
    return 0, []


def _there(example: Example, painted: Sequence[Path]) -> Example:
    """Return a class image that can be read: one that is not painted yet is stood in for."""
    path = example.path if example.path.exists() else painted[0]
    return dataclasses.replace(example, path=path, file_hash=file_hash(path))


def _of_one_step(config: TrainConfig, examples: Sequence[Example]) -> TrainingSet:
    """Return a training set of a step's examples alone."""
    return TrainingSet(
        [example for example in examples if not example.is_class],
        [example for example in examples if example.is_class],
        seed=config.seed,
        horizontal_flip=config.images.horizontal_flip,
        random_crop=config.images.crop == "random",
    )
