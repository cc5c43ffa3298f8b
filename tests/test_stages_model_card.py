"""The card that the WebUI shows of a checkpoint: trigger words and the newest picture."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from dreambooth_core.config.concept import Concept
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.job.workspace import ModelFolder, ModelInfo
from dreambooth_core.stages.model_card import newest_picture, write_card
from dreambooth_core.stages.png import png_info, save_png
from dreambooth_core.stages.saved_states import Progress


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    """A model that has nothing but its record."""
    folder = ModelFolder(tmp_path / "rex")
    folder.path.mkdir()
    folder.write_info(
        ModelInfo(name="rex", family="sd1", source=str(tmp_path / "base.safetensors"))
    )
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A saved checkpoint."""
    path = tmp_path / "checkpoints" / "rex v1.5_400.safetensors"
    path.parent.mkdir()
    path.touch()
    return path


def config(*tokens: str) -> TrainConfig:
    return TrainConfig(
        model="rex",
        concepts=[Concept(instance_folder="x", instance_token=token) for token in tokens],
    )


def preview(folder: ModelFolder, run: str, step: int, number: int, prompt: str, age: int) -> Path:
    path = folder.samples_dir / run / f"step_{step:08d}_{number:02d}.png"
    save_png(Image.new("RGB", (8, 8), (number, step % 256, age)), path, png_info(prompt, "", {}))
    os.utime(path, (1_000_000 - age, 1_000_000 - age))
    return path


def beside(checkpoint: Path) -> list[str]:
    return sorted(path.name for path in checkpoint.parent.iterdir() if path != checkpoint)


def test_the_card_has_the_trigger_words_and_the_newest_picture(
    folder: ModelFolder, checkpoint: Path
) -> None:
    preview(folder, "old", 100, 0, "a photo of ohwx dog", age=50)
    shown = preview(folder, "new", 300, 0, "a photo of ohwx dog", age=10)
    write_card(folder, checkpoint, config("ohwx", "sks", "ohwx", " "), Progress(400, 10, 0))
    card = json.loads((checkpoint.parent / "rex v1.5_400.json").read_text(encoding="utf-8"))
    assert card == {
        "description": "ohwx, sks (400 steps of Dreambooth on base.safetensors)",
        "notes": "Trigger words: ohwx, sks\nModel: rex",
        "activation text": "ohwx, sks",
    }
    picture = checkpoint.parent / "rex v1.5_400.preview.png"
    assert picture.read_bytes() == shown.read_bytes()
    assert beside(checkpoint) == [
        "rex v1.5_400.json",
        "rex v1.5_400.preview.png",
    ]


def test_a_picture_of_the_subject_goes_before_others_of_its_step(folder: ModelFolder) -> None:
    first = preview(folder, "run", 300, 0, "a photo of a dog", age=10)
    second = preview(folder, "run", 300, 1, "ohwx dog, on the beach", age=12)
    assert newest_picture(folder, ["ohwx"], 400) == second
    assert newest_picture(folder, ["sks"], 400) == first
    assert newest_picture(folder, [], 400) == first


def test_pictures_of_later_steps_and_torn_ones_are_left_out(folder: ModelFolder) -> None:
    early = preview(folder, "run", 100, 0, "ohwx", age=30)
    preview(folder, "run", 900, 0, "ohwx", age=0)
    assert newest_picture(folder, ["ohwx"], 400) == early
    early.write_bytes(early.read_bytes()[:-5])
    assert newest_picture(folder, ["ohwx"], 400) is None


def test_without_pictures_or_words_the_card_says_what_it_can(
    folder: ModelFolder, checkpoint: Path
) -> None:
    write_card(folder, checkpoint, config(), Progress(400, 10, 0))
    assert beside(checkpoint) == ["rex v1.5_400.json"]
    card = json.loads(checkpoint.with_suffix(".json").read_text(encoding="utf-8"))
    assert card["description"] == "400 steps of Dreambooth on base.safetensors"


@pytest.mark.parametrize(
    ("own", "written"),
    [
        (".json", {".preview.png"}),
        (".txt", {".preview.png"}),
        (".description.txt", {".preview.png"}),
        (".png", {".json"}),
        (".preview.jpg", {".json"}),
        (".webp", {".json"}),
    ],
)
def test_the_persons_own_card_is_never_touched(
    folder: ModelFolder, checkpoint: Path, own: str, written: set[str]
) -> None:
    preview(folder, "run", 300, 0, "ohwx", age=0)
    mine = checkpoint.with_suffix(own)
    mine.write_bytes(b"mine")
    write_card(folder, checkpoint, config("ohwx"), Progress(400, 10, 0))
    assert mine.read_bytes() == b"mine"
    expected = {checkpoint.with_suffix(suffix).name for suffix in {own, *written}}
    assert set(beside(checkpoint)) == expected


def test_no_vae_is_chosen_for_the_person(folder: ModelFolder, checkpoint: Path) -> None:
    write_card(folder, checkpoint, config("ohwx"), Progress(1, 1, 0))
    assert "vae" not in json.loads(checkpoint.with_suffix(".json").read_text(encoding="utf-8"))
