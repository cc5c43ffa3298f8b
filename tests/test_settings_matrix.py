"""Settings drawn by chance from the schema: valid ones train, the others are refused by name.

`validate` is the judge of what is valid. A combination that passes it and does not train is a
fault of a rule or of the code.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dreambooth_core.config.control import FieldSpec, field_specs
from dreambooth_core.config.schema import Concept, TrainConfig
from dreambooth_core.config.serialize import from_dict
from dreambooth_core.config.validate import validate
from dreambooth_core.errors import ConfigError, Problem
from dreambooth_core.job.workspace import Workspace
from tests.noise_pictures import write_pictures
from tests.tiny import VARIANTS, tiny_model
from tests.trainings import FAST, Trained, Trainings, merged

COMBINATIONS = 20
COMBINATIONS_OF_A_FAMILY = 2
OTHER_FAMILIES = ("sd2-v", "sdxl", "sd1-inpainting", "sdxl-inpainting")
TURNED_SHARE = 0.3
"""How many of the settings are turned in a combination."""

SETTLED = {"model", "resume", "concepts", "intervals.max_steps", "precision.device"}
"""What every combination has alike: two steps of one model on the CPU."""

AFFORDABLE: dict[str, tuple[float, float]] = {
    "images.resolution": (64, 96),
    "learning_rate.unet": (0, 1e-3),
    "learning_rate.text_encoder": (0, 1e-3),
    "lora.unet_learning_rate": (0, 1e-3),
    "lora.text_encoder_learning_rate": (0, 1e-3),
    "optimizer.beta2": (0.5, 0.99999),
    "optimizer.epsilon": (1e-8, 1),
    "lora.rank": (1, 4),
    "lora.conv_rank": (0, 4),
    "lora.text_encoder_rank": (0, 4),
    "intervals.pause_seconds": (0, 1),
    "previews.steps": (1, 2),
    "concept.class_images_per_instance_image": (0, 2),
    "concept.class_steps": (1, 2),
}
"""Narrower than the schema's ranges: what a tiny model has layers for, what a test has time for,
and what does not blow weights up, which is reported as such."""

TEXTS = {
    "previews.prompts": ["a zwx dog"],
    "previews.negative_prompt": "red, (blue:1.3)",
    "concept.sample_prompts": ["a dog, red"],
    "concept.instance_prompt": "photo of [filewords], BREAK, a red (zwx:1.2) dog",
    "concept.class_prompt": "a [filewords]",
    "concept.class_negative_prompt": "a cat",
    "concept.instance_token": "sks",
    "concept.class_token": "cat",
}


def specs_of(cls: type) -> list[tuple[str, FieldSpec]]:
    """The settings that are drawn, by path; a concept's begin with "concept."."""
    prefix = "concept." if cls is Concept else ""
    return [
        (prefix + spec.path, spec)
        for spec in field_specs(cls)
        if spec.path not in SETTLED
        and (prefix + spec.path in TEXTS or spec.control.choices or spec.type in (bool, int, float))
    ]


FIELDS = {spec.path for spec in field_specs(TrainConfig)} | {
    f"concept.{spec.path}" for spec in field_specs(Concept)
}
SPECS = dict([*specs_of(TrainConfig), *specs_of(Concept)])


def draw(chance: random.Random, path: str, spec: FieldSpec) -> Any:
    """A value within a setting's choices or range."""
    if path in TEXTS:
        return TEXTS[path]
    if spec.control.choices:
        return chance.choice(spec.control.choices)
    if spec.type is bool:
        return chance.random() < 0.5
    low, high = AFFORDABLE.get(path, (spec.control.minimum, spec.control.maximum))
    value = chance.choice([low, high, chance.uniform(low, high), spec.default])
    if path in AFFORDABLE:
        value = min(max(value, low), high)
    if spec.type is int:
        step = int(spec.control.step or 1)
        return int(low) + (int(value) - int(low)) // step * step
    return float(value)


def put(settings: dict[str, Any], path: str, value: Any) -> None:
    """Set a value at a dotted path."""
    *groups, name = path.split(".")
    for group in groups:
        settings = settings.setdefault(group, {})
    settings[name] = value


def take(settings: dict[str, Any], field: str) -> bool:
    """Set a field that a problem names back to what it usually is; whether it had been turned."""
    path = field.replace("concepts.0.", "concept.")
    *groups, name = path.split(".")
    for group in groups:
        settings = settings.get(group, {})
    return settings.pop(name, None) is not None


CLASS_FOLDER = "class pictures"


class Combinations:
    """Draws combinations of settings for a model, and judges them."""

    def __init__(self, trainings: Trainings, model: str, chance: random.Random) -> None:
        self.trainings, self.model, self.chance = trainings, model, chance
        self.refused: list[Problem] = []

    def settings(self, changes: dict[str, Any]) -> dict[str, Any]:
        """The changes with what all combinations have alike."""
        fixed = {
            "model": self.model,
            "intervals": {"max_steps": 2},
            "precision": {"device": "cpu"},
            "concept": {"class_prompt": "dog", "class_steps": 1, **self.class_folder(changes)},
            "previews": {"prompts": ["a dog"], "steps": 1},
        }
        return merged(fixed, changes)

    def class_folder(self, changes: dict[str, Any]) -> dict[str, str]:
        """The folder of class images where the drawn settings want one."""
        concept = changes.get("concept", {})
        wanted = concept.get("class_images_per_instance_image") and "class_images_source" in concept
        return {"class_folder": str(self.trainings.workspace.root / CLASS_FOLDER)} if wanted else {}

    def problems(self, changes: dict[str, Any]) -> list[Problem]:
        """What validate says."""
        config = self.trainings.config(self.settings(changes))
        return validate(config, self.trainings.workspace)

    def draw(self) -> dict[str, Any]:
        """A combination by chance, without what is refused of it."""
        changes: dict[str, Any] = {}
        for path, spec in SPECS.items():
            if self.chance.random() < TURNED_SHARE:
                put(changes, path, draw(self.chance, path, spec))
        while found := self.problems(changes):
            self.refused += found
            if not any([take(changes, problem.field) for problem in found]):
                return self.draw()
        return changes


@pytest.fixture(scope="module")
def trainings(module_folder: Path) -> Trainings:
    """A workspace with a tiny model, pictures with all that settings ask for, and class images."""
    workspace = Workspace(module_folder)
    result = Trainings(workspace)
    write_pictures(result.pictures / "wide", 2, seed=1, size=(96, 64))
    for path in sorted(result.pictures.rglob("*.png")):
        path.with_suffix(".txt").write_text(f"{path.stem}, blue, (round:1.2)", encoding="utf-8")
    first, second = sorted(result.pictures.glob("*.png"))[:2]
    with Image.open(first) as image:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.save(first)
    Image.linear_gradient("L").save(second.with_suffix(".mask.png"))
    write_pictures(workspace.root / CLASS_FOLDER, 3, seed=2)
    tiny_model(workspace, "sd1")
    return result


def check_run(run: Trained) -> None:
    """Something was learnt, and nothing broke."""
    assert 1 <= len(run.steps) <= 2
    assert all(math.isfinite(loss) for loss in run.losses)
    assert run.weights
    for weights in run.weights.values():
        assert all(torch.isfinite(weight).all() for weight in weights.values())


@pytest.mark.parametrize("number", range(COMBINATIONS))
def test_a_valid_combination_trains(trainings: Trainings, number: int) -> None:
    combinations = Combinations(trainings, "sd1", random.Random(number))
    changes = combinations.draw()
    check_run(trainings.run(combinations.settings(changes), f"drawn {number}"))


@pytest.mark.parametrize("number", range(COMBINATIONS_OF_A_FAMILY))
@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_a_valid_combination_trains_every_family(
    trainings: Trainings, family: str, number: int
) -> None:
    if not trainings.workspace.model(family).exists():
        tiny_model(trainings.workspace, family, variant=VARIANTS[family])
    combinations = Combinations(trainings, family, random.Random(f"{family} {number}"))
    check_run(trainings.run(combinations.settings(combinations.draw()), f"{family} {number}"))


def test_what_is_refused_of_a_combination_is_a_setting_with_a_remedy(trainings: Trainings) -> None:
    combinations = Combinations(trainings, "sd1", random.Random("refused"))
    for _ in range(20):
        combinations.draw()
    assert len({problem.field for problem in combinations.refused}) > 5
    for problem in combinations.refused:
        assert problem.field.replace("concepts.0.", "concept.") in FIELDS
        assert problem.message.endswith(".") and problem.remedy.endswith(".")


def wrong_values(spec: FieldSpec) -> Iterator[Any]:
    """Values that a setting cannot have."""
    control = spec.control
    if control.choices:
        yield "no such choice"
    elif spec.type in (int, float):
        yield "some"
        if control.minimum is not None:
            yield spec.type(control.minimum - 1)
        if control.maximum is not None:
            yield spec.type(control.maximum + 1)
    elif spec.type is bool:
        yield "perhaps"
    else:
        yield 7


@pytest.mark.parametrize("path", SPECS)
def test_a_value_that_cannot_be_is_refused_by_name(trainings: Trainings, path: str) -> None:
    for value in wrong_values(SPECS[path]):
        data = copy.deepcopy(FAST)
        concept: dict[str, Any] = {"instance_folder": str(trainings.pictures)}
        place = concept if path.startswith("concept.") else data
        put(place, path.removeprefix("concept."), value)
        try:
            found = validate(from_dict(TrainConfig, {**data, "concepts": [concept]}), None)
        except ConfigError as error:
            found = error.problems
        named = path.replace("concept.", "concepts.0.") if place is concept else path
        assert named in [problem.field for problem in found], value
