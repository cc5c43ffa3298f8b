"""Class images: what the untouched model paints for the class, so that training can hold on to it.

Our pictures lie in `class_images/<key of prompt and settings>/` of the model as `00012.png` with
their prompt in `00012.txt`. A person's own folder is only ever read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth_core.config.pictures import picture_files
from dreambooth_core.config.schema import Concept, TrainConfig
from dreambooth_core.data.buckets import assign, make_buckets
from dreambooth_core.data.captions import FILEWORDS, caption_path, prompt_for_image
from dreambooth_core.data.images import image_size, list_images
from dreambooth_core.families import FAMILIES, load_components
from dreambooth_core.families.base import Components
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import PhaseProgress, PhaseStarted, PlanMade
from dreambooth_core.job.storage import atomic_write_bytes
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.stages.device import autocast, place, resolve_device
from dreambooth_core.stages.sampling import generate, picture_info, read_png, save_png

PHASE = "class images"
_NOT_IN_KEY = ("class_folder", "class_images_per_instance_image", "class_seed", "class_token")


@dataclass(frozen=True)
class ClassImage:
    """A class picture and the prompt that it is trained with."""

    path: Path
    prompt: str


@dataclass(frozen=True)
class ClassImages:
    """The class pictures of every concept; `stopped` if a command ended their making."""

    per_concept: list[list[ClassImage]]
    stopped: bool = False


@dataclass(frozen=True)
class Wanted:
    """A picture to paint: its prompt and size."""

    prompt: str
    width: int
    height: int


@dataclass(frozen=True)
class ConceptPlan:
    """What one concept has and lacks; `missing` maps file numbers to what they shall show."""

    folder: Path
    base_seed: int
    own: list[ClassImage]
    made: list[ClassImage]
    missing: dict[int, Wanted]

    def line(self, position: int) -> str:
        """Return the plan in words."""
        own = f"{len(self.own)} of your own, " if self.own else ""
        return (
            f"Concept {position}: {own}{len(self.made)} class images found,"
            f" {len(self.missing)} to generate."
        )

    def images(self) -> list[ClassImage]:
        """Return all pictures there will be once nothing is missing."""
        new = [ClassImage(_file(self.folder, n), want.prompt) for n, want in self.missing.items()]
        return [*self.own, *sorted([*self.made, *new], key=lambda image: image.path.name)]


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.png"


def _class_prompt(concept: Concept, image: Path, template: str) -> str:
    return prompt_for_image(
        image,
        template,
        instance_token=concept.instance_token,
        class_token=concept.class_token,
        role="class",
    )


def _own_images(concept: Concept) -> list[ClassImage]:
    """Return the pictures of the person's own folder; one with a caption is described by it."""
    folder = Path(concept.class_folder).expanduser()
    if not concept.class_folder or not picture_files(folder):
        return []
    return [
        ClassImage(path, _class_prompt(concept, path, template))
        for path in list_images(folder)
        for template in [FILEWORDS if caption_path(path).is_file() else concept.class_prompt]
    ]


def wanted_pictures(concept: Concept, resolution: int, quantum: int, count: int) -> list[Wanted]:
    """Share `count` pictures out over the instance images: each one's caption and shape in turn."""
    buckets = make_buckets(resolution, quantum)
    shares = []
    for path in list_images(Path(concept.instance_folder)):
        width, height = assign(image_size(path), buckets)
        shares.append(Wanted(_class_prompt(concept, path, concept.class_prompt), width, height))
    return list(itertools.islice(itertools.cycle(shares), max(0, count)))


def _settings_key(config: TrainConfig, concept: Concept, model: ModelFolder) -> str:
    settings: dict[str, Any] = {
        name: value
        for name, value in dataclasses.asdict(concept).items()
        if name.startswith("class_") and name not in _NOT_IN_KEY
    }
    settings["seed"] = _base_seed(config, concept)
    settings["clip_skip"] = config.text_encoder.clip_skip
    settings["source"] = model.read_info().source_sha256
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def _base_seed(config: TrainConfig, concept: Concept) -> int:
    return concept.class_seed if concept.class_seed >= 0 else config.seed


def _read_made(path: Path) -> Wanted | None:
    """Return what a picture of ours shows; None if it or its prompt is missing or torn."""
    picture = read_png(path)
    try:
        prompt = path.with_suffix(".txt").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return Wanted(prompt, *picture.size) if picture else None


def _existing(folder: Path) -> dict[int, Wanted]:
    paths = (path for path in sorted(folder.glob("*.png")) if path.stem.isdecimal())
    read = ((int(path.stem), _read_made(path)) for path in paths)
    return {number: wanted for number, wanted in read if wanted is not None}


def match(
    wanted: Sequence[Wanted], existing: dict[int, Wanted]
) -> tuple[list[int], dict[int, Wanted]]:
    """Return the numbers of usable pictures, and what the lowest free numbers still have to show.

    A picture under its own number is taken first, so going on after a kill repaints the same one;
    then any picture with the prompt and size that is needed.
    """
    used = [n for n, want in enumerate(wanted) if existing.get(n) == want]
    spare = {n: want for n, want in existing.items() if n not in set(used)}
    lacking = Counter(want for n, want in enumerate(wanted) if existing.get(n) != want)
    for number, want in spare.items():
        if lacking[want] > 0:
            lacking[want] -= 1
            used.append(number)
    free = (n for n in itertools.count() if n not in existing)
    missing: dict[int, Wanted] = {}
    for n, want in enumerate(wanted):
        if existing.get(n) != want and lacking[want] > 0:
            lacking[want] -= 1
            missing[next(free)] = want
    return sorted(used), missing


def plan_concept(
    config: TrainConfig, concept: Concept, model: ModelFolder, quantum: int
) -> ConceptPlan:
    """Count a concept's own and made pictures and say which ones are missing."""
    seed = _base_seed(config, concept)
    folder = model.class_images_dir / _settings_key(config, concept, model)
    per_image = concept.class_images_per_instance_image
    if per_image == 0:
        return ConceptPlan(folder, seed, [], [], {})
    own = _own_images(concept)
    target = per_image * len(list_images(Path(concept.instance_folder)))
    wanted = wanted_pictures(concept, config.images.resolution, quantum, target - len(own))
    existing = _existing(folder)
    numbers, missing = match(wanted, existing)
    made = [ClassImage(_file(folder, n), existing[n].prompt) for n in numbers]
    return ConceptPlan(folder, seed, own, made, missing)


def _by_size(missing: dict[int, Wanted]) -> Iterator[list[tuple[int, Wanted]]]:
    def size(item: tuple[int, Wanted]) -> tuple[int, int]:
        return item[1].width, item[1].height

    for _, group in itertools.groupby(sorted(missing.items(), key=size), key=size):
        yield list(group)


def _paint_group(
    config: TrainConfig,
    concept: Concept,
    plan: ConceptPlan,
    components: Components,
    group: Sequence[tuple[int, Wanted]],
) -> Iterator[tuple[int, Wanted, Image.Image]]:
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
    for (number, want), picture in zip(group, pictures, strict=True):
        yield number, want, picture


def _save(
    config: TrainConfig, concept: Concept, plan: ConceptPlan, number: int, picture: Image.Image
) -> None:
    want, seed, path = plan.missing[number], plan.base_seed + number, _file(plan.folder, number)
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


def _make_missing(
    config: TrainConfig, context: RunContext, components: Components, plans: Sequence[ConceptPlan]
) -> bool:
    """Paint what is missing; return False if a command ended it."""
    total = sum(len(plan.missing) for plan in plans)
    done = 0
    context.emit(PhaseStarted(PHASE, total, "images"))
    for concept, plan in zip(config.concepts, plans, strict=True):
        for group in _by_size(plan.missing):
            for number, _, picture in _paint_group(config, concept, plan, components, group):
                _save(config, concept, plan, number, picture)
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
    return _file(plan.folder, number).is_file()
