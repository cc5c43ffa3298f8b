"""A model in the diffusers layout as the source: saved as a single file of the published layout."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from dreambooth_core.checkpoint.header import read_header
from dreambooth_core.config.schema import CreateConfig, SaveConfig
from dreambooth_core.config.serialize import with_absolute_paths
from dreambooth_core.config.validate import validate
from dreambooth_core.errors import CheckpointError, InputError, UnsupportedFamilyError
from dreambooth_core.families import FAMILIES
from dreambooth_core.job.workspace import ModelFolder, Workspace
from dreambooth_core.stages import create, save
from dreambooth_core.stages.source import read_source
from tests.original_layout import (
    SD15,
    SD21,
    SDXL,
    TINY,
    TINY_SD2,
    TINY_SDXL,
    Layout,
    checkpoint_shapes,
    side_yaml,
)
from tests.tiny import header_of, stage_context, write_tiny_checkpoint

VAE_FILE = Path("vae", "diffusion_pytorch_model.safetensors")
LAYOUTS = {
    "sd1": TINY,
    "sd1 inpainting": replace(TINY, in_channels=9),
    "sd2": TINY_SD2,
    "sdxl": TINY_SDXL,
}


def make(workspace: Workspace, source: Path, name: str, **settings: Any) -> ModelFolder:
    config = CreateConfig(name=name, source=str(source), **settings)
    create.run(config, stage_context(workspace))
    return workspace.model(name)


def saved(workspace: Workspace, name: str) -> Path:
    summary = save.run(SaveConfig(model=name, dtype="source"), stage_context(workspace))
    return Path(str(summary["path"]))


@pytest.fixture
def folder(tiny_model_folder: ModelFolder, tmp_path: Path) -> Path:
    """A tiny model in the diffusers layout and nothing of ours in it."""
    path = tmp_path / "diffusers model"
    shutil.copytree(tiny_model_folder.path, path)
    for name in ("model.json", "layout.json", "extras.safetensors", "source.yaml"):
        (path / name).unlink()
    return path


def edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, **changes}))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_folder_comes_out_as_the_single_file_that_it_was_made_of(
    workspace: Workspace, tmp_path: Path, layout: Layout
) -> None:
    source = write_tiny_checkpoint(tmp_path / "x.safetensors", layout=layout, extras=False)
    first = make(workspace, source, "first")
    if layout.family == "sd2":
        edit(first.component("text_encoder") / "config.json", hidden_act="gelu")
    again = make(workspace, first.path, "again")
    info = again.read_info()
    assert (info.family, info.source) == (layout.family, str(first.path))
    ours, theirs = load_file(saved(workspace, "again")), load_file(source)
    if layout.family == "sdxl":
        del theirs["conditioner.embedders.1.model.logit_scale"]  # which no folder has
    assert ours.keys() == theirs.keys()
    last = f"resblocks.{layout.open_clip_layers - 1}."
    for key, tensor in theirs.items():
        unused = layout.family == "sd2" and (last in key or "logit" in key or "projection" in key)
        assert ours[key].dtype == tensor.dtype
        assert torch.equal(ours[key], torch.zeros_like(tensor) if unused else tensor), key


def test_what_is_saved_from_a_folder_can_be_created_from(
    workspace: Workspace, folder: Path
) -> None:
    make(workspace, folder, "m")
    path = saved(workspace, "m")
    assert path.with_suffix(".yaml").exists()  # of unusual widths, which the weights do not tell
    first, second = read_source(path), read_source(folder)
    assert first.family is second.family
    for name, values in first.configs.items():
        assert values.items() <= second.configs[name].items()


def test_the_digest_is_that_of_the_weights_in_turn(workspace: Workspace, folder: Path) -> None:
    model = make(workspace, folder, "m")
    files = [folder / "unet" / VAE_FILE.name, folder / VAE_FILE]
    files.append(folder / "text_encoder" / "model.safetensors")
    raw = b"".join(path.read_bytes() for path in files)
    assert model.read_info().source_sha256 == hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize("form", ["fp16", "bin", "parts"])
def test_weights_are_found_under_every_usual_name(
    workspace: Workspace, folder: Path, form: str
) -> None:
    expected = load_file(saved_from(workspace, folder, "before"))
    unet = folder / "unet" / VAE_FILE.name
    tensors = {key: tensor.clone() for key, tensor in load_file(unet).items()}
    unet.unlink()
    if form == "fp16":
        save_file(tensors, unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    elif form == "bin":
        torch.save(tensors, unet.with_name("diffusion_pytorch_model.bin"))
    else:
        names = sorted(tensors)
        weight_map = {}
        for number, part in enumerate((names[:50], names[50:])):
            file = f"diffusion_pytorch_model-0000{number + 1}-of-00002.safetensors"
            save_file({key: tensors[key] for key in part}, unet.with_name(file))
            weight_map.update(dict.fromkeys(part, file))
        index = {"metadata": {}, "weight_map": weight_map}
        unet.with_name(f"{unet.name}.index.json").write_text(json.dumps(index))
    after = load_file(saved_from(workspace, folder, "after"))
    assert after.keys() == expected.keys()
    assert all(torch.equal(after[key], expected[key]) for key in expected)


def saved_from(workspace: Workspace, folder: Path, name: str) -> Path:
    make(workspace, folder, name)
    return saved(workspace, name)


def test_an_old_vaes_attention_is_recognised(workspace: Workspace, folder: Path) -> None:
    expected = load_file(saved_from(workspace, folder, "before"))
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for key, tensor in load_file(folder / VAE_FILE).items():
        for new, name in names.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")
        old[key] = tensor.clone()
    save_file(old, folder / VAE_FILE)
    edit(folder / "vae" / "config.json", scaling_factor=0.18215)
    after = load_file(saved_from(workspace, folder, "after"))
    assert all(torch.equal(after[key], expected[key]) for key in expected)


def test_what_cannot_be_used_is_named_and_leaves_nothing(
    workspace: Workspace, folder: Path, tmp_path: Path
) -> None:
    def refused(error: type[Exception], words: str, *, without: str = "", **changes: Any) -> None:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        if without:
            (copy / without).unlink()
        for name, values in changes.items():
            edit(next(path for path in copy.rglob("*.json") if path.stem == name), **values)
        with pytest.raises(error, match=words):
            make(workspace, copy, "bad")
        assert not workspace.model("bad").path.exists()

    refused(CheckpointError, "unet holds no weights", without=f"unet/{VAE_FILE.name}")
    refused(CheckpointError, "scheduler_config", without="scheduler/scheduler_config.json")
    refused(InputError, "without a model_index.json", without="model_index.json")
    refused(UnsupportedFamilyError, "FluxPipeline", model_index={"_class_name": "FluxPipeline"})
    refused(UnsupportedFamilyError, "no vae", model_index={"vae": [None, None]})
    refused(
        UnsupportedFamilyError,
        "StableDiffusion3",
        model_index={"_class_name": "StableDiffusion3Pipeline"},
    )
    refused(CheckpointError, "linear", scheduler_config={"beta_schedule": "linear"})


def test_a_weight_that_is_missing_or_misshapen_is_named(workspace: Workspace, folder: Path) -> None:
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / VAE_FILE).items()}
    save_file({**tensors, "quant_conv.bias": torch.ones(3)}, folder / VAE_FILE)
    with pytest.raises(CheckpointError, match=r"quant_conv\.bias .* \[3\], where \[8\]"):
        make(workspace, folder, "m")
    del tensors["quant_conv.bias"]
    save_file(tensors, folder / VAE_FILE)
    with pytest.raises(CheckpointError, match=r"vae lacks the weight quant_conv\.bias"):
        make(workspace, folder, "m")


def test_an_index_that_leads_outside_is_refused(workspace: Workspace, folder: Path) -> None:
    outside = folder / "outside.safetensors"
    shutil.move(folder / "unet" / VAE_FILE.name, outside)
    index = {"weight_map": {"a": "../outside.safetensors"}}
    (folder / "unet" / f"{VAE_FILE.name}.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside of its folder"):
        make(workspace, folder, "m")


def test_fields_that_contradict_the_folder_are_named(workspace: Workspace, folder: Path) -> None:
    with pytest.raises(InputError, match="says that its UNet predicts epsilon") as raised:
        make(workspace, folder, "m", prediction_type="v_prediction")
    assert raised.value.field == "prediction_type"
    with pytest.raises(InputError, match="whose VAE is one of its components") as raised:
        make(workspace, folder, "m", vae=str(folder / VAE_FILE))
    assert raised.value.field == "vae"


def test_a_v_model_says_so_in_every_way_that_hosts_read(workspace: Workspace, folder: Path) -> None:
    changes = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    edit(folder / "scheduler" / "scheduler_config.json", **changes)
    model = make(workspace, folder, "m")
    assert model.read_info().prediction_type == "v_prediction"
    path = saved(workspace, "m")
    tensors = read_header(path).tensors
    assert tensors["v_pred"].shape == tensors["ztsnr"].shape == (0,)
    side = yaml.safe_load(path.with_suffix(".yaml").read_text())
    assert side["model"]["params"]["parameterization"] == "v"
    assert side["dreambooth"]["zero_terminal_snr"] is True


def test_a_folder_is_valid_and_its_path_is_made_absolute(
    workspace: Workspace, folder: Path
) -> None:
    config = CreateConfig(name="m", source=folder.name)
    absolute = with_absolute_paths(config, folder.parent)
    assert absolute.source == str(folder)
    assert validate(absolute, workspace) == []


@pytest.mark.parametrize("layout", [SD15, SD21, SDXL, TINY_SD2, TINY_SDXL])
def test_the_published_names_are_those_of_the_original_architecture(layout: Layout) -> None:
    shapes = checkpoint_shapes(layout)
    side = None if layout in (SD15, SD21, SDXL) else yaml.safe_load(side_yaml(layout))
    family = FAMILIES[layout.family]
    configs = family.configs(header_of(shapes), side, "auto" if side else "epsilon")
    named = {pair.source: pair.source_shape(shape) for pair, shape in family.published_map(configs)}
    named |= family.unused_weights(configs)
    lacking = {"conditioner.embedders.1.model.logit_scale"} & shapes.keys()
    assert named == {key: shape for key, shape in shapes.items() if key not in lacking}
