"""Saving a checkpoint: the source byte for byte, trained tensors laid over it, all or nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dreambooth_core.checkpoint.header import encode_header, read_header
from dreambooth_core.checkpoint.stored import read_whole
from dreambooth_core.config.schema import CreateConfig, SaveConfig
from dreambooth_core.errors import CheckpointError, InputError, ModelNotFoundError, NonFiniteError
from dreambooth_core.families import family_of
from dreambooth_core.families.loading import read_configs, weights_file
from dreambooth_core.job import disk
from dreambooth_core.job.checkpoint_files import checkpoint_path
from dreambooth_core.job.events import CheckpointSaved, Event, Notice
from dreambooth_core.job.workspace import ModelFolder, Workspace
from dreambooth_core.stages import create, save, side_settings
from dreambooth_core.stages.checkpoint_entries import Averages
from dreambooth_core.stages.model_shape import checkpoint_bytes
from dreambooth_core.stages.save import save_checkpoint
from dreambooth_core.stages.saved_states import Progress
from dreambooth_core.stages.source import read_source
from dreambooth_core.stages.training_state import TrainingState, save_state
from tests.original_layout import TINY, TINY_SD2, TINY_SDXL, Layout, side_yaml
from tests.read_tensors import ReadTensors
from tests.tiny import TEXT, UNET, Dtypes, stage_context, tiny_extras, write_tiny_checkpoint

VAE = "first_stage_model."
CONCEPT = {"instance_folder": "x", "instance_token": "ohwx"}
UNET_FILE = "diffusion_pytorch_model.safetensors"
TRAINED = f"{UNET}input_blocks.0.0.bias"


def raw_tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype, shape and bytes of every tensor, in the order of the bytes."""
    header, raw = read_header(path), path.read_bytes()
    start = header.data_start
    return {
        key: (info.dtype, info.shape, raw[start + info.start : start + info.end])
        for key, info in header.tensors.items()
    }


def broken(value: float) -> dict[str, dict[str, torch.Tensor]]:
    """Good trained weights but for one number in the middle."""
    bias = torch.ones(32)
    bias[17] = value
    return {"unet": {"conv_in.bias": bias}}


def weights(value: float = 3.0) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "unet": {"conv_in.bias": torch.full((32,), value)},
        "vae": {"encoder.mid_block.attentions.0.to_q.weight": torch.full((32, 32), value)},
    }


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float16,
        torch.bfloat16,
        torch.float32,
        {UNET: torch.float16, VAE: torch.float32, TEXT: torch.bfloat16},
    ],
    ids=["fp16", "bf16", "fp32", "mixed"],
)
def test_an_untrained_model_is_saved_byte_for_byte(
    workspace: Workspace, tmp_path: Path, dtype: Dtypes
) -> None:
    source = write_tiny_checkpoint(tmp_path / "x.safetensors", dtype=dtype)
    create.run(CreateConfig(name="m", source=str(source)), stage_context(workspace))
    summary = save.run(SaveConfig(model="m", dtype="source"), stage_context(workspace))
    path = workspace.checkpoints_dir / "m.safetensors"
    assert summary["path"] == str(path)
    ours, theirs = raw_tensors(path), raw_tensors(source)
    assert list(ours) == list(theirs)
    assert ours == theirs
    assert summary["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert summary["size"] == path.stat().st_size


def test_old_key_names_come_out_as_they_went_in(workspace: Workspace, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = write_tiny_checkpoint(tmp_path / "old.safetensors")
    tensors = {
        key.replace(f"{TEXT}text_model.", TEXT): tensor for key, tensor in load_file(source).items()
    }
    save_file(tensors, source)
    create.run(CreateConfig(name="m", source=str(source)), stage_context(workspace))
    summary = save.run(SaveConfig(model="m", dtype="source"), stage_context(workspace))
    assert raw_tensors(Path(str(summary["path"]))) == raw_tensors(source)


def test_trained_tensors_replace_the_bases_and_nothing_else(
    tiny_model_folder: ModelFolder, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out.safetensors"
    save_checkpoint(tiny_model_folder, path, weights(), "source")
    before, after = raw_tensors(tiny_checkpoint), raw_tensors(path)
    assert list(before) == list(after)
    changed = {key for key in before if before[key] != after[key]}
    attention = f"{VAE}encoder.mid.attn_1.q.weight"
    assert changed == {TRAINED, attention}
    saved = load_file(path)
    assert saved[TRAINED].dtype == torch.float16
    assert saved[TRAINED].tolist() == [3.0] * 32
    assert saved[attention].shape == (32, 32, 1, 1)
    assert (saved[attention] == 3).all()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)],
)
def test_weights_are_cast_and_extras_are_not(
    workspace: Workspace, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    source = write_tiny_checkpoint(tmp_path / "x.safetensors", dtype=torch.float32)
    create.run(CreateConfig(name="m", source=str(source)), stage_context(workspace))
    path = tmp_path / "out.safetensors"
    save_checkpoint(workspace.model("m"), path, weights(1 / 3), name)
    saved, original = load_file(path), load_file(source)
    for key, tensor in saved.items():
        if key in tiny_extras():
            assert tensor.dtype == original[key].dtype
            assert torch.equal(tensor, original[key])
        elif key == TRAINED:
            assert torch.equal(tensor, torch.full((32,), 1 / 3).to(dtype))
        elif "attn_1.q" not in key:
            assert torch.equal(tensor, original[key].to(dtype)), key


def test_the_file_says_what_it_is(tiny_model_folder: ModelFolder, tmp_path: Path) -> None:
    path = tmp_path / "my man_400.safetensors"
    save_checkpoint(tiny_model_folder, path, {}, "source", {"dreambooth.step": "400"})
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.title"] == "my man_400"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1"
    assert metadata["modelspec.resolution"] == "64x64"
    assert metadata["dreambooth.step"] == "400"
    assert metadata["dreambooth.source_sha256"] == tiny_model_folder.read_info().source_sha256
    assert path.read_bytes()[8:10] == b'{"'


def test_the_yaml_comes_before_the_checkpoint(
    tiny_model_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.safetensors"
    seen, real = [], disk.rename

    def look(source: Path, target: Path) -> None:
        if target == path:
            seen.append((path.with_suffix(".yaml").read_text(), path.exists()))
        real(source, target)

    monkeypatch.setattr(disk, "rename", look)
    save_checkpoint(tiny_model_folder, path, {}, "source")
    assert seen == [(side_yaml(TINY), False)]


def test_a_model_without_yaml_is_saved_with_one_if_its_weights_do_not_tell_all(
    tiny_model_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tiny_model_folder.path / "source.yaml").unlink()
    path = tmp_path / "out.safetensors"
    save_checkpoint(tiny_model_folder, path, {}, "source")
    family = family_of(tiny_model_folder)
    assert read_source(path).configs == read_configs(tiny_model_folder, family)
    monkeypatch.setattr(side_settings, "tells_itself", lambda *_: True)  # as of SD 1.5
    save_checkpoint(tiny_model_folder, tmp_path / "real.safetensors", {}, "source")
    assert [path.name for path in tmp_path.glob("real*")] == ["real.safetensors"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_named_and_nothing_is_left(
    tiny_model_folder: ModelFolder, tmp_path: Path, value: float
) -> None:
    path = tmp_path / "out.safetensors"
    with pytest.raises(NonFiniteError, match=TRAINED):
        save_checkpoint(tiny_model_folder, path, broken(value), "fp32")
    assert list(tmp_path.glob("out*")) == []


def test_weights_too_large_for_fp16_are_named(
    tiny_model_folder: ModelFolder, tmp_path: Path
) -> None:
    path = tmp_path / "out.safetensors"
    with pytest.raises(NonFiniteError, match=TRAINED) as raised:
        save_checkpoint(tiny_model_folder, path, broken(70_000.0), "fp16")
    assert "too large for fp16" in raised.value.remedy
    save_checkpoint(tiny_model_folder, path, broken(70_000.0), "bf16")


def test_weights_of_another_model_are_refused(
    tiny_model_folder: ModelFolder, tmp_path: Path
) -> None:
    path = tmp_path / "out.safetensors"
    unknown = {"unet": {"conv_middle.bias": torch.zeros(1)}}
    with pytest.raises(CheckpointError, match=r"conv_middle\.bias"):
        save_checkpoint(tiny_model_folder, path, unknown, "fp16")
    wrong_shape = {"unet": {"conv_in.bias": torch.zeros(31)}}
    with pytest.raises(CheckpointError, match=r"conv_in\.bias.*\[31\]"):
        save_checkpoint(tiny_model_folder, path, wrong_shape, "fp16")
    assert list(tmp_path.glob("out*")) == []


def test_a_damaged_record_is_named(tiny_model_folder: ModelFolder, tmp_path: Path) -> None:
    tiny_model_folder.layout_path.write_text("[[1]]")
    with pytest.raises(CheckpointError, match=r"layout\.json"):
        save_checkpoint(tiny_model_folder, tmp_path / "out.safetensors", {}, "fp16")


def test_a_full_disk_is_noticed_before_work(
    tiny_model_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(2**30, 2**30 - 10, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"The checkpoint needs 0\.1 GB, and .* has 0\.0 GB"):
        save_checkpoint(tiny_model_folder, tmp_path / "sub" / "out.safetensors", {}, "fp16")
    assert list((tmp_path / "sub").iterdir()) == []


def test_a_file_that_exists_is_never_written_over(tmp_path: Path) -> None:
    first = checkpoint_path(tmp_path, "man", 400)
    assert first == tmp_path / "man_400.safetensors"
    first.touch()
    second = checkpoint_path(tmp_path, "man", 400)
    assert second == tmp_path / "man_400-2.safetensors"
    second.with_suffix(".yaml").touch()  # somebody else's settings would apply to our file
    assert checkpoint_path(tmp_path, "man", 400) == tmp_path / "man_400-3.safetensors"
    assert checkpoint_path(tmp_path, "man", 0, "sub") == tmp_path / "sub" / "man.safetensors"


@pytest.mark.parametrize(("name", "subfolder"), [("../x", ""), ("x", ".."), ("x", "a/../..")])
def test_no_name_leaves_the_checkpoints_folder(tmp_path: Path, name: str, subfolder: str) -> None:
    with pytest.raises(InputError):
        checkpoint_path(tmp_path, name, 1, subfolder)


def test_an_absolute_subfolder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        checkpoint_path(tmp_path, "x", 1, str(tmp_path))


def keep_state(
    folder: ModelFolder,
    run_id: str,
    step: int,
    value: float,
    settings: dict[str, Any] | None = None,
    averaged: bool = True,
) -> None:
    trained = {"unet": {"conv_in.bias": torch.full((32,), value)}}
    average = {"unet.conv_in.bias": torch.full((32,), value + 0.5)}
    state = TrainingState(
        progress=Progress(step=step, epoch=step // 10),
        seed=1,
        settings={"model": "tiny", "concepts": [CONCEPT], **(settings or {})},
        weights=trained,
        ema=average if averaged else {},
        optimizer={},
    )
    save_state(folder, run_id, state)


@pytest.mark.turns("save.step", "save.name", "save.subfolder", "save.use_ema")
@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        ({"use_ema": True}, "tiny_20", 2.5),
        ({"use_ema": False, "step": 20}, "tiny_20", 2.0),
        ({"use_ema": False, "step": 10, "name": "other"}, "other_10", 1.0),
    ],
)
def test_the_asked_for_state_is_saved(
    workspace: Workspace,
    tiny_model_folder: ModelFolder,
    settings: dict[str, object],
    name: str,
    value: float,
) -> None:
    keep_state(tiny_model_folder, "run", 10, 1.0)
    keep_state(tiny_model_folder, "run", 20, 2.0)  # the newest
    events: list[Event] = []
    config = SaveConfig(model="tiny", subfolder="sub", **settings)  # type: ignore[arg-type]
    summary = save.run(config, stage_context(workspace, events))
    path = workspace.checkpoints_dir / "sub" / f"{name}.safetensors"
    assert summary["path"] == str(path)
    assert load_file(path)[TRAINED].tolist() == [value] * 32
    step = int(str(summary["step"]))
    size = path.stat().st_size
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert events == [CheckpointSaved(str(path), step, step // 10, digest, size)]
    assert tiny_model_folder.read_info().checkpoints == [str(path)]
    metadata = read_header(path).metadata
    assert metadata["dreambooth.step"] == str(step)
    assert metadata["dreambooth.ema"] == ("true" if settings["use_ema"] else "false")
    assert metadata["modelspec.trigger_phrase"] == "ohwx"
    assert metadata["ss_steps"] == str(step)
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["description"].startswith("ohwx (")


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_a_trained_state_is_saved_one_tensor_after_the_other(
    workspace: Workspace,
    tiny_model_folder: ModelFolder,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
) -> None:
    """Of hundreds two are held at most, and the file is the one of weights that are all held."""
    _, base = read_whole(weights_file(tiny_model_folder, "unet"))
    trained = {key: weight.float() * 1.5 for key, weight in base.items()}
    average = {key: weight.float() * 1.25 for key, weight in base.items()}
    held = tiny_model_folder.path / "held.safetensors"
    whole = Averages({"unet": average}, 0.99, 7)
    save_checkpoint(tiny_model_folder, held, {"unet": trained}, dtype, averages=whole)
    state = TrainingState(
        progress=Progress(step=7),
        seed=1,
        settings={"model": "tiny", "concepts": [CONCEPT], "ema": {"enabled": True, "decay": 0.99}},
        weights={"unet": trained},
        ema={f"unet.{key}": weight for key, weight in average.items()},
        optimizer={},
    )
    save_state(tiny_model_folder, "run", state)
    read = ReadTensors(monkeypatch)
    config = SaveConfig(model="tiny", dtype=dtype, use_ema=False, ema_keys=True)
    saved = Path(save.run(config, stage_context(workspace))["path"])
    assert raw_tensors(saved) == raw_tensors(held)
    assert read.count == 2 * len(base) > 300
    assert read.most_held <= 2


def test_a_damaged_state_is_passed_over_and_that_is_said(
    workspace: Workspace, tiny_model_folder: ModelFolder
) -> None:
    keep_state(tiny_model_folder, "run", 10, 1.0)
    keep_state(tiny_model_folder, "run", 20, 2.0)
    newest = tiny_model_folder.states_dir / "run" / "step_00000020"
    (newest / "ema.safetensors").unlink()
    events: list[Event] = []
    summary = save.run(SaveConfig(model="tiny"), stage_context(workspace, events))
    assert summary["step"] == 10
    told = [event.message for event in events if isinstance(event, Notice)]
    assert len(told) == 1 and str(newest) in told[0] and "ema.safetensors is missing" in told[0]


@pytest.mark.turns("save.ema_keys", "save.dtype")
def test_the_average_is_written_beside_the_weights_on_request(
    workspace: Workspace, tiny_model_folder: ModelFolder, tiny_checkpoint: Path
) -> None:
    keep_state(tiny_model_folder, "run", 20, 2.0, {"ema": {"decay": 0.99}})
    config = SaveConfig(model="tiny", dtype="bf16", use_ema=False, ema_keys=True)
    path = Path(save.run(config, stage_context(workspace))["path"])
    saved, source = load_file(path), load_file(tiny_checkpoint)
    unet = {key: "model_ema." + key.removeprefix("model.").replace(".", "") for key in source}
    unet = {key: name for key, name in unet.items() if key.startswith(UNET)}
    counters = {"model_ema.decay", "model_ema.num_updates"}
    assert saved.keys() == source.keys() | set(unet.values()) | counters
    for key, name in unet.items():
        value = torch.full((32,), 2.5) if key == TRAINED else source[key]
        assert torch.equal(saved[name], value.to(torch.bfloat16)), name
    assert saved[TRAINED].tolist() == [2.0] * 32
    assert saved["model_ema.decay"].item() == pytest.approx(0.99)
    assert saved["model_ema.num_updates"].item() == 20
    size = checkpoint_bytes(tiny_model_folder, "bf16", ema_keys=True)
    metadata = encode_header({}, read_header(path).metadata)
    assert abs(path.stat().st_size - size - len(metadata)) < 32
    create.run(
        CreateConfig(name="again", source=str(path), extract_ema=True), stage_context(workspace)
    )
    kept = load_file(workspace.model("again").component("unet") / UNET_FILE)
    assert kept["conv_in.bias"].tolist() == [2.5] * 32


def test_an_average_that_there_is_not_is_an_error(
    workspace: Workspace, tiny_model_folder: ModelFolder
) -> None:
    keep_state(tiny_model_folder, "run", 20, 2.0, averaged=False)
    with pytest.raises(InputError, match="no running average") as raised:
        save.run(SaveConfig(model="tiny", ema_keys=True), stage_context(workspace))
    assert raised.value.field == "ema_keys"
    assert list(workspace.checkpoints_dir.glob("tiny_20*")) == []


LAYOUTS = {
    "sd1": TINY,
    "sd1 inpainting": replace(TINY, in_channels=9),
    "sd2": TINY_SD2,
    "sdxl": TINY_SDXL,
    "sdxl inpainting": replace(TINY_SDXL, in_channels=9),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_every_family_comes_out_as_it_went_in(
    workspace: Workspace, tmp_path: Path, layout: Layout, kind: str
) -> None:
    source = write_tiny_checkpoint(tmp_path / "x.safetensors", layout=layout)
    side = source.with_suffix(".yaml").read_text(encoding="utf-8")
    if kind == "v_prediction":
        tensors = {key: tensor.clone() for key, tensor in load_file(source).items()}
        save_file({**tensors, "ztsnr": torch.empty(0)}, source)
        side = side.replace('parameterization: "eps"', 'parameterization: "v"')
        side = side.replace("EpsScaling", "VScaling")
        source.with_suffix(".yaml").write_text(side, encoding="utf-8")
    create.run(CreateConfig(name="m", source=str(source)), stage_context(workspace))
    folder = workspace.model("m")
    assert folder.read_info().prediction_type == kind
    path = Path(save.run(SaveConfig(model="m", dtype="source"), stage_context(workspace))["path"])
    ours, theirs = raw_tensors(path), raw_tensors(source)
    added = {"v_pred": ("F32", (0,), b"")} if kind == "v_prediction" else {}
    assert ours == {**theirs, **added}
    assert list(ours) == [*theirs, *added]
    assert path.with_suffix(".yaml").read_text(encoding="utf-8") == side
    folder.kept_side_file.unlink()
    told = side_settings.side_settings(folder)
    assert told is not None
    path.with_suffix(".yaml").write_bytes(told)
    assert read_source(path).configs == read_configs(folder, family_of(folder))


def test_a_state_that_is_not_there_is_an_error(
    workspace: Workspace, tiny_model_folder: ModelFolder
) -> None:
    with pytest.raises(InputError, match="at step 7"):
        save.run(SaveConfig(model="tiny", step=7), stage_context(workspace))
    with pytest.raises(InputError, match="of the run 'r'"):
        save.run(SaveConfig(model="tiny", run="r"), stage_context(workspace))
    assert tiny_model_folder.read_info().checkpoints == []


@pytest.mark.turns("save.model")
def test_a_model_that_is_not_there_is_an_error(workspace: Workspace) -> None:
    with pytest.raises(ModelNotFoundError, match="'nobody'"):
        save.run(SaveConfig(model="nobody"), stage_context(workspace))


def test_saving_twice_makes_two_files_and_records_both(
    workspace: Workspace, tiny_model_folder: ModelFolder
) -> None:
    for _ in range(2):
        save.run(SaveConfig(model="tiny"), stage_context(workspace))
    names = [Path(path).name for path in tiny_model_folder.read_info().checkpoints]
    assert names == ["tiny.safetensors", "tiny-2.safetensors"]
    assert json.loads(tiny_model_folder.info_path.read_text())["name"] == "tiny"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_trained_parts_of_joined_and_turned_tensors_go_to_their_places(
    workspace: Workspace, tmp_path: Path, dtype: str
) -> None:
    source = write_tiny_checkpoint(
        tmp_path / "x.safetensors", layout=TINY_SDXL, dtype=torch.float32
    )
    create.run(CreateConfig(name="m", source=str(source)), stage_context(workspace))
    generator = torch.Generator().manual_seed(9)
    width = TINY_SDXL.open_clip_width
    turned, part = (torch.randn((width, width), generator=generator) for _ in range(2))
    layer = "text_model.encoder.layers.1.self_attn.k_proj.weight"
    trained = {"text_encoder_2": {"text_projection.weight": turned, layer: part}}
    path = tmp_path / "out.safetensors"
    save_checkpoint(workspace.model("m"), path, trained, dtype)
    saved, before = load_file(path), load_file(source)
    number = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    prefix = "conditioner.embedders.1.model."
    joined = f"{prefix}transformer.resblocks.1.attn.in_proj_weight"
    query, _, value = before[joined].chunk(3)
    assert torch.equal(saved[joined], torch.cat([query, part, value]).to(number))
    # The host multiplies x @ P, transformers' linear layer x @ W.T (sgm, encoders/modules.py).
    assert torch.equal(saved[f"{prefix}text_projection"], turned.t().to(number))
    changed = {joined, f"{prefix}text_projection"}
    for key in before.keys() - changed - tiny_extras().keys():
        expected = before[key] if "logit_scale" in key else before[key].to(number)
        assert torch.equal(saved[key], expected), key
