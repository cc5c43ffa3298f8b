"""What a model can be made from: `.ckpt` files, a chosen VAE, and what real files do oddly."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreambooth_core.checkpoint.header import read_header
from dreambooth_core.config.schema import CreateConfig, SaveConfig
from dreambooth_core.config.validate import validate
from dreambooth_core.errors import CheckpointError, InputError
from dreambooth_core.job.workspace import ModelFolder, Workspace
from dreambooth_core.stages import create, save
from tests.tiny import TEXT, stage_context, write_tiny_checkpoint

VAE = "first_stage_model."
POSITIONS = f"{TEXT}text_model.embeddings.position_ids"
LAST_VAE_KEY = f"{VAE}quant_conv.bias"


def make(workspace: Workspace, source: Path, name: str = "m", vae: Path | str = "") -> ModelFolder:
    config = CreateConfig(name=name, source=str(source), vae=str(vae))
    create.run(config, stage_context(workspace))
    return workspace.model(name)


def saved(workspace: Workspace, name: str = "m", dtype: str = "source") -> Path:
    summary = save.run(SaveConfig(model=name, dtype=dtype), stage_context(workspace))
    return Path(str(summary["path"]))


def pickled(source: Path, tensors: Mapping[str, Tensor] | None = None, nested: bool = True) -> Path:
    """Write a checkpoint's tensors as a `.ckpt` beside it, as training programs do."""
    state = dict(tensors or load_file(source))
    path = source.with_suffix(".ckpt")
    torch.save({"state_dict": state, "epoch": 1} if nested else state, path)
    return path


def held(path: Path) -> dict[str, Tensor]:
    """Tensors that stay when their file is written over; those of load_file lie in it."""
    return {key: tensor.clone() for key, tensor in load_file(path).items()}


def assert_equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert ours[key].dtype == tensor.dtype, key
        assert torch.equal(ours[key], tensor), key


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tiny checkpoint with its yaml, of the test's own."""
    return write_tiny_checkpoint(tmp_path / "tiny.safetensors")


@pytest.mark.parametrize("nested", [True, False])
def test_a_ckpt_makes_the_same_model_and_comes_out_with_the_same_tensors(
    workspace: Workspace, source: Path, nested: bool
) -> None:
    path = pickled(source, nested=nested)
    folder = make(workspace, path)
    info = folder.read_info()
    assert info.source == str(path)
    assert info.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert folder.kept_side_file.exists()
    assert_equal(load_file(saved(workspace)), load_file(source))
    assert list(read_header(saved(workspace)).tensors) == list(load_file(source))


def test_a_ckpt_with_another_order_of_numbers_makes_the_same_model(
    workspace: Workspace, source: Path
) -> None:
    tensors = load_file(source)
    turned = {k: t.t().contiguous().t() if t.dim() == 2 else t for k, t in tensors.items()}
    make(workspace, pickled(source, turned))
    assert_equal(load_file(saved(workspace)), tensors)


def test_a_program_in_a_ckpt_is_not_run_and_leaves_no_model(
    workspace: Workspace, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, ("echo was here > proof",)

    monkeypatch.chdir(source.parent)
    path = pickled(source, {**load_file(source), "zzz": Attack()})  # type: ignore[dict-item]
    with pytest.raises(CheckpointError, match="asks to run") as raised:
        make(workspace, path)
    assert path.name in raised.value.message
    assert not Path("proof").exists()
    assert list(workspace.models_dir.glob("[!.]*")) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_position_ids_of_another_type_are_carried_as_they_are(
    workspace: Workspace, source: Path, dtype: torch.dtype
) -> None:
    tensors = held(source)
    tensors[POSITIONS] = tensors[POSITIONS].to(dtype)
    save_file(tensors, source)
    make(workspace, source)
    assert load_file(saved(workspace, dtype="bf16"))[POSITIONS].dtype == dtype
    assert_equal(load_file(saved(workspace)), tensors)


def vae_of(path: Path, prefix: str = "", seed: int = 7) -> dict[str, Tensor]:
    """A VAE with other weights, without or with a checkpoint's prefix."""
    other = load_file(write_tiny_checkpoint(path, seed=seed, dtype=torch.float32))
    parts = {key: t for key, t in other.items() if key.startswith(VAE)}
    return {prefix + key.removeprefix(VAE): tensor for key, tensor in parts.items()}


def without_vae(source: Path) -> dict[str, Tensor]:
    kept = {key: t for key, t in held(source).items() if not key.startswith(VAE)}
    save_file(kept, source)
    return kept


def test_a_missing_vae_is_asked_for(workspace: Workspace, source: Path) -> None:
    without_vae(source)
    with pytest.raises(InputError, match="holds no VAE") as raised:
        make(workspace, source)
    assert raised.value.field == "vae"
    assert source.name in raised.value.message


@pytest.mark.parametrize("form", ["vae.safetensors", "vae.pt", "checkpoint"])
def test_a_chosen_vae_fills_the_gap(
    workspace: Workspace, source: Path, tmp_path: Path, form: str
) -> None:
    rest = without_vae(source)
    other = vae_of(tmp_path / "other.safetensors")
    path = tmp_path / f"other.{form}"
    if form == "vae.safetensors":
        save_file({**other, "loss.logvar": torch.zeros(1), "model_ema.decay": torch.ones(1)}, path)
    elif form == "vae.pt":
        torch.save({"state_dict": {**other, "loss.logvar": torch.zeros(1)}}, path)
    else:
        path = tmp_path / "other.safetensors"
    folder = make(workspace, source, vae=path)
    expected = {**rest, **{VAE + key: tensor for key, tensor in other.items()}}
    assert_equal(load_file(saved(workspace)), expected)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert folder.read_info().source_sha256 == digest


@pytest.mark.turns("create.vae")
def test_a_chosen_vae_takes_the_baked_ones_place(
    workspace: Workspace, source: Path, tmp_path: Path
) -> None:
    other = vae_of(tmp_path / "other.safetensors")
    vae_folder = workspace.root / "models" / "VAE"
    vae_folder.mkdir(parents=True)
    save_file(other, vae_folder / "mine.safetensors")
    folder = make(workspace, source, vae="mine.safetensors")
    original = load_file(source)
    path = saved(workspace)
    assert_equal(
        load_file(path), {**original, **{VAE + key: tensor for key, tensor in other.items()}}
    )
    assert list(read_header(path).tensors) == list(read_header(source).tensors)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert folder.read_info().source_sha256 == digest


def test_a_vae_that_is_none_or_does_not_fit_is_named(
    workspace: Workspace, source: Path, tmp_path: Path
) -> None:
    nothing = tmp_path / "nothing.safetensors"
    save_file({"a": torch.ones(1)}, nothing)
    for vae, words in ((nothing, "holds no VAE"), (tmp_path / "gone.pt", "no checkpoint file")):
        with pytest.raises(InputError, match=words) as raised:
            make(workspace, source, vae=vae)
        assert raised.value.field == "vae"
    config = CreateConfig(name="m", source=str(source), vae=str(tmp_path / "gone.pt"))
    assert [problem.field for problem in validate(config, workspace)] == ["vae"]
    other = vae_of(tmp_path / "other.safetensors")
    other["decoder.conv_in.bias"] = torch.ones(7)
    save_file(other, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=r"first_stage_model\.decoder\.conv_in\.bias"):
        make(workspace, source, vae=tmp_path / "bad.safetensors")
    assert list(workspace.models_dir.glob("[!.]*")) == []


def test_a_vae_cut_short_leaves_nothing(workspace: Workspace, source: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.vae.pt"
    torch.save(vae_of(tmp_path / "other.safetensors"), path)
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size - 100)
    with pytest.raises(CheckpointError, match=path.name):
        make(workspace, source, vae=path)
    assert list(workspace.models_dir.glob("[!.]*")) == []
