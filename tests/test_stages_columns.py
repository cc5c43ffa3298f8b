"""The prompts of a comparison: as asked, else from the last training's concepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.config.schema import CompareConfig, Concept, SampleConfig, TrainConfig
from dreambooth_core.errors import InputError
from dreambooth_core.job.runs import Run, create_run_folder, write_run
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.stages.columns import (
    Column,
    comparison_columns,
    concept_columns,
    last_concepts,
)


def concept(**changes: Any) -> Concept:
    settings: dict[str, Any] = {
        "instance_folder": "somewhere",
        "instance_prompt": "[filewords]",
        "class_prompt": "[filewords]",
        "instance_token": "zwx",
        "class_token": "man",
        **changes,
    }
    return Concept(**settings)


def remember(workspace: Workspace, kind: str, config: Any) -> None:
    folder = create_run_folder(workspace, kind)
    write_run(folder, Run(folder.name, kind, workspace.root, config))


def test_a_concept_gives_the_subject_a_new_setting_and_its_class() -> None:
    assert concept_columns(concept(), "in snow") == [
        Column("zwx man", "the subject", has_token=True),
        Column("zwx man in snow", "in a new setting", has_token=True),
        Column("man", "its class alone"),
    ]


def test_prompts_with_words_of_their_own_are_kept() -> None:
    own = concept(instance_prompt="a photo of zwx man", class_prompt="a photo of a man")
    prompts = [column.prompt for column in concept_columns(own)]
    assert prompts == ["a photo of zwx man", "a photo of zwx man at the beach", "a photo of a man"]


def test_a_concept_without_words_gives_no_empty_prompts() -> None:
    assert concept_columns(concept(instance_token="", class_token="")) == []
    assert [c.prompt for c in concept_columns(concept(instance_token=""))] == ["man"]
    assert len(concept_columns(concept(class_token=""))) == 2


def test_asked_prompts_win_and_the_token_is_found_in_them() -> None:
    asked = CompareConfig(model="m", prompts=["a zwx man at night", "a man", " ", "zwxy"])
    columns = comparison_columns(asked, [concept()])
    assert [column.prompt for column in columns] == ["a zwx man at night", "a man", "zwxy"]
    assert [column.has_token for column in columns] == [True, False, False]
    assert columns[0].note == "with the token" and columns[1].note == "without the token"
    assert [c.has_token for c in comparison_columns(asked, [], ["man"])] == [True, True, False]
    assert comparison_columns(asked, [])[0] == Column("a zwx man at night")


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to draw"):
        comparison_columns(CompareConfig(model="m"), [])


def test_the_heading_says_what_a_column_is_for() -> None:
    assert Column("a man", "its class alone").heading == "a man (its class alone)"
    assert Column("a man").heading == "a man"


def test_the_last_training_is_the_one_of_this_model(workspace: Workspace, tmp_path: Path) -> None:
    assert last_concepts(workspace, "m") == []
    remember(workspace, "train", TrainConfig(model="m", concepts=[concept(class_token="cat")]))
    remember(workspace, "train", TrainConfig(model="m", concepts=[concept(class_token="dog")]))
    remember(workspace, "train", TrainConfig(model="other", concepts=[concept()]))
    remember(workspace, "sample", SampleConfig(model="m", prompts=["x"]))
    assert [one.class_token for one in last_concepts(workspace, "m")] == ["dog"]
