"""Presets: those that come along are usable, own ones go out and in again unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core import demo
from dreambooth_core.config.presets import (
    FORMAT,
    MAX_FILE_BYTES,
    PERSONAL,
    Preset,
    apply_preset,
    built_in_presets,
    delete_preset,
    export_preset,
    find_preset,
    import_preset,
    own_presets,
    preset_of,
    read_preset,
    save_preset,
)
from dreambooth_core.config.schema import Concept, TrainConfig
from dreambooth_core.config.settings_store import difference, plain_specs
from dreambooth_core.config.validate import check
from dreambooth_core.errors import ConfigError, InputError
from dreambooth_core.job.workspace import Workspace

BUILT_IN = built_in_presets()


def config(tmp_path: Path) -> TrainConfig:
    (tmp_path / "a.png").write_bytes(b"x")
    concept = Concept(instance_folder=str(tmp_path), class_token="dog")
    made = TrainConfig(model="ada", concepts=[concept])
    made.precision.device = "cpu"
    made.saving.name = "mine"
    return made


def preset_file(path: Path, **changes: Any) -> Path:
    values = {"format": FORMAT, "version": 1, "name": "theirs", "settings": {}, **changes}
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def test_there_are_presets_for_the_usual_cases() -> None:
    names = [preset.name for preset in BUILT_IN]
    assert names[0] == "Defaults"
    assert {"Face", "Style", "Object", "Low memory", "Built-in example"} <= set(names)
    assert all(preset.description and preset.settings and preset.built_in for preset in BUILT_IN)


@pytest.mark.parametrize("preset", BUILT_IN, ids=lambda preset: preset.name)
def test_a_built_in_preset_makes_settings_that_can_be_trained(
    preset: Preset, tmp_path: Path
) -> None:
    before = config(tmp_path)
    before.precision.device = "auto"  # fp16 is refused on a processor
    after = apply_preset(preset, before)
    check(after, None)
    changed = {change.path for change in difference(before, after)}
    assert changed <= set(preset.settings)
    assert after.concepts == before.concepts and after.saving.name == "mine"


def test_defaults_undo_everything_but_what_is_personal(tmp_path: Path) -> None:
    changed = config(tmp_path)
    for preset in BUILT_IN[1:]:
        changed = apply_preset(preset, changed)
    assert difference(config(tmp_path), changed)
    assert apply_preset(BUILT_IN[0], changed) == config(tmp_path)
    plain = {spec.path for spec in plain_specs(TrainConfig)}
    assert set(BUILT_IN[0].settings) == plain - set(PERSONAL)


def test_the_example_preset_is_the_demos_training() -> None:
    preset = find_preset(Workspace(Path("nowhere")), "Built-in example")
    made = apply_preset(preset, TrainConfig(model="x", concepts=[demo.concept()]))
    assert made == demo.training_config("x")


def test_an_own_preset_is_found_again_and_can_be_deleted(workspace: Workspace) -> None:
    settings = TrainConfig(model="ada")
    settings.learning_rate.unet = 3e-6
    path = save_preset(workspace, preset_of(settings, "mine", "for dogs"))
    assert path.parent == workspace.presets_dir
    found = find_preset(workspace, "mine")
    assert found.description == "for dogs" and not found.built_in
    assert apply_preset(found, TrainConfig(model="bob")).learning_rate.unet == 3e-6
    assert not set(found.settings) & set(PERSONAL)
    delete_preset(workspace, "mine")
    assert own_presets(workspace) == ([], [])


def test_saving_again_replaces_the_own_one_but_never_a_built_in_one(workspace: Workspace) -> None:
    for epochs in (10, 20):
        settings = TrainConfig(model="ada")
        settings.intervals.epochs = epochs
        save_preset(workspace, preset_of(settings, "mine"))
    assert find_preset(workspace, "mine").settings["intervals.epochs"] == 20
    with pytest.raises(InputError, match="built-in"):
        save_preset(workspace, preset_of(TrainConfig(model="ada"), "fAcE"))


@pytest.mark.parametrize("name", ["", " ", "../up", "a/b", "con", ".hidden", "x" * 101])
def test_a_name_that_is_no_files_name_is_refused(name: str, workspace: Workspace) -> None:
    with pytest.raises(InputError, match="preset name"):
        save_preset(workspace, preset_of(TrainConfig(model="ada"), name))
    with pytest.raises(InputError):
        delete_preset(workspace, name)
    assert not workspace.presets_dir.exists()


def test_an_exported_preset_can_be_imported_elsewhere(workspace: Workspace, tmp_path: Path) -> None:
    settings = TrainConfig(model="ada")
    settings.loss.min_snr_gamma = 5.0
    sent = preset_of(settings, "täglich & <b>", "made by me")
    with pytest.raises(InputError):
        export_preset(sent, tmp_path)  # such a name could not be a file's on Windows
    sent = preset_of(settings, "täglich & co", "made by me")
    path = export_preset(sent, tmp_path)
    taken = import_preset(workspace, path)
    assert taken == sent == find_preset(workspace, "täglich & co")
    with pytest.raises(InputError, match="already"):
        import_preset(workspace, path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "something"}, "is not a preset"),
        ({"settings": [1]}, "is not a preset"),
        ({"version": 2}, "version 2"),
        ({"name": " "}, "no name"),
        ({"name": 5}, "no name"),
        ({"settings": {"optimizer.nam": "lion"}}, "optimizer.name"),
        ({"settings": {"optimizer.name": "sgd"}}, "lion, adamw"),
        ({"settings": {"intervals.epochs": 0}}, "at least 1"),
        ({"settings": {"intervals.epochs": "many"}}, "whole number"),
        ({"settings": {"optimizer": {"name": "lion"}}}, "group of settings"),
        ({"settings": {"model": "x"}}, "does not belong"),
        ({"settings": {"concepts.0.instance_folder": "/etc"}}, "does not belong"),
        ({"settings": {"saving.subfolder": "../up"}}, "does not belong"),
    ],
)
def test_a_file_that_is_no_preset_is_refused_with_the_reason(
    changes: dict[str, Any], words: str, workspace: Workspace, tmp_path: Path
) -> None:
    path = preset_file(tmp_path / "theirs.json", **changes)
    with pytest.raises((InputError, ConfigError), match=words):
        import_preset(workspace, path)
    assert own_presets(workspace)[0] == []


def test_a_huge_file_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    path.write_bytes(b" " * (MAX_FILE_BYTES + 1))
    with pytest.raises(InputError, match="too large"):
        read_preset(path)


def test_a_damaged_own_preset_does_not_hide_the_others(workspace: Workspace) -> None:
    save_preset(workspace, preset_of(TrainConfig(model="ada"), "good"))
    (workspace.presets_dir / "bad.json").write_text("{", encoding="utf-8")
    found, problems = own_presets(workspace)
    assert [preset.name for preset in found] == ["good"]
    assert "bad.json" in str(problems[0])


def test_an_unknown_preset_names_those_there_are(workspace: Workspace) -> None:
    with pytest.raises(InputError, match="Style"):
        find_preset(workspace, "nope")
