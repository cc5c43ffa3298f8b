"""What is wrong with the settings of captions is told before work starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.config.rules.captions import check_captions
from dreambooth_core.config.schema import Concept, TrainConfig


def problems(length: int = 0, **concept: Any) -> list[str]:
    """The fields that are complained about."""
    config = TrainConfig(model="tiny", concepts=[Concept(instance_folder="pictures", **concept)])
    config.captions.max_token_length = length
    return [problem.field for problem in check_captions(config)]


@pytest.mark.parametrize("length", [0, 75, 150, 225, 300])
def test_whole_chunks_are_fine(length: int) -> None:
    assert problems(length) == []


def test_a_length_between_chunks_is_refused() -> None:
    assert problems(100) == ["captions.max_token_length"]


def test_a_template_file_must_be_there_and_hold_prompts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    assert problems(prompt_templates=str(file)) == ["concepts.0.prompt_templates"]
    file.write_text("")
    assert problems(prompt_templates=str(file)) == ["concepts.0.prompt_templates"]
    file.write_text("a photo")
    assert problems(prompt_templates=str(file)) == []


def test_a_name_needs_a_token(tmp_path: Path) -> None:
    """Which the folders' names may give."""
    file = tmp_path / "prompts.txt"
    file.write_text("a photo of [name]")
    assert problems(prompt_templates=str(file)) == ["concepts.0.prompt_templates"]
    assert problems(prompt_templates=str(file), instance_token="zwx") == []
    assert problems(prompt_templates=str(file), folder_names=True) == []
    assert problems(instance_prompt="[name]") == ["concepts.0.instance_prompt"]
    assert problems(instance_prompt="[name]", instance_token="zwx") == []
