"""Every setting of pictures and captions, turned: which batches a training sees, and how many.

The VAE is one that changes nothing, so that latents are the pictures themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from dreambooth_core.config.validate import check_fields
from dreambooth_core.data.loading import LatentSource
from dreambooth_core.errors import InputError
from dreambooth_core.families import FAMILIES
from dreambooth_core.job.events import Notice
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.stages.dataset_setup import cache_latents
from dreambooth_core.stages.requests import Requests
from dreambooth_core.stages.training_pictures import (
    arrange,
    find_instances,
    remarks,
    shapes_line,
)
from tests.trainings import Trainings

QUANTUM = 16
VAE = SimpleNamespace(device=torch.device("cpu"))
MODEL: Any = SimpleNamespace(family="plain", vae=VAE, paints_into_pictures=lambda: False)


class Plain:
    """A family whose latents are pixels."""

    encoded: list[int]

    def __init__(self) -> None:
        self.encoded = []

    def encode_images(self, model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The pixels, and no spread."""
        self.encoded.append(len(pixels))
        return pixels, torch.zeros_like(pixels)


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> Plain:
    """The family under the name "plain"."""
    family = Plain()
    monkeypatch.setitem(FAMILIES, "plain", family)  # type: ignore[arg-type]
    return family


@pytest.fixture
def trainings(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Trainings:
    """A workspace with four square pictures and a model that is a record only."""
    info = SimpleNamespace(source_sha256="abc")
    monkeypatch.setattr("dreambooth_core.job.workspace.ModelFolder.read_info", lambda self: info)
    return Trainings(workspace)


class Pictures:
    """What a training with some settings is shown."""

    def __init__(self, trainings: Trainings, changes: Mapping[str, Any]) -> None:
        self.config = trainings.config(changes)
        assert check_fields(self.config) == []
        instances = find_instances(self.config, QUANTUM)
        self.set = arrange(self.config, instances)
        context, self.events = trainings.context()
        self.latents: LatentSource = cache_latents(
            self.config, context, MODEL, self.set, Requests(context.commands)
        )

    def samples(self, epochs: int = 1) -> list[Any]:
        """All samples of the first epochs."""
        steps = [step for epoch in range(epochs) for step in self.set.epoch_batches(epoch)]
        return [sample for step in steps for sample in step.samples]

    def prompts(self, epochs: int = 1) -> Counter[str]:
        """How often each prompt is used in the first epochs."""
        return Counter(sample.prompt for sample in self.samples(epochs))

    def means(self) -> list[torch.Tensor]:
        """The latents of the first epoch."""
        return [self.latents.latents(sample).mean for sample in self.samples()]

    def notices(self) -> list[str]:
        """What was told."""
        return [event.message for event in self.events if isinstance(event, Notice)]


def save_wide(folder: Path) -> Path:
    """One picture of 4:1 with a black and white board at its right end, as wide as high."""
    folder.mkdir()
    pixels = numpy.full((64, 320, 3), 128, numpy.uint8)
    pixels[:, 256:] = ((numpy.indices((64, 64)) // 8).sum(axis=0) % 2 * 255)[..., None]
    Image.fromarray(pixels).save(folder / "a dog.png")
    return folder


# -- images


@pytest.mark.turns("train.images.resolution")
@pytest.mark.parametrize("resolution", [32, 64, 128])
def test_the_resolution_is_the_size_of_the_pictures(trainings: Trainings, resolution: int) -> None:
    pictures = Pictures(trainings, {"images": {"resolution": resolution}})
    assert {tuple(mean.shape) for mean in pictures.means()} == {(3, resolution, resolution)}


@pytest.mark.turns("train.images.horizontal_flip")
def test_flip_shows_both_sides_and_encodes_both(trainings: Trainings, plain: Plain) -> None:
    pictures = Pictures(trainings, {"images": {"horizontal_flip": True}})
    assert sum(plain.encoded) == 8
    share = sum(sample.flip for sample in pictures.samples(50)) / 200
    assert 0.3 < share < 0.7
    assert not any(sample.flip for sample in Pictures(trainings, {}).samples(50))


@pytest.mark.turns("train.images.crop")
def test_the_crop_is_the_center_or_the_detail_or_drawn(trainings: Trainings) -> None:
    """The board at the right end is in the focal crop, and at the side of the center one."""
    folder = save_wide(trainings.workspace.root / "wide")
    places, seen = {}, {}
    for crop in ("center", "focal", "random"):
        changes = {
            "concept": {"instance_folder": str(folder)},
            "images": {"crop": crop, "resolution": 32},
        }
        pictures = Pictures(trainings, changes)
        places[crop] = {sample.crop for sample in pictures.samples(60)}
        seen[crop] = pictures.means()[0].std().item()
    assert places == {"center": {0.5}, "focal": {1.0}, "random": {0.0, 0.25, 0.5, 0.75, 1.0}}
    assert seen["focal"] > seen["center"]


@pytest.mark.turns("train.images.dynamic_normalization")
def test_dynamic_normalization_gives_each_picture_mean_0_and_deviation_1(
    trainings: Trainings,
) -> None:
    changed = Pictures(trainings, {"images": {"dynamic_normalization": True}}).means()
    for mean in changed:
        assert mean.mean().item() == pytest.approx(0, abs=1e-4)
        assert mean.std().item() == pytest.approx(1, abs=1e-4)
    assert all(mean.std().item() < 0.7 for mean in Pictures(trainings, {}).means())


@pytest.mark.turns("train.images.masks")
def test_masks_come_from_files_or_opacity(trainings: Trainings) -> None:
    folder = trainings.pictures
    half = Image.new("L", (64, 64), 0)
    half.paste(255, (0, 0, 32, 64))
    half.save(folder / "a red dog.mask.png")
    image = Image.open(folder / "b red dog.png").convert("RGB")
    image.putalpha(half.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    image.save(folder / "b red dog.png")
    halves = {}
    for source, name in (("files", "a"), ("alpha", "b")):
        pictures = Pictures(trainings, {"images": {"masks": source}})
        assert len(pictures.set.instances) == 4
        for step in pictures.set.epoch_batches(0):
            (sample,) = step.samples
            masks = pictures.latents.batch(step.micro_batches[0]).masks
            assert masks is not None and masks.shape == (1, 1, 64, 64)
            masked = sample.example.path.name.startswith(name)
            assert masks.mean().item() == (0.5 if masked else 1.0)
            if masked:
                halves[source] = masks[0, 0, 0].tolist()
        assert pictures.notices() == ["1 of 4 instance images have a mask; others count whole."]
    assert halves["files"] == [1.0] * 32 + [0.0] * 32 == halves["alpha"][::-1]
    plain = Pictures(trainings, {})
    assert plain.latents.batch(plain.set.epoch_batches(0)[0].micro_batches[0]).masks is None


def test_masks_that_are_nowhere_are_an_error(trainings: Trainings) -> None:
    for source in ("files", "alpha"):
        with pytest.raises(InputError, match="no instance image has such a mask") as caught:
            Pictures(trainings, {"images": {"masks": source}})
        assert caught.value.field == "images.masks"


@pytest.mark.turns("train.images.cache_latents")
def test_latents_on_disk_are_there_for_the_next_run(trainings: Trainings, plain: Plain) -> None:
    """In batches of the batch size, whole where one is missing: the last bits depend on it."""
    folder = trainings.workspace.model("tiny").cache_dir
    Pictures(trainings, {"batch": {"batch_size": 3}})
    assert plain.encoded == [3, 1] and not folder.exists()
    disk = {"batch": {"batch_size": 3}, "images": {"cache_latents": "disk"}}
    first = Pictures(trainings, disk).means()
    assert plain.encoded == [3, 1, 3, 1]
    second = Pictures(trainings, disk).means()
    assert plain.encoded == [3, 1, 3, 1]
    assert all(map(torch.equal, first, second))
    flipped = {**disk, "images": {"cache_latents": "disk", "horizontal_flip": True}}
    Pictures(trainings, flipped)
    assert plain.encoded == [3, 1, 3, 1, 3, 3, 2]
    Image.new("RGB", (64, 64), "red").save(trainings.pictures / "a red dog.png")
    Pictures(trainings, disk)
    assert plain.encoded[7:] == [3]


# -- captions


@pytest.mark.turns("train.captions.source")
def test_the_source_is_the_file_or_the_name(trainings: Trainings) -> None:
    for path in trainings.pictures.glob("*.png"):
        path.with_suffix(".txt").write_text("in snow")
    assert Pictures(trainings, {}).prompts() == {"zwx dog, in snow": 4}
    named = Pictures(trainings, {"captions": {"source": "name"}}).prompts()
    assert named == {f"{letter} red zwx dog": 1 for letter in "abcd"}
    (trainings.pictures / "c red dog.txt").unlink()
    with pytest.raises(InputError, match=r"c red dog\.png has no caption file"):
        Pictures(trainings, {"captions": {"source": "file"}})


@pytest.mark.turns("train.captions.dropout")
@pytest.mark.parametrize("dropout", [0.0, 0.25, 1.0])
def test_dropout_is_the_share_of_empty_prompts(trainings: Trainings, dropout: float) -> None:
    pictures = Pictures(trainings, {"captions": {"dropout": dropout}})
    share = pictures.prompts(100)[""] / 400
    assert share == pytest.approx(dropout, abs=0.08)
    assert any("empty prompt" in line for line in pictures.notices()) == bool(dropout)


@pytest.mark.turns("train.captions.shuffle_tags", "train.captions.keep_tags")
@pytest.mark.parametrize(("keep", "orders"), [(0, 6), (1, 2), (3, 1)])
def test_tags_are_shuffled_behind_those_that_are_kept(
    trainings: Trainings, keep: int, orders: int
) -> None:
    changes = {
        "concept": {"instance_prompt": "zwx dog, red, snow"},
        "captions": {"shuffle_tags": True, "keep_tags": keep},
    }
    pictures = Pictures(trainings, changes)
    assert len(pictures.prompts(60)) == orders
    assert any(line.startswith("Tags: all") for line in pictures.notices())
    changes["captions"] = {"keep_tags": keep}
    assert set(Pictures(trainings, changes).prompts(20)) == {"zwx dog, red, snow"}


@pytest.mark.turns("train.captions.extension_rules")
def test_the_extensions_rules_lose_the_class_word(trainings: Trainings) -> None:
    concept = {"instance_prompt": r"a photo of a dog \(big\)"}
    ours, theirs = (
        Pictures(trainings, {"concept": concept, "captions": {"extension_rules": rules}})
        for rules in (False, True)
    )
    assert set(ours.prompts()) == {r"a photo of a zwx dog \(big\)"}
    assert set(theirs.prompts()) == {"a photo of zwx (big)"}


def test_emphasis_is_told_and_kept(trainings: Trainings) -> None:
    pictures = Pictures(trainings, {"concept": {"instance_prompt": "a (red:1.2) zwx"}})
    assert set(pictures.prompts()) == {"a (red:1.2) zwx"}
    (line,) = pictures.notices()
    assert line.startswith("1 prompts hold emphasis")


# -- concepts


@pytest.mark.turns("train.concepts.instance_folder")
def test_the_pictures_of_the_folder_are_shown(trainings: Trainings) -> None:
    folder = save_wide(trainings.workspace.root / "wide")
    shown = [
        {sample.example.path.parent for sample in Pictures(trainings, changes).samples()}
        for changes in ({}, {"concept": {"instance_folder": str(folder)}})
    ]
    assert shown == [{trainings.pictures}, {folder}]


@pytest.mark.turns(
    "train.concepts.instance_prompt",
    "train.concepts.instance_token",
    "train.concepts.class_token",
)
@pytest.mark.parametrize(
    ("concept", "expected"),
    [
        ({"instance_prompt": "[filewords]"}, "a red zwx dog"),
        ({"instance_prompt": "photo of [filewords]"}, "photo of a red zwx dog"),
        ({"instance_prompt": "in snow"}, "zwx dog, in snow"),
        ({"instance_token": "sks"}, "a red sks dog"),
        ({"instance_token": ""}, "a red dog"),
        ({"class_token": "cat"}, "zwx cat, a red dog"),
        ({"class_token": ""}, "zwx a red dog"),
    ],
)
def test_prompts_are_the_concepts(
    trainings: Trainings, concept: dict[str, str], expected: str
) -> None:
    assert expected in Pictures(trainings, {"concept": concept}).prompts()


@pytest.mark.turns("train.concepts.repeats")
def test_repeats_are_how_often_an_epoch_shows_each_image(trainings: Trainings) -> None:
    pictures = Pictures(trainings, {"concept": {"repeats": 3}, "batch": {"batch_size": 4}})
    for epoch in range(3):
        steps = pictures.set.epoch_batches(epoch)
        assert len(steps) == pictures.set.steps_per_epoch == 3
        counts = Counter(sample.example.path for step in steps for sample in step.samples)
        assert set(counts.values()) == {3} and len(counts) == 4


@pytest.mark.turns("train.concepts.folder_names")
def test_folder_names_give_repeats_caption_and_tokens(trainings: Trainings) -> None:
    top = trainings.workspace.root / "img"
    for name, count in (("9_w0ut3r man", 1), ("2_zwx dog", 2)):
        (top / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (64, 64)).save(top / name / f"00{number}.png")
    concept = {"instance_folder": str(top), "instance_token": "", "class_token": ""}
    changes = {"concept": {**concept, "folder_names": True}}
    assert Pictures(trainings, changes).prompts() == {"w0ut3r man": 9, "zwx dog": 4}
    changes = {"concept": concept}
    assert Pictures(trainings, changes).prompts() == {"": 3}


@pytest.mark.turns("train.concepts.prompt_templates")
def test_a_line_of_the_template_file_is_drawn_each_time(trainings: Trainings) -> None:
    file = trainings.workspace.root / "templates.txt"
    file.write_text("a photo of [name]\n[name] in [filewords]\n", encoding="utf-16")
    concept = {"prompt_templates": str(file), "instance_prompt": "unused"}
    pictures = Pictures(trainings, {"concept": concept})
    counts = pictures.prompts(100)
    assert set(counts) == {
        "a photo of zwx dog",
        *(f"zwx dog in {letter} red dog" for letter in "abcd"),
    }
    assert 150 < counts["a photo of zwx dog"] < 250
    assert any(line.startswith("Prompt templates") for line in pictures.notices())


def test_the_shapes_are_told_with_their_counts(trainings: Trainings) -> None:
    save_wide(trainings.pictures / "wide")
    pictures = Pictures(trainings, {"images": {"resolution": 64}})
    line = shapes_line(pictures.set)
    assert line == "Shapes, with their instance and class images: 64x64: 4 and 0; 128x32: 1 and 0."
    assert remarks(pictures.config, pictures.set) == []
