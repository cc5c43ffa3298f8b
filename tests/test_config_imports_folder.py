"""Another trainer's model folder: what is found in it, and a new model made of its weights."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth_core.config.imports import read_import
from dreambooth_core.config.imports.creating import creation
from dreambooth_core.config.imports.d8ahazard_folder import settings_file, snapshots
from dreambooth_core.config.imports.report import AS_IT_WAS, AS_LABELLED, YOURS, Import
from dreambooth_core.config.schema import CreateConfig
from dreambooth_core.config.serialize import with_absolute_paths
from dreambooth_core.config.settings_store import kept_settings
from dreambooth_core.config.validate import validate
from dreambooth_core.errors import InputError
from dreambooth_core.job.checkpoint_files import is_diffusers_model, is_weights_snapshot
from dreambooth_core.job.workspace import ModelFolder, Workspace
from dreambooth_core.stages import create
from tests.tiny import stage_context

UNET = Path("unet", "diffusion_pytorch_model.safetensors")
TEXT = Path("text_encoder", "model.safetensors")
SETTINGS = {
    **{"model_name": "theirs", "learning_rate": 3e-6, "revision": "1200", "epoch": 4},
    **{"min_snr_gamma": 5, "resolution": 64},
    "concepts_list": [
        {"instance_data_dir": "/gone", "num_class_images_per": 2, "instance_token": "zwx"},
        {
            "instance_data_dir": "/gone too",
            "class_data_dir": "D:\\webui\\models\\dreambooth\\theirs\\classifiers_1",
            "num_class_images_per": 1,
        },
        {"instance_data_dir": "/third", "class_data_dir": "/own", "num_class_images_per": 1},
    ],
}


@pytest.fixture
def theirs(tiny_model_folder: ModelFolder, tmp_path: Path) -> Path:
    """A folder as the abandoned extension left it."""
    folder = tmp_path / "theirs"
    working = folder / "working"
    shutil.copytree(tiny_model_folder.path, working)
    for name in ("model.json", "layout.json", "extras.safetensors", "source.yaml"):
        (working / name).unlink()
    (folder / "db_config.json").write_text(json.dumps(SETTINGS))
    for name in ("samples", "logging", "cache", "classifiers_0", "classifiers_1"):
        (folder / name).mkdir()
        (folder / name / "x.png").write_bytes(b"x")
    return folder


def put_snapshot(folder: Path, name: str, shift: float, prefix: str = "") -> Path:
    """Write a snapshot whose UNet and text encoder differ from those of the model."""
    snapshot = folder / "checkpoints" / name
    snapshot.mkdir(parents=True)
    for file, source in (("model.safetensors", UNET), ("model_1.safetensors", TEXT)):
        tensors = load_file(folder / "working" / source)
        save_file(
            {prefix + key: moved(each, shift) for key, each in tensors.items()}, snapshot / file
        )
    (snapshot / "optimizer.bin").write_bytes(b"not read")
    return snapshot


def moved(tensor: torch.Tensor, shift: float) -> torch.Tensor:
    return tensor + shift if tensor.is_floating_point() else tensor.clone()


def digest(folder: Path) -> dict[str, tuple[int, str]]:
    """Everything about every file of a folder."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def make(workspace: Workspace, config: CreateConfig) -> ModelFolder:
    create.run(config, stage_context(workspace))
    return workspace.model(config.name)


def unet_of(model: ModelFolder) -> dict[str, torch.Tensor]:
    return load_file(model.path / UNET)


def words_of(found: Import, old: str) -> str:
    return next(line.words for line in found.lines if line.old == old)


def test_what_is_in_the_folder(theirs: Path) -> None:
    put_snapshot(theirs, "checkpoint-400", 0.1)
    put_snapshot(theirs, "checkpoint-1200", 0.1)
    (theirs / "working" / "ema_unet").mkdir()
    found = read_import(str(theirs))
    model = found.model
    assert model is not None and (model.name, model.has_ema) == ("theirs", True)
    assert (model.images_seen, model.epochs) == (1200, 4)
    assert [each.label for each in model.sources] == [
        *("The newest weights", "Snapshot checkpoint-1200", "Snapshot checkpoint-400")
    ]
    assert found.settings["learning_rate.unet"] == 3e-6
    assert "stay where they are" in words_of(found, "samples")
    assert "not taken over" in words_of(found, "checkpoints/checkpoint-400")


def test_class_images_that_were_made_there_are_used(theirs: Path) -> None:
    first, second, third = read_import(str(theirs)).concepts
    assert first["class_folder"] == str(theirs / "classifiers_0")
    assert second["class_folder"] == str(theirs / "classifiers_1")  # it was moved here
    assert third["class_folder"] == "/own"


def test_the_newest_backup_stands_in_for_the_settings(theirs: Path) -> None:
    (theirs / "backups").mkdir()
    for number in (90, 1200, 400):
        values = {**SETTINGS, "learning_rate": number * 1e-9}
        (theirs / "backups" / f"db_config_{number}.json").write_text(json.dumps(values))
    assert settings_file(theirs) == theirs / "db_config.json"
    (theirs / "db_config.json").unlink()
    found = read_import(str(theirs))
    assert found.settings["learning_rate.unet"] == pytest.approx(1.2e-6)
    assert "db_config_1200.json" in words_of(found, "db_config.json")
    shutil.rmtree(theirs / "backups")
    found = read_import(str(theirs))
    assert found.model and next(line for line in found.lines if line.verdict == YOURS)


def test_a_folder_without_a_whole_model(theirs: Path, workspace: Workspace) -> None:
    (theirs / "working" / "model_index.json").unlink()
    found = read_import(str(theirs))
    assert found.model is None and "no complete model" in words_of(found, "working/")
    with pytest.raises(InputError, match="no weights"):
        creation(found, workspace)
    (theirs / "db_config.json").write_text("[]")
    with pytest.raises(InputError, match="no settings"):
        read_import(str(theirs))


def test_a_new_model_leaves_the_folder_as_it_was(
    theirs: Path, workspace: Workspace, tiny_model_folder: ModelFolder
) -> None:
    before = digest(theirs)
    config = creation(read_import(str(theirs)), workspace)
    assert config == CreateConfig(name="theirs", source=str(theirs / "working"))
    assert not validate(config, workspace)
    model = make(workspace, config)
    assert digest(theirs) == before
    ours = unet_of(model)
    for key, tensor in unet_of(tiny_model_folder).items():
        assert torch.equal(ours[key], tensor)
    kept = kept_settings(model)
    assert kept is not None and kept.learning_rate.unet == 3e-6
    assert kept.loss.min_snr_gamma == 5.0 and len(kept.concepts) == 3
    assert creation(read_import(str(theirs)), workspace).name == "theirs-2"


def test_it_can_lie_where_our_models_do(theirs: Path, workspace: Workspace) -> None:
    inside = workspace.models_dir / "theirs"
    shutil.copytree(theirs, inside)
    config = creation(read_import(str(inside)), workspace)
    assert config.name == "theirs-2" and make(workspace, config).exists()
    assert "theirs" not in workspace.model_names()  # it is still theirs


def test_settings_that_cannot_be_read_do_not_spoil_the_model(
    theirs: Path, workspace: Workspace
) -> None:
    (theirs / "db_config.json").write_text("{")
    config = CreateConfig(name="m", source=str(theirs / "working"))
    summary = create.run(config, stage_context(workspace))
    assert "not JSON" in summary["imported"] and workspace.model("m").exists()
    assert kept_settings(workspace.model("m")) is None


@pytest.mark.parametrize(("age", "expected"), [(-100.0, 0.0), (0.5, 0.0), (100.0, 0.25)])
def test_of_two_files_the_newer_counts(
    theirs: Path, workspace: Workspace, age: float, expected: float
) -> None:
    """`age` is how much newer the .bin is; where that cannot be told, .safetensors counts."""
    path = theirs / "working" / UNET
    tensors = load_file(path)
    torch.save({key: moved(each, 0.25) for key, each in tensors.items()}, path.with_suffix(".bin"))
    now = 1_700_000_000.0
    os.utime(path, (now, now))
    os.utime(path.with_suffix(".bin"), (now + age, now + age))
    model = make(workspace, CreateConfig(name="m", source=str(theirs / "working")))
    for key, tensor in unet_of(model).items():
        assert torch.equal(tensor, moved(tensors[key], expected)), key


def test_elsewhere_the_age_of_files_means_nothing(theirs: Path, workspace: Workspace) -> None:
    """Of a download both are the same, and .safetensors is the safer one to read."""
    (theirs / "db_config.json").unlink()
    path = theirs / "working" / UNET
    tensors = load_file(path)
    torch.save({key: moved(each, 0.25) for key, each in tensors.items()}, path.with_suffix(".bin"))
    os.utime(path, (1e9, 1e9))
    model = make(workspace, CreateConfig(name="m", source=str(theirs / "working")))
    key = next(iter(tensors))
    assert torch.equal(unet_of(model)[key], tensors[key])
    assert kept_settings(model) is None


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_a_model_of_a_snapshot(theirs: Path, workspace: Workspace, prefix: str) -> None:
    snapshot = put_snapshot(theirs, "checkpoint-400", 0.5, prefix)
    before = digest(theirs)
    found = read_import(str(theirs))
    config = creation(found, workspace, name="m", source="Snapshot checkpoint-400")
    assert config.source == str(snapshot)
    assert with_absolute_paths(config, theirs) == config and not validate(config, workspace)
    model = make(workspace, config)
    assert digest(theirs) == before
    for part in (UNET, TEXT):
        tensors = load_file(theirs / "working" / part)
        for key, tensor in load_file(model.path / part).items():
            assert torch.equal(tensor, moved(tensors[key], 0.5)), key
    vae = load_file(theirs / "working" / "vae" / UNET.name)
    ours = load_file(model.path / "vae" / UNET.name)
    assert all(torch.equal(ours[key], vae[key]) for key in vae)
    kept = kept_settings(model)
    assert kept is not None and kept.learning_rate.unet == 3e-6
    with pytest.raises(InputError, match="There are: The newest weights"):
        creation(found, workspace, source="Snapshot checkpoint-7")


def test_older_snapshots_are_bins_and_may_lack_the_text_encoder(
    theirs: Path, workspace: Workspace
) -> None:
    snapshot = theirs / "checkpoints" / "checkpoint-8"
    snapshot.mkdir(parents=True)
    tensors = load_file(theirs / "working" / UNET)
    shifted = {key: moved(each, 0.5) for key, each in tensors.items()}
    torch.save(shifted, snapshot / "pytorch_model.bin")
    model = make(workspace, CreateConfig(name="m", source=str(snapshot)))
    key = next(iter(tensors))
    assert torch.equal(unet_of(model)[key], shifted[key])
    text, ours = load_file(theirs / "working" / TEXT), load_file(model.path / TEXT)
    assert all(torch.equal(ours[name], text[name]) for name in text)


def test_what_a_snapshot_is(theirs: Path, tmp_path: Path) -> None:
    snapshot = put_snapshot(theirs, "checkpoint-4", 0.1)
    assert is_weights_snapshot(snapshot) and is_diffusers_model(snapshot)
    (theirs / "checkpoints" / "empty").mkdir()
    assert snapshots(theirs) == [snapshot]
    elsewhere = tmp_path / "else" / "checkpoint-4"
    shutil.copytree(snapshot, elsewhere)
    assert not is_weights_snapshot(elsewhere) and not is_weights_snapshot(theirs / "working")


def test_the_average_is_taken_if_it_is_asked_for(theirs: Path, workspace: Workspace) -> None:
    tensors = load_file(theirs / "working" / UNET)
    averages = theirs / "working" / "ema_unet" / UNET.name
    averages.parent.mkdir()
    save_file({key: moved(each, 0.75) for key, each in tensors.items()}, averages)
    found = read_import(str(theirs))
    plain = make(workspace, creation(found, workspace, name="plain"))
    average = make(workspace, creation(found, workspace, name="average", ema=True))
    as_it_is, averaged = unet_of(plain), unet_of(average)
    for key, tensor in tensors.items():
        assert torch.equal(as_it_is[key], tensor)
        assert torch.equal(averaged[key], moved(tensor, 0.75))
    averages.unlink()
    with pytest.raises(InputError, match="no weights"):
        make(workspace, creation(found, workspace, name="broken", ema=True))


@pytest.mark.parametrize("behaviour", [AS_LABELLED, AS_IT_WAS])
def test_the_behaviour_reaches_the_settings_of_a_folder(theirs: Path, behaviour: str) -> None:
    expected: dict[str, Any] = {AS_LABELLED: 5.0, AS_IT_WAS: 0.0}
    found = read_import(str(theirs), behaviour)
    assert found.settings["loss.min_snr_gamma"] == expected[behaviour]
