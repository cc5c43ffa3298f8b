"""What a training run writes while it goes and at its end: checkpoints, states and previews."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dreambooth_core.checkpoint.file import CheckpointReader
from dreambooth_core.job.events import CheckpointSaved, SampleSaved, StateSaved
from tests.trainings import Trained, Trainings, merged, trainings_in

TWO_EPOCHS: dict[str, Any] = {"intervals": {"epochs": 2}, "batch": {"batch_size": 2}}
"""Four steps of two pictures."""
ONE_STEP: dict[str, Any] = {"intervals": {"max_steps": 1}, "batch": {"batch_size": 2}}
SAVED_KEY = "model.diffusion_model.input_blocks.0.0.weight"
TRAINED_KEY = "conv_in.weight"


@pytest.fixture(scope="module")
def trainings(module_folder: Path, _created_model: Path) -> Trainings:
    """One workspace with a tiny model for all tests of this module."""
    return trainings_in(module_folder, _created_model)


def saved_steps(run: Trained) -> list[int]:
    """The steps after which a checkpoint was written."""
    return [event.step for event in run.events_of(CheckpointSaved)]


# -- checkpoints


@pytest.mark.turns(
    "train.saving.save_every_steps", "train.saving.save_every_epochs", "train.saving.save_at_end"
)
@pytest.mark.parametrize(
    ("saving", "expected"),
    [
        ({"save_every_steps": 3}, [3]),
        ({"save_every_epochs": 1}, [2, 4]),
        ({"save_every_steps": 3, "save_at_end": True}, [3, 4]),
        ({"save_every_epochs": 1, "save_at_end": True}, [2, 4]),
        ({}, []),
    ],
    ids=["steps", "epochs", "steps and end", "epochs and end", "none"],
)
def test_checkpoints_are_saved_when_asked_for(
    trainings: Trainings, saving: dict[str, Any], expected: list[int]
) -> None:
    name = "-".join(saving) or "none"
    settings = {**TWO_EPOCHS, "saving": {"save_at_end": False, **saving, "name": name}}
    run = trainings.run(settings, name)
    assert saved_steps(run) == expected
    paths = [
        trainings.workspace.checkpoints_dir / f"{name}_{step}.safetensors" for step in expected
    ]
    assert run.summary["checkpoints"] == [str(path) for path in paths]
    assert all(path.is_file() for path in paths)


@pytest.mark.turns("train.saving.name", "train.saving.subfolder")
def test_a_checkpoint_goes_where_its_name_and_subfolder_say(trainings: Trainings) -> None:
    saving = {"save_at_end": True, "name": "my dog", "subfolder": "dogs"}
    run = trainings.run({**ONE_STEP, "saving": saving}, "named")
    (event,) = run.events_of(CheckpointSaved)
    path = trainings.workspace.checkpoints_dir / "dogs" / "my dog_1.safetensors"
    assert event.path == str(path)
    assert event.size == path.stat().st_size
    assert event.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert str(path) in trainings.workspace.model("tiny").read_info().checkpoints


def _saved(run: Trained) -> tuple[torch.Tensor, dict[str, str]]:
    with CheckpointReader(Path(run.summary["checkpoints"][0])) as reader:
        return reader.read(SAVED_KEY), dict(reader.header.metadata)


@pytest.mark.turns("train.saving.dtype")
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("fp16", torch.float16), ("bf16", torch.bfloat16), ("source", torch.float16)],
)
def test_a_checkpoint_has_the_number_format_asked_for(
    trainings: Trainings, dtype: str, expected: torch.dtype
) -> None:
    saving = {"save_at_end": True, "dtype": dtype, "name": dtype}
    run = trainings.run({**ONE_STEP, "saving": saving}, dtype)
    assert _saved(run)[0].dtype == expected


@pytest.mark.turns("train.saving.use_ema")
@pytest.mark.parametrize("averaged", [True, False])
def test_a_checkpoint_has_the_average_or_the_last_weights(
    trainings: Trainings, averaged: bool
) -> None:
    saving = {"save_at_end": True, "dtype": "fp32", "use_ema": averaged, "name": f"ema {averaged}"}
    run = trainings.run({**ONE_STEP, "saving": saving}, f"ema {averaged}")
    assert run.state is not None
    average = run.state.ema[f"unet.{TRAINED_KEY}"]
    live = run.state.weights["unet"][TRAINED_KEY]
    assert not torch.equal(average, live)
    tensor, metadata = _saved(run)
    assert torch.equal(tensor, average if averaged else live)
    assert metadata["dreambooth.ema"] == ("true" if averaged else "false")
    assert metadata["dreambooth.step"] == "1"
    assert metadata["modelspec.trigger_phrase"] == "zwx"


def test_without_ema_a_checkpoint_has_the_last_weights(trainings: Trainings) -> None:
    saving = {"save_at_end": True, "dtype": "fp32", "name": "no ema"}
    run = trainings.run({**ONE_STEP, "saving": saving, "ema": {"enabled": False}}, "no ema")
    tensor, metadata = _saved(run)
    assert torch.equal(tensor, run.weights["unet"][TRAINED_KEY])
    assert metadata["dreambooth.ema"] == "false"


def test_saving_does_not_disturb_the_training(trainings: Trainings) -> None:
    quiet = trainings.run(TWO_EPOCHS, "quiet")
    previews = {"every_steps": 1, "prompts": ["a dog"], "steps": 1}
    saving = {"save_every_steps": 1, "state_every_epochs": 1, "name": "busy"}
    busy = trainings.run({**TWO_EPOCHS, "previews": previews, "saving": saving}, "busy")
    assert busy.losses == quiet.losses
    assert torch.equal(busy.weights["unet"][TRAINED_KEY], quiet.weights["unet"][TRAINED_KEY])


# -- states


def state_steps(run: Trained) -> list[int]:
    """The steps after which a state was written."""
    return [event.step for event in run.events_of(StateSaved)]


@pytest.mark.turns("train.saving.state_every_epochs")
def test_a_state_is_written_at_the_end_and_after_epochs(trainings: Trainings) -> None:
    assert state_steps(trainings.run(TWO_EPOCHS, "states")) == [4]
    run = trainings.run({**TWO_EPOCHS, "saving": {"state_every_epochs": 1}}, "states by epoch")
    assert state_steps(run) == [2, 4]


@pytest.mark.turns("train.saving.keep_states")
@pytest.mark.parametrize("kept", [1, 2])
def test_only_so_many_states_are_kept(trainings: Trainings, kept: int) -> None:
    changes = {"batch": {"batch_size": 4}, "intervals": {"epochs": 3}}
    saving = {"state_every_epochs": 1, "keep_states": kept}
    run = trainings.run(merged(changes, {"saving": saving}), f"keep {kept}")
    assert state_steps(run) == [1, 2, 3]
    names = sorted(path.name for path in run.states.iterdir())
    assert names == ["step_00000001", "step_00000002", "step_00000003"][-kept:]


# -- previews

PREVIEWS: dict[str, Any] = {"every_steps": 1, "prompts": ["a dog"], "steps": 1, "cfg_scale": 1.0}


def preview(trainings: Trainings, name: str, **changes: Any) -> tuple[bytes, str]:
    """The pixels and the text of the preview after one step."""
    run = trainings.run({**ONE_STEP, "previews": {**PREVIEWS, **changes}}, f"preview {name}")
    (event,) = run.events_of(SampleSaved)
    with Image.open(event.path) as image:
        return image.tobytes(), str(image.info["parameters"])


@pytest.mark.turns("train.previews.prompts", "train.previews.seed")
def test_previews_are_made_of_every_prompt_with_seeds_of_their_own(trainings: Trainings) -> None:
    previews = {**PREVIEWS, "prompts": ["a dog", " "], "seed": 5}
    concept = {"sample_prompts": ["zwx dog"]}
    run = trainings.run({**ONE_STEP, "previews": previews, "concept": concept}, "previews")
    events = run.events_of(SampleSaved)
    assert [(e.prompt, e.seed, e.step) for e in events] == [("a dog", 5, 1), ("zwx dog", 6, 1)]
    folder = trainings.workspace.model("tiny").samples_dir / "previews"
    names = ["step_00000001_00.png", "step_00000001_01.png"]
    assert [event.path for event in events] == [str(folder / name) for name in names]
    with Image.open(events[0].path) as image:
        assert image.size == (64, 64)


@pytest.mark.turns("train.previews.every_steps", "train.previews.every_epochs")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"every_steps": 3}, [3]), ({"every_steps": 0, "every_epochs": 1}, [2, 4])],
)
def test_previews_come_every_so_many_steps_or_epochs(
    trainings: Trainings, changes: dict[str, int], expected: list[int]
) -> None:
    name = f"every {'-'.join(changes)}"
    run = trainings.run({**TWO_EPOCHS, "previews": {**PREVIEWS, **changes}}, name)
    assert [event.step for event in run.events_of(SampleSaved)] == expected


def test_a_preview_says_how_it_was_made(trainings: Trainings) -> None:
    text = preview(trainings, "text", negative_prompt="blurry", sampler="euler", seed=9)[1]
    assert text.splitlines()[:2] == ["a dog", "Negative prompt: blurry"]
    for part in ("Steps: 1", "Sampler: Euler", "CFG scale: 1", "Seed: 9", "Model: tiny_1"):
        assert part in text


@pytest.mark.turns(
    "train.previews.use_ema",
    "train.previews.seed",
    "train.previews.steps",
    "train.previews.cfg_scale",
    "train.previews.negative_prompt",
    "train.previews.sampler",
    "train.previews.prompts",
)
@pytest.mark.parametrize(
    "changes",
    [
        {"use_ema": False},
        {"seed": 1},
        {"steps": 2},
        {"cfg_scale": 9.0},
        {"cfg_scale": 9.0, "negative_prompt": "red"},
        {"sampler": "euler_a", "steps": 2},
        {"prompts": ["a cat"]},
    ],
    ids=["ema", "seed", "steps", "cfg", "negative", "sampler", "prompt"],
)
def test_every_preview_setting_changes_the_picture(
    trainings: Trainings, changes: dict[str, Any], plain_previews: set[bytes]
) -> None:
    pixels = preview(trainings, "-".join(changes), **changes)[0]
    assert pixels not in plain_previews
    plain_previews.add(pixels)


@pytest.fixture(scope="module")
def plain_previews(trainings: Trainings) -> set[bytes]:
    """The pictures seen so far, the one without changes first."""
    return {preview(trainings, "plain")[0]}
