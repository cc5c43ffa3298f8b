"""Every setting of a job that draws pictures, turned: the picture or its file is another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dreambooth_core.config.schema import SampleConfig
from dreambooth_core.job.workspace import ModelFolder, Workspace
from dreambooth_core.stages.sample import run
from tests.tiny import stage_context, tiny_model

PLAIN: dict[str, Any] = {"model": "tiny", "prompts": ["a man"], "steps": 2, "cfg_scale": 3.0}


def draw(workspace: Workspace, name: str, **changes: Any) -> np.ndarray[Any, Any]:
    """The first picture that is drawn with some settings changed."""
    config = SampleConfig(**{**PLAIN, "output": str(workspace.root / name), **changes})
    with Image.open(run(config, stage_context(workspace))["pictures"][0]) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.turns(
    "sample.model",
    "sample.prompts",
    "sample.negative_prompt",
    "sample.steps",
    "sample.cfg_scale",
    "sample.sampler",
    "sample.seed",
)
def test_every_setting_changes_the_picture(
    workspace: Workspace, tiny_model_folder: ModelFolder
) -> None:
    assert tiny_model_folder.exists()
    tiny_model(workspace, "other", seed=5)
    pictures = [draw(workspace, "plain")]
    assert np.abs(draw(workspace, "again") - pictures[0]).max() <= 1
    turned: list[dict[str, Any]] = [
        {"model": "other"},
        {"prompts": ["a dog"]},
        {"negative_prompt": "a cat"},
        {"steps": 4},
        {"cfg_scale": 9.0},
        {"sampler": "euler_a"},
        {"seed": 1},
    ]
    for number, changes in enumerate(turned):
        picture = draw(workspace, str(number), **changes)
        assert all(np.abs(picture - other).max() > 1 for other in pictures), changes
        pictures.append(picture)


@pytest.mark.turns("sample.count")
def test_count_is_how_many_pictures_a_prompt_has(
    workspace: Workspace, tiny_model_folder: ModelFolder
) -> None:
    assert tiny_model_folder.exists()
    for count in (1, 3):
        output = workspace.root / f"count {count}"
        config = SampleConfig(**{**PLAIN, "output": str(output), "count": count})
        assert len(run(config, stage_context(workspace))["pictures"]) == count
        assert len([*Path(output).glob("*.png")]) == count
