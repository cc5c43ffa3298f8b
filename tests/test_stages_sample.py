"""Pictures on request: which weights, how many, where to, going on after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth_core.config.schema import SampleConfig
from dreambooth_core.errors import InputError, ModelNotFoundError
from dreambooth_core.families import load_components
from dreambooth_core.job.commands import Command, send
from dreambooth_core.job.events import Event, Notice, PhaseStarted, SampleSaved
from dreambooth_core.job.workspace import ModelFolder, Workspace
from dreambooth_core.stages.sample import run
from dreambooth_core.stages.saved_states import Progress
from dreambooth_core.stages.training_state import TrainingState, save_state
from tests.tiny import stage_context, write_tiny_checkpoint


def config(**changes: Any) -> SampleConfig:
    settings: dict[str, Any] = {
        "model": "tiny",
        "prompts": ["a man", "a dog"],
        "steps": 2,
        "cfg_scale": 3.0,
        "count": 2,
        **changes,
    }
    return SampleConfig(**settings)


def levels(path: str | Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def put_state(folder: ModelFolder, factor: float, ema_factor: float) -> None:
    """A training state whose UNet is the base's times a factor."""
    unet = load_components(folder).unet

    def scaled(by: float, prefix: str = "") -> dict[str, torch.Tensor]:
        return {prefix + key: tensor.detach() * by for key, tensor in unet.named_parameters()}

    state = TrainingState(
        progress=Progress(step=12),
        seed=1,
        settings={},
        weights={"unet": scaled(factor)},
        ema=scaled(ema_factor, "unet."),
        optimizer={},
    )
    save_state(folder, "run-1", state)


@pytest.mark.turns(
    "sample.prompts", "sample.negative_prompt", "sample.count", "sample.steps", "sample.cfg_scale"
)
def test_every_prompt_is_drawn_as_often_as_asked(
    workspace: Workspace, tiny_model_folder: ModelFolder
) -> None:
    events: list[Event] = []
    summary = run(config(negative_prompt="blurry"), stage_context(workspace, events))
    assert [Path(path).name for path in summary["pictures"]] == [f"{n:05d}.png" for n in range(4)]
    assert summary["folder"] == str(tiny_model_folder.samples_dir) and summary["new"] == 4
    saved = [event for event in events if isinstance(event, SampleSaved)]
    assert [event.seed for event in saved] == [420420, 420421, 420422, 420423]
    assert [event.prompt for event in saved] == ["a man", "a man", "a dog", "a dog"]
    assert PhaseStarted("samples", 4, "pictures") in events
    with Image.open(summary["pictures"][2]) as image:
        assert image.size == (64, 64)
        assert image.info["parameters"] == (
            "a dog\nNegative prompt: blurry\nSteps: 2, Sampler: DPM++ 2M, CFG scale: 3,"
            " Seed: 420422, Size: 64x64, Model: tiny"
        )


@pytest.mark.turns("sample.width", "sample.height", "sample.seed", "sample.output")
def test_size_folder_and_seed_are_as_asked(
    workspace: Workspace, tiny_model_folder: ModelFolder, tmp_path: Path
) -> None:
    output = tmp_path / "out" / "here"
    asked = config(width=128, height=64, seed=7, output=str(output), prompts=["a man"], count=1)
    summary = run(asked, stage_context(workspace))
    assert [path.parent for path in map(Path, summary["pictures"])] == [output]
    with Image.open(summary["pictures"][0]) as image:
        assert image.size == (128, 64) and "Seed: 7," in image.info["parameters"]
    assert not tiny_model_folder.samples_dir.exists()


@pytest.mark.turns("sample.batch_size")
def test_pictures_do_not_depend_on_the_batch_size(
    workspace: Workspace, tiny_model_folder: ModelFolder, tmp_path: Path
) -> None:
    assert tiny_model_folder.exists()
    one = run(config(batch_size=1, output=str(tmp_path / "1")), stage_context(workspace))
    four = run(config(batch_size=4, output=str(tmp_path / "4")), stage_context(workspace))
    for a, b in zip(one["pictures"], four["pictures"], strict=True):
        assert np.abs(levels(a) - levels(b)).max() <= 1


def test_what_is_there_is_kept_and_the_rest_is_drawn(
    workspace: Workspace, tiny_model_folder: ModelFolder
) -> None:
    first = run(config(), stage_context(workspace))["pictures"]
    before = [levels(path) for path in first]
    Path(first[1]).unlink()
    Path(first[3]).write_bytes(Path(first[3]).read_bytes()[:-10])
    foreign = tiny_model_folder.samples_dir / "00004.png"
    Image.new("RGB", (4, 4)).save(foreign)
    events: list[Event] = []
    summary = run(config(), stage_context(workspace, events))
    assert summary["new"] == 2 and Notice("info", "2 of the pictures were there.") in events
    assert len([event for event in events if isinstance(event, SampleSaved)]) == 2
    after = [levels(path) for path in summary["pictures"]]
    assert all(np.abs(a - b).max() <= 1 for a, b in zip(before, after, strict=True))
    assert summary["pictures"][0] == first[0] and str(foreign) not in summary["pictures"]


def test_a_stop_keeps_what_is_drawn(workspace: Workspace, tiny_model_folder: ModelFolder) -> None:
    context = stage_context(workspace)
    send(context.folder, Command("stop"))
    summary = run(config(), context)
    assert summary["stopped"] is True and len(summary["pictures"]) == 1
    assert len(list(tiny_model_folder.samples_dir.iterdir())) == 1
    assert "stopped" not in run(config(), context)


@pytest.mark.turns("sample.use_ema")
def test_the_newest_state_is_used_and_its_average_if_asked(
    workspace: Workspace, tiny_model_folder: ModelFolder, tmp_path: Path
) -> None:
    def drawn(name: str, **changes: Any) -> tuple[np.ndarray[Any, Any], str]:
        asked = config(prompts=["a man"], count=1, output=str(tmp_path / name), **changes)
        summary = run(asked, stage_context(workspace))
        return levels(summary["pictures"][0]), summary["weights"]

    base, base_name = drawn("base")
    put_state(tiny_model_folder, factor=1.0, ema_factor=0.8)
    live, live_name = drawn("live", use_ema=False)
    average, average_name = drawn("average")
    assert base_name == "tiny" and live_name == "tiny run-1 step 12"
    assert average_name == "tiny run-1 step 12 EMA"
    assert np.abs(base - live).max() <= 1
    assert np.abs(base - average).max() > 3


@pytest.mark.turns("sample.checkpoint")
def test_a_named_checkpoint_is_used(
    workspace: Workspace, tiny_model_folder: ModelFolder, tmp_path: Path
) -> None:
    put_state(tiny_model_folder, factor=0.8, ema_factor=0.8)
    other = write_tiny_checkpoint(workspace.checkpoints_dir / "other.safetensors", seed=3)
    asked = config(prompts=["a man"], count=1, output=str(tmp_path / "a"))
    state = run(asked, stage_context(workspace))
    asked = config(prompts=["a man"], count=1, output=str(tmp_path / "b"), checkpoint="other")
    summary = run(asked, stage_context(workspace))
    assert summary["weights"] == other.stem
    assert np.abs(levels(state["pictures"][0]) - levels(summary["pictures"][0])).max() > 3


@pytest.mark.turns("sample.model")
def test_what_cannot_be_drawn_is_refused(
    workspace: Workspace, tiny_model_folder: ModelFolder
) -> None:
    assert tiny_model_folder.exists()
    with pytest.raises(InputError, match="nothing to draw"):
        run(config(prompts=["  "]), stage_context(workspace))
    with pytest.raises(ModelNotFoundError, match="nobody"):
        run(config(model="nobody"), stage_context(workspace))
    with pytest.raises(InputError, match="absent"):
        run(config(checkpoint="absent"), stage_context(workspace))
    with pytest.raises(InputError, match="width of 65"):
        run(config(width=65), stage_context(workspace))
