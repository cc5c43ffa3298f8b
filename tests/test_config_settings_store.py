"""Settings kept per model, and the differences between two sets of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth_core import demo
from dreambooth_core.config.schema import Concept, TrainConfig
from dreambooth_core.config.settings_store import (
    NOTHING,
    concept_title,
    difference,
    keep_settings,
    kept_settings,
    plain_specs,
    shown,
    value_at,
)
from dreambooth_core.errors import ConfigError, InputError, ModelNotFoundError
from dreambooth_core.job.workspace import ModelFolder, ModelInfo, Workspace


def model(workspace: Workspace, name: str = "ada") -> ModelFolder:
    folder = workspace.model(name)
    folder.write_info(ModelInfo(name=name, family="sd1", source="x.safetensors"))
    return folder


def test_settings_come_back_as_they_were(workspace: Workspace) -> None:
    folder = model(workspace)
    assert kept_settings(folder) is None
    config = demo.training_config("ada")
    keep_settings(folder, config)
    assert kept_settings(folder) == config
    assert list(folder.path.glob("*.tmp")) == []


def test_each_model_has_its_own(workspace: Workspace) -> None:
    ada, bob = model(workspace), model(workspace, "bob")
    keep_settings(ada, TrainConfig(model="ada", seed=1))
    keep_settings(bob, TrainConfig(model="bob", seed=2))
    assert [kept_settings(folder).seed for folder in (ada, bob)] == [1, 2]  # type: ignore[union-attr]


def test_a_renamed_folder_takes_its_settings_along(workspace: Workspace) -> None:
    folder = model(workspace)
    keep_settings(folder, TrainConfig(model="ada"))
    folder.path.rename(workspace.models_dir / "eve")
    kept = kept_settings(workspace.model("eve"))
    assert kept is not None and kept.model == "eve"


def test_nothing_is_kept_for_a_model_that_is_not_there(workspace: Workspace) -> None:
    with pytest.raises(ModelNotFoundError):
        keep_settings(workspace.model("ghost"), TrainConfig(model="ghost"))
    assert not (workspace.models_dir / "ghost").exists()


def test_damaged_or_strange_settings_are_named_not_repaired(workspace: Workspace) -> None:
    folder = model(workspace)
    folder.settings_path.write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"settings\.json"):
        kept_settings(folder)
    folder.settings_path.write_text('{"model": "ada", "speed": 1}', encoding="utf-8")
    with pytest.raises(ConfigError, match="speed"):
        kept_settings(folder)


def test_difference_names_each_changed_setting_in_words() -> None:
    before, after = TrainConfig(model="ada"), TrainConfig(model="ada")
    assert difference(before, after) == []
    after.learning_rate.unet = 5e-6
    after.ema.enabled = False
    after.previews.prompts = ["a dog", "a cat"]
    rows = [(c.path, c.label, c.before, c.after) for c in difference(before, after)]
    assert rows == [
        ("learning_rate.unet", "Learning rate: UNet learning rate", "1e-06", "5e-06"),
        ("ema.enabled", "EMA: Use EMA", "on", "off"),
        ("previews.prompts", "Previews: Preview prompts", NOTHING, "a dog | a cat"),
    ]


def test_difference_looks_into_concepts() -> None:
    first = Concept(instance_folder="/pictures/rex", class_token="dog")
    changed = Concept(instance_folder="/pictures/rex", class_token="cat")
    before = TrainConfig(model="ada", concepts=[first])
    after = TrainConfig(model="ada", concepts=[changed, first])
    rows = [(c.label, c.before, c.after) for c in difference(before, after)]
    assert rows == [("Concept 1: Class token", "dog", "cat"), ("Concept 2", NOTHING, "dog")]
    assert difference(after, before)[-1].after == NOTHING


def test_every_setting_but_the_concepts_is_plain() -> None:
    paths = {spec.path for spec in plain_specs(TrainConfig)}
    assert "concepts" not in paths and "saving.dtype" in paths
    assert all(value_at(TrainConfig(model="x"), path) is not None for path in paths)


@pytest.mark.parametrize(
    ("value", "words"),
    [(True, "on"), (0, "0"), (2.5e-4, "0.00025"), ("", NOTHING), ([], NOTHING), ("x", "x")],
)
def test_values_are_shown_as_a_person_writes_them(value: object, words: str) -> None:
    assert shown(value) == words


def test_a_concept_is_called_by_its_tokens_or_its_folder() -> None:
    folder = str(Path("pictures", "rex"))
    assert concept_title(Concept(instance_folder=folder, instance_token="zwx")) == "zwx"
    assert concept_title(Concept(instance_folder=folder)) == "rex"
    assert concept_title(Concept(instance_folder="")) == "empty"
