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
    differences,
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
    assert {"Face", "Style", "Object", "8 GB", "12 GB", "24 GB", "Built-in example"} <= set(names)
    guides = [preset for preset in BUILT_IN if preset.name.startswith("Guide: ")]
    assert len(guides) == 6
    sources = (
        "blog of Hugging Face",
        "nitrosocke",
        "rentry.org",
        "kohya",
        "sd_dreambooth_extension",
    )
    assert all(any(source in preset.description for source in sources) for preset in guides)
    assert len({*names}) == len(names)
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
    assert {path.replace("concepts.0.", "concepts.") for path in changed} <= set(preset.settings)
    assert after.concepts[0].instance_folder == before.concepts[0].instance_folder
    assert after.saving.name == "mine"
    assert not differences(preset, after)


def test_defaults_undo_everything_but_what_is_personal(tmp_path: Path) -> None:
    changed = config(tmp_path)
    for preset in BUILT_IN[1:]:
        changed = apply_preset(preset, changed)
    assert difference(config(tmp_path), changed)
    undone = apply_preset(BUILT_IN[0], changed)
    undone.concepts = config(tmp_path).concepts
    assert undone == config(tmp_path)
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
        ({"version": 2}, "its format is 2"),
        ({"name": " "}, "no name"),
        ({"name": 5}, "no name"),
        ({"settings": {"optimizer.nam": "lion"}}, "optimizer.name"),
        ({"settings": {"optimizer.name": "magic"}}, "lion"),
        ({"settings": {"intervals.epochs": -1}}, "at least 0"),
        ({"settings": {"intervals.epochs": "many"}}, "whole number"),
        ({"settings": {"optimizer": {"name": "lion"}}}, "group of settings"),
        ({"settings": {"model": "x"}}, "does not belong"),
        ({"settings": {"concepts.0.instance_folder": "/etc"}}, "does not belong"),
        ({"settings": {"concepts.instance_folder": "/etc"}}, "does not belong"),
        ({"settings": {"concepts.class_token": "dog"}}, "does not belong"),
        ({"settings": {"concepts.class_steps": 0}}, "at least 1"),
        ({"settings": {"concepts.class_sampler": "magic"}}, "ddim"),
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


def test_what_a_preset_says_of_concepts_goes_into_each() -> None:
    preset = Preset("x", "", {"concepts.class_steps": 9, "seed": 5})
    one, two = Concept(instance_folder="a"), Concept(instance_folder="b", class_token="cat")
    made = apply_preset(preset, TrainConfig(model="m", concepts=[one, two]))
    assert [(c.instance_folder, c.class_steps) for c in made.concepts] == [("a", 9), ("b", 9)]
    first = apply_preset(preset, TrainConfig(model="m"))
    assert [(c.instance_folder, c.class_steps) for c in first.concepts] == [("", 9)]
    changed = apply_preset(Preset("y", "", {"concepts.class_steps": 7}), made)
    told = [(change.path, change.before, change.after) for change in differences(preset, changed)]
    assert told == [("concepts.0.class_steps", "9", "7"), ("concepts.1.class_steps", "9", "7")]


def test_the_guides_are_as_their_sources_say() -> None:
    by_name = {preset.name: preset.settings for preset in BUILT_IN}
    face, photo = by_name["Guide: face"], by_name["Guide: photos of a person"]
    assert (face["learning_rate.unet"], face["intervals.max_steps"]) == (1e-6, 1200)
    assert face["batch.batch_size"] == 2 and face["concepts.class_images_per_instance_image"]
    thing = by_name["Guide: object"]
    assert (thing["learning_rate.unet"], thing["intervals.max_steps"]) == (2e-6, 400)
    assert (photo["optimizer.name"], photo["learning_rate.unet"]) == ("lion", 1e-7)
    assert photo["ema.enabled"] and photo["precision.mixed_precision"] == "bf16"
    assert photo["concepts.class_images_per_instance_image"] == 100
    style, character = by_name["Guide: style"], by_name["Guide: character with tags"]
    assert style["concepts.class_sampler"] == "ddim"
    assert (character["optimizer.name"], character["learning_rate.unet"]) == ("adamw_8bit", 1e-6)
    assert character["concepts.instance_prompt"] == "[filewords]"
    lora = by_name["Guide: SDXL LoRA with captions"]
    assert (lora["lora.unet_learning_rate"], lora["lora.text_encoder_learning_rate"]) == (
        4e-4,
        4e-5,
    )
    assert (lora["lora.rank"], lora["optimizer.name"]) == (128, "adafactor")
    assert lora["learning_rate.schedule"] == "cosine_with_restarts"
