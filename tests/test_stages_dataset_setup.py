"""Tests of the way from folders of pictures to a training set."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.data.dataset import TrainingSet
from dreambooth_core.families import FAMILIES
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import Notice, PhaseProgress, PhaseStarted
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.stages.class_image_plan import ClassImage, ClassImages
from dreambooth_core.stages.dataset_setup import cache_latents
from dreambooth_core.stages.requests import Requests, StopRequested
from dreambooth_core.stages.training_pictures import (
    all_prompts,
    arrange,
    count_class_images,
    find_class_images,
    find_instances,
)
from tests.noise_pictures import write_pictures
from tests.trainings import Trainings

QUANTUM = 16
VAE = SimpleNamespace(device=torch.device("cpu"))
MODEL: Any = SimpleNamespace(family="flat", vae=VAE, paints_into_pictures=lambda: False)


class Flat:
    """A family whose latents are pixels, seen through a view that is not in order of memory."""

    encoded = 0

    def quantum(self, model: Any) -> int:
        """Sides are multiples of this."""
        return 16

    def encode_images(self, model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The pixels, and no spread."""
        self.encoded += len(pixels)
        turned = pixels.transpose(2, 3)
        return turned, torch.zeros_like(turned)


@pytest.fixture(autouse=True)
def flat(monkeypatch: pytest.MonkeyPatch) -> Flat:
    """The family under the name "flat"."""
    family = Flat()
    monkeypatch.setitem(FAMILIES, "flat", family)  # type: ignore[arg-type]
    return family


@pytest.fixture
def trainings(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Trainings:
    """A workspace with four pictures and a model that is a record only."""
    info = SimpleNamespace(source_sha256="abc")
    monkeypatch.setattr("dreambooth_core.job.workspace.ModelFolder.read_info", lambda self: info)
    return Trainings(workspace)


def with_concepts(trainings: Trainings, *concepts: dict[str, Any]) -> TrainConfig:
    """A configuration with several concepts of the same pictures."""
    config = trainings.config()
    base = config.concepts[0]
    config.concepts = [type(base)(**{**vars(base), **changes}) for changes in concepts]
    return config


def test_instances_of_all_concepts_are_found_in_order(trainings: Trainings) -> None:
    config = with_concepts(trainings, {}, {"instance_prompt": "a house", "instance_token": ""})
    prompts = [example.prompt for example in find_instances(config, QUANTUM)]
    assert prompts == [*(f"{c} red zwx dog" for c in "abcd"), *["a house"] * 4]


def test_class_images_keep_their_prompts_and_carry_the_prior_weight(trainings: Trainings) -> None:
    config = with_concepts(trainings, {}, {})
    config.loss.prior_loss_weight = 0.3
    paths = sorted(trainings.pictures.glob("*.png"))
    images = ClassImages([[ClassImage(paths[0], "a dog")], [ClassImage(paths[1], "a house")]])
    examples = find_class_images(config, QUANTUM, images)
    assert [(e.path, e.prompt, e.weight) for e in examples] == [
        (paths[0], "a dog", 0.3),
        (paths[1], "a house", 0.3),
    ]
    assert all(example.is_class and example.bucket == (64, 64) for example in examples)
    assert len({example.file_hash for example in examples}) == 2
    config.loss.prior_loss_weight = 0.0
    assert find_class_images(config, QUANTUM, images) == []


def test_class_images_are_counted_for_each_concept(trainings: Trainings) -> None:
    wanted = ({"class_images_per_instance_image": 2}, {}, {"class_images_per_instance_image": 3})
    assert count_class_images(with_concepts(trainings, *wanted)) == 8 + 12


def test_the_arrangement_follows_the_settings(trainings: Trainings) -> None:
    config = trainings.config(
        {
            "seed": 9,
            "batch": {"batch_size": 3, "class_batch_size": 2, "gradient_accumulation_steps": 4},
            "images": {"horizontal_flip": True, "crop": "random"},
            "captions": {"dropout": 0.25},
        }
    )
    instances = find_instances(config, QUANTUM)
    made = arrange(config, instances, instances[:1])
    expected = TrainingSet(
        instances,
        instances[:1],
        seed=9,
        batch_size=3,
        class_batch_size=2,
        gradient_accumulation_steps=4,
        horizontal_flip=True,
        random_crop=True,
        caption_dropout=0.25,
    )
    assert vars(made) == vars(expected)


def test_all_prompts_are_named_once(trainings: Trainings) -> None:
    config = with_concepts(trainings, {"instance_prompt": "zwx"}, {"instance_prompt": "zwx"})
    assert all_prompts(arrange(config, find_instances(config, QUANTUM))) == ["zwx"]
    config.captions.dropout = 0.1
    assert all_prompts(arrange(config, find_instances(config, QUANTUM))) == ["zwx", ""]


def _cache(trainings: Trainings, config: TrainConfig, context: RunContext) -> Any:
    training_set = arrange(config, find_instances(config, QUANTUM))
    return training_set, cache_latents(
        config, context, MODEL, training_set, Requests(context.commands)
    )


def test_latents_are_the_same_from_memory_and_from_disk(trainings: Trainings, flat: Flat) -> None:
    results = []
    for place in ("memory", "disk", "disk"):
        context, events = trainings.context()
        config = trainings.config({"images": {"cache_latents": place}})
        training_set, latents = _cache(trainings, config, context)
        first = training_set.epoch_batches(0)[0].micro_batches[0]
        results.append(latents.batch(first).latents_mean)
        assert [e.total for e in events if isinstance(e, PhaseStarted)] == [4]
    assert flat.encoded == 8  # the second run from disk encoded nothing
    assert torch.equal(results[0], results[1]) and torch.equal(results[1], results[2])
    assert all(result.is_contiguous() for result in results)


def test_damaged_cache_files_are_made_anew_with_a_notice(trainings: Trainings) -> None:
    config = trainings.config({"images": {"cache_latents": "disk"}})
    _cache(trainings, config, trainings.context()[0])
    file = min(Path(trainings.workspace.model("tiny").cache_dir).rglob("*.safetensors"))
    file.write_bytes(b"damaged")
    context, events = trainings.context()
    _cache(trainings, config, context)
    (notice,) = [event for event in events if isinstance(event, Notice)]
    assert "1 damaged" in notice.message
    assert file.read_bytes() != b"damaged"


def test_a_stop_ends_caching(trainings: Trainings) -> None:
    context, events = trainings.context(at_step={0: ["stop"]})
    with pytest.raises(StopRequested):
        _cache(trainings, trainings.config(), context)
    assert sum(isinstance(event, PhaseProgress) for event in events) == 1


def test_pictures_of_another_shape_get_another_bucket(trainings: Trainings, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "wide", 1, size=(128, 64))
    config = with_concepts(trainings, {"instance_folder": str(folder)})
    (example,) = find_instances(config, QUANTUM)
    assert example.bucket[0] > example.bucket[1]
