"""Which class images a training has and which it lacks, told from files alone.

Our pictures lie in `class_images/<key of prompt and settings>/` of the model as `00012.png` with
their prompt in `00012.txt`. A person's own folder is only ever read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreambooth_core.config.concept import GENERATE, OWN
from dreambooth_core.config.pictures import picture_files
from dreambooth_core.config.schema import CaptionsSection, Concept, TrainConfig
from dreambooth_core.data.buckets import assign, make_buckets
from dreambooth_core.data.captions import caption_file, caption_reading, prompt_for_image
from dreambooth_core.data.picture_files import image_size, list_images
from dreambooth_core.data.prompts import FILEWORDS
from dreambooth_core.job import disk
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.stages.png import read_png

_NOT_IN_KEY = (
    *("class_folder", "class_images_source", "class_images_per_instance_image"),
    *("class_seed", "class_token"),
)
"""What does not change a made picture, or reaches the key as something else."""


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
    """What one concept has and lacks; `missing` maps file numbers to what they shall show.

    And so does `found`, for the pictures of ours that are there.
    """

    folder: Path
    base_seed: int
    own: list[ClassImage]
    made: list[ClassImage]
    missing: dict[int, Wanted]
    found: dict[int, Wanted] = field(default_factory=dict)

    def line(self, position: int) -> str:
        """Return the plan in words."""
        own = f"{len(self.own)} of your own, " if self.own else ""
        return (
            f"Concept {position}: {own}{len(self.made)} class images found,"
            f" {len(self.missing)} to generate."
        )

    def images(self) -> list[ClassImage]:
        """Return all pictures there will be once nothing is missing."""
        ours = [*self.made, *self.new_images()]
        return [*self.own, *sorted(ours, key=lambda image: image.path.name)]

    def new_images(self) -> list[ClassImage]:
        """Return the pictures that will be painted, in the order of `missing`."""
        return [
            ClassImage(class_image_file(self.folder, number), want.prompt)
            for number, want in self.missing.items()
        ]


def class_image_file(folder: Path, number: int) -> Path:
    """Return where a picture of ours lies."""
    return folder / f"{number:05d}.png"


def _class_prompt(concept: Concept, image: Path, template: str, captions: CaptionsSection) -> str:
    return prompt_for_image(
        image,
        template,
        instance_token=concept.instance_token,
        class_token=concept.class_token,
        role="class",
        reading=caption_reading(concept, captions),
    )


def own_class_files(concept: Concept) -> list[Path]:
    """Return the pictures of the person's own folder that the concept uses: all or none of them."""
    unused = concept.class_images_source == GENERATE or not concept.class_images_per_instance_image
    if unused or not concept.class_folder:
        return []
    return picture_files(Path(concept.class_folder).expanduser())


def class_image_count(concept: Concept) -> int:
    """Return how many class images a concept will have: its own ones count first."""
    own = len(own_class_files(concept))
    if concept.class_images_source == OWN:
        return own
    return max(own, _images_asked_for(concept))


def _images_asked_for(concept: Concept) -> int:
    per_image = concept.class_images_per_instance_image
    return per_image * len(list_images(Path(concept.instance_folder))) if per_image else 0


def _own_images(concept: Concept, captions: CaptionsSection) -> list[ClassImage]:
    """Return the person's own pictures; one with a caption is described by it."""
    read = captions.source != "name"
    return [
        ClassImage(path, _class_prompt(concept, path, template, captions))
        for path in own_class_files(concept)
        for template in [FILEWORDS if read and caption_file(path) else concept.class_prompt]
    ]


def wanted_pictures(
    concept: Concept,
    resolution: int,
    quantum: int,
    count: int,
    captions: CaptionsSection | None = None,
) -> list[Wanted]:
    """Share `count` pictures out over the instance images: each one's caption and shape in turn."""
    buckets, captions = make_buckets(resolution, quantum), captions or CaptionsSection()
    shares = []
    for path in list_images(Path(concept.instance_folder)):
        width, height = assign(image_size(path), buckets)
        prompt = _class_prompt(concept, path, concept.class_prompt, captions)
        shares.append(Wanted(prompt, width, height))
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
        prompt = disk.read(path.with_suffix(".txt")).decode("utf-8")
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
    own = _own_images(concept, config.captions)
    to_make = class_image_count(concept) - len(own)
    if to_make == 0:
        return ConceptPlan(folder, seed, own, [], {})
    resolution, captions = config.images.resolution, config.captions
    wanted = wanted_pictures(concept, resolution, quantum, to_make, captions)
    existing = _existing(folder)
    numbers, missing = match(wanted, existing)
    made = [ClassImage(class_image_file(folder, n), existing[n].prompt) for n in numbers]
    return ConceptPlan(folder, seed, own, made, missing, {n: existing[n] for n in numbers})
