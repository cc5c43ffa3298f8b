"""Creating a model: every byte kept, clear errors before any work, nothing left of a failure."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth_core.checkpoint.assembled import Assembly
from dreambooth_core.checkpoint.file import CheckpointWriter
from dreambooth_core.config.schema import CreateConfig
from dreambooth_core.errors import (
    CheckpointError,
    InputError,
    ModelExistsError,
    UnsupportedFamilyError,
)
from dreambooth_core.families import detect
from dreambooth_core.job.commands import Command, send
from dreambooth_core.job.events import Event, PhaseProgress, PhaseStarted
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.stages import create
from dreambooth_core.stages.source import Source
from tests.original_layout import SD15, TINY, checkpoint_shapes, side_yaml
from tests.tiny import (
    TEXT,
    UNET,
    Dtypes,
    header_of,
    stage_context,
    tiny_extras,
    tiny_weights,
    write_tiny_checkpoint,
)

NETWORKS = ("unet", "vae", "text_encoder")


def run(workspace: Workspace, source: Path, name: str = "m", **settings: bool) -> dict[str, object]:
    config = CreateConfig(name=name, source=str(source), **settings)
    return create.run(config, stage_context(workspace))


def assert_nothing_left(workspace: Workspace) -> None:
    """No model, and no folder that a listing or the next run could take for one."""
    assert workspace.models() == []
    assert [path.name for path in workspace.models_dir.glob("*")] in ([], [".jobs"])


@pytest.mark.turns("create.name", "create.source")
def test_the_record_tells_where_the_model_came_from(
    workspace: Workspace, tiny_checkpoint: Path
) -> None:
    summary = run(workspace, tiny_checkpoint)
    info = workspace.model("m").read_info()
    digest = hashlib.sha256(tiny_checkpoint.read_bytes()).hexdigest()
    assert (info.name, info.family, info.source) == ("m", "sd1", str(tiny_checkpoint))
    assert info.source_sha256 == summary["source_sha256"] == digest
    assert (info.resolution, info.dtype, info.prediction_type) == (64, "fp16", "epsilon")
    assert info.created.startswith("20")
    assert (info.steps, info.epochs, info.last_run, info.checkpoints) == (0, 0, "", [])
    assert [model.name for model in workspace.models()] == ["m"]


def test_every_tensor_keeps_its_bytes_and_what_is_unknown_becomes_an_extra(
    workspace: Workspace, tiny_checkpoint: Path
) -> None:
    summary = run(workspace, tiny_checkpoint)
    folder = workspace.model("m")
    source = load_file(tiny_checkpoint)
    extras = load_file(folder.extras_path)
    assert extras.keys() == tiny_extras().keys()
    assert summary["extras"] == len(extras)
    for key, value in extras.items():
        assert value.dtype == source[key].dtype
        assert torch.equal(value, source[key])
    files = [path for path in folder.path.rglob("*.safetensors") if path != folder.extras_path]
    count = sum(len(load_file(path)) for path in files)
    assert count == summary["tensors"] == len(source) - len(extras)


def test_the_layout_lists_the_source_in_its_own_order(
    workspace: Workspace, tiny_checkpoint: Path
) -> None:
    run(workspace, tiny_checkpoint)
    layout = json.loads(workspace.model("m").layout_path.read_text())["tensors"]
    raw = tiny_checkpoint.read_bytes()
    table = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    ordered = sorted(table.items(), key=lambda item: item[1]["data_offsets"])
    assert layout == [[key, entry["dtype"], entry["shape"]] for key, entry in ordered]


def test_the_folder_holds_what_the_design_says(workspace: Workspace, tiny_checkpoint: Path) -> None:
    run(workspace, tiny_checkpoint)
    folder = workspace.model("m").path
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "model.json",
        "model_index.json",
        "layout.json",
        "extras.safetensors",
        "source.yaml",
        str(Path("unet/config.json")),
        str(Path("unet/diffusion_pytorch_model.safetensors")),
        str(Path("vae/config.json")),
        str(Path("vae/diffusion_pytorch_model.safetensors")),
        str(Path("text_encoder/config.json")),
        str(Path("text_encoder/model.safetensors")),
        str(Path("scheduler/scheduler_config.json")),
        str(Path("tokenizer/merges.txt")),
        str(Path("tokenizer/vocab.json")),
        str(Path("tokenizer/special_tokens_map.json")),
        str(Path("tokenizer/tokenizer_config.json")),
    }
    assert (folder / "source.yaml").read_text() == side_yaml(TINY)


@pytest.mark.parametrize(
    ("dtype", "label"),
    [
        (torch.float32, "fp32"),
        (torch.bfloat16, "bf16"),
        ({UNET: torch.float16, "": torch.float32}, "fp16"),
    ],
)
def test_components_keep_the_sources_dtype(
    workspace: Workspace, tmp_path: Path, dtype: Dtypes, label: str
) -> None:
    source = write_tiny_checkpoint(tmp_path / "x.safetensors", dtype=dtype, extras=False)
    run(workspace, source)
    folder = workspace.model("m")
    assert folder.read_info().dtype == label
    kept = load_file(folder.component("vae") / "diffusion_pytorch_model.safetensors")
    expected = dtype if isinstance(dtype, torch.dtype) else dtype[""]
    assert {tensor.dtype for tensor in kept.values()} == {expected}
    assert load_file(folder.extras_path) == {}


def test_progress_is_told_in_bytes(workspace: Workspace, tiny_checkpoint: Path) -> None:
    events: list[Event] = []
    config = CreateConfig(name="m", source=str(tiny_checkpoint))
    create.run(config, stage_context(workspace, events))
    total = sum(tensor.nbytes for tensor in load_file(tiny_checkpoint).values())
    assert events[0] == PhaseStarted("create", total, "bytes")
    assert events[-1] == PhaseProgress("create", total, total)


def test_a_checkpoint_is_found_by_its_name(workspace: Workspace) -> None:
    path = write_tiny_checkpoint(workspace.checkpoints_dir / "sub" / "mine.safetensors")
    config = CreateConfig(name="m", source="mine")
    create.run(config, stage_context(workspace))
    assert workspace.model("m").read_info().source == str(path)


def test_moving_averages_are_dropped(workspace: Workspace, tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "x.safetensors", ema=True)
    run(workspace, source)
    folder = workspace.model("m")
    assert "model_ema" not in folder.layout_path.read_text()
    assert load_file(folder.extras_path).keys() == tiny_extras().keys()
    unet = load_file(folder.component("unet") / "diffusion_pytorch_model.safetensors")
    assert torch.equal(unet["conv_in.weight"], load_file(source)[f"{UNET}input_blocks.0.0.weight"])
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert folder.read_info().source_sha256 == digest


@pytest.mark.turns("create.extract_ema")
def test_moving_averages_replace_the_unet_on_request(workspace: Workspace, tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "x.safetensors", ema=True)
    run(workspace, source, extract_ema=True)
    folder = workspace.model("m")
    weights = tiny_weights()
    unet = load_file(folder.component("unet") / "diffusion_pytorch_model.safetensors")
    assert torch.equal(unet["conv_in.weight"], weights[f"{UNET}input_blocks.0.0.weight"] / 2)
    assert torch.equal(unet["conv_norm_out.bias"], weights[f"{UNET}out.0.bias"] / 2)
    rows = json.loads(folder.layout_path.read_text())["tensors"]
    layout = {key: dtype for key, dtype, _ in rows}
    assert layout.keys() == weights.keys() | tiny_extras().keys()
    assert layout[f"{UNET}out.0.bias"] == "F32"  # the averages' own dtype
    assert layout[f"{TEXT}text_model.final_layer_norm.bias"] == "F16"


def test_moving_averages_that_are_not_there_are_an_error(
    workspace: Workspace, tiny_checkpoint: Path
) -> None:
    with pytest.raises(InputError, match="no EMA weights") as raised:
        run(workspace, tiny_checkpoint, extract_ema=True)
    assert raised.value.field == "extract_ema"
    assert_nothing_left(workspace)


def test_an_existing_model_is_not_touched(workspace: Workspace, tiny_checkpoint: Path) -> None:
    run(workspace, tiny_checkpoint)
    before = workspace.model("m").info_path.read_bytes()
    with pytest.raises(ModelExistsError, match="'m'"):
        run(workspace, workspace.root / "not even looked for.safetensors")
    assert workspace.model("m").info_path.read_bytes() == before


@pytest.mark.parametrize("name", ["", "../m", "a/b", "con", ".hidden"])
def test_names_that_are_no_folder_names_are_refused(
    workspace: Workspace, tiny_checkpoint: Path, name: str
) -> None:
    with pytest.raises(InputError):
        run(workspace, tiny_checkpoint, name)


def test_sources_that_cannot_be_used_are_named(workspace: Workspace, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"not a checkpoint at all")
    lora = tmp_path / "lora.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.ones(1)}, lora)
    cut = write_tiny_checkpoint(tmp_path / "cut.safetensors")
    with cut.open("rb+") as file:
        file.truncate(cut.stat().st_size - 1)
    for source, error in (
        (tmp_path / "missing.safetensors", InputError),
        (tmp_path, InputError),
        (garbage, CheckpointError),
        (cut, CheckpointError),
        (lora, UnsupportedFamilyError),
    ):
        with pytest.raises(error, match=source.name):
            run(workspace, source)
    assert_nothing_left(workspace)


def test_an_unusual_width_without_its_yaml_is_an_error(
    workspace: Workspace, tmp_path: Path
) -> None:
    source = write_tiny_checkpoint(tmp_path / "x.safetensors", side=False)
    with pytest.raises(CheckpointError, match="unusual width"):
        run(workspace, source)
    assert_nothing_left(workspace)


def test_a_full_disk_is_noticed_before_work(
    workspace: Workspace, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(100, 90, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"0\.1 GB, and .* has 0\.0 GB free"):
        run(workspace, tiny_checkpoint)
    assert_nothing_left(workspace)


def test_a_source_with_nan_is_refused_by_the_name_of_its_weight(
    workspace: Workspace, tmp_path: Path
) -> None:
    source = write_tiny_checkpoint(tmp_path / "x.safetensors")
    tensors = load_file(source)
    key = "first_stage_model.decoder.mid.attn_1.q.weight"
    tensors[key][0, 0] = float("nan")
    save_file(tensors, source)
    with pytest.raises(CheckpointError, match=key):
        run(workspace, source)
    assert_nothing_left(workspace)


def test_a_failure_in_the_middle_leaves_nothing(
    workspace: Workspace, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, write = [], CheckpointWriter.write

    def fail_late(self: CheckpointWriter, key: str, data: object) -> None:
        written.append(key)
        if len(written) == 100:
            raise OSError(28, "No space left on device")
        write(self, key, data)  # type: ignore[arg-type]

    monkeypatch.setattr(CheckpointWriter, "write", fail_late)
    with pytest.raises(OSError, match="No space left"):
        run(workspace, tiny_checkpoint)
    assert_nothing_left(workspace)


def test_what_a_killed_job_left_is_no_model_and_no_obstacle(
    workspace: Workspace, tiny_checkpoint: Path
) -> None:
    leftover = workspace.models_dir / ".m.creating"
    leftover.mkdir(parents=True)
    (leftover / "model.json").write_text("{}")
    assert workspace.models() == []
    run(workspace, tiny_checkpoint)
    assert not leftover.exists()
    assert [model.name for model in workspace.models()] == ["m"]


def test_stop_ends_the_job_and_leaves_nothing(workspace: Workspace, tiny_checkpoint: Path) -> None:
    context = stage_context(workspace)
    send(context.folder, Command("stop"))
    summary = create.run(CreateConfig(name="m", source=str(tiny_checkpoint)), context)
    assert summary == {"model": "m", "stopped": True}
    assert_nothing_left(workspace)


def test_routes_send_every_tensor_of_sd15_somewhere() -> None:
    shapes = checkpoint_shapes(SD15) | {"betas": (1000,), "model_ema.decay": ()}
    header = header_of(shapes)
    family = detect(header)
    configs = family.configs(header, None)
    pairs = family.key_map(header, configs)
    source = Source(Assembly(header), None, family, configs, pairs)
    routes = create.plan_routes(source, extract_ema=False)
    assert list(routes) == [key for key in shapes if key != "model_ema.decay"]
    parts = [route.part for route in routes.values()]
    assert [parts.count(part) for part in (*NETWORKS, "extras")] == [686, 248, 196, 1]


def test_an_f4_vae_makes_pictures_of_four_times_the_latents(
    workspace: Workspace, tmp_path: Path
) -> None:
    layout = replace(TINY, vae_channel_mult=(1, 1, 1), image_size=16)
    source = write_tiny_checkpoint(tmp_path / "x.safetensors", layout=layout)
    run(workspace, source)
    assert workspace.model("m").read_info().resolution == 64
