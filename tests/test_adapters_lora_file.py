"""LoRA files: their keys, hashes and metadata, and the reading of other programs' files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dreambooth_core.adapters import lora_file
from dreambooth_core.adapters.lora_file import low_rank_entries, read_lora, write_lora
from dreambooth_core.adapters.weights import LowRank
from dreambooth_core.checkpoint.file import CheckpointReader
from dreambooth_core.errors import CheckpointError, InputError, NonFiniteError

TOLD = {"ss_network_dim": "2", "modelspec.title": "mine"}


def layers(dora: bool = False) -> dict[str, LowRank]:
    """Two layers, a matrix and a convolution."""
    generator = torch.Generator().manual_seed(0)

    def layer(inputs: int, outputs: int, *kernel: int) -> LowRank:
        ones = [1] * len(kernel)
        return LowRank(
            torch.randn(2, inputs, *kernel, generator=generator),
            torch.randn(outputs, 2, *ones, generator=generator),
            alpha=0.3,
            dora_scale=torch.rand(1, inputs, *ones, generator=generator) if dora else None,
        )

    return {"lora_unet_b": layer(3, 5), "lora_unet_a": layer(2, 4, 3, 3)}


def write(path: Path, dtype: str = "F32", dora: bool = False) -> Path:
    """Write the two layers."""
    write_lora(path, low_rank_entries(layers(dora), dtype), TOLD)
    return path


def read(path: Path) -> dict[str, LowRank]:
    """Read a file's layers."""
    with CheckpointReader(path) as reader:
        return read_lora(reader)


@pytest.mark.parametrize("dora", [False, True])
def test_a_file_there_and_back(tmp_path: Path, dora: bool) -> None:
    found = read(write(tmp_path / "x.safetensors", dora=dora))
    assert list(found) == ["lora_unet_a", "lora_unet_b"]
    for name, layer in layers(dora).items():
        assert torch.equal(found[name].down, layer.down)
        assert torch.equal(found[name].up, layer.up)
        assert found[name].alpha == pytest.approx(0.3, rel=1e-7)
        if layer.dora_scale is None:
            assert found[name].dora_scale is None
        else:
            assert torch.equal(found[name].dora_scale, layer.dora_scale)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("F16", torch.float16), ("BF16", torch.bfloat16), ("F32", torch.float32)],
)
def test_weights_are_cast_and_alphas_stay_exact(
    tmp_path: Path, dtype: str, expected: torch.dtype
) -> None:
    tensors = load_file(write(tmp_path / "x.safetensors", dtype, dora=True))
    assert set(tensors) == {
        f"{name}.{leaf}"
        for name in layers()
        for leaf in ("lora_down.weight", "lora_up.weight", "alpha", "dora_scale")
    }
    for key, tensor in tensors.items():
        assert tensor.dtype == (torch.float32 if key.endswith("alpha") else expected)
    assert tensors["lora_unet_a.alpha"].shape == ()


def test_the_hashes_are_those_of_the_tensors(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors")
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["sshs_model_hash"] == hashlib.sha256(raw[start:]).hexdigest()
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(b"").hexdigest()[:8]  # under 1 MiB
    assert {key: metadata[key] for key in TOLD} == TOLD
    assert raw[8:10] == b'{"'
    other = tmp_path / "y.safetensors"
    write_lora(other, low_rank_entries(layers(), "F32"), {**TOLD, "modelspec.title": "other"})
    with safe_open(other, "pt") as file:
        assert file.metadata()["sshs_model_hash"] == metadata["sshs_model_hash"]


def test_the_legacy_hash_is_of_64_kib_after_the_first_mib(tmp_path: Path) -> None:
    big = {"lora_unet_a": LowRank(torch.randn(8, 40_000), torch.randn(4, 8), 8.0)}
    path, bare = tmp_path / "x.safetensors", tmp_path / "bare.safetensors"
    write_lora(path, low_rank_entries(big, "F32"), TOLD)
    entries = low_rank_entries(big, "F32")
    lora_file.write_checkpoint(bare, entries, {"ss_network_dim": "2"})
    raw = bare.read_bytes()
    assert len(raw) > 0x110000
    with safe_open(path, "pt") as file:
        found = file.metadata()["sshs_legacy_hash"]
    assert found == hashlib.sha256(raw[0x100000:0x110000]).hexdigest()[:8]


def test_broken_weights_are_named_and_nothing_is_left(tmp_path: Path) -> None:
    broken = layers()
    broken["lora_unet_b"].up[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"lora_unet_b\.lora_up"):
        write_lora(tmp_path / "x.safetensors", low_rank_entries(broken, "F32"), TOLD)
    assert list(tmp_path.iterdir()) == []


def test_text_that_the_webui_would_misread_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="brace"):
        write_lora(tmp_path / "x.safetensors", low_rank_entries(layers(), "F32"), {"a": "{"})


# -- other programs' files


def other_file(path: Path, **changes: Any) -> Path:
    """A file of another program, with some of its tensors changed or (None) left out."""
    tensors = {
        "lora_unet_a.lora_down.weight": torch.ones(2, 3),
        "lora_unet_a.lora_up.weight": torch.ones(4, 2),
        "lora_unet_a.alpha": torch.tensor([1.0]),
    }
    tensors |= {key.replace("__", "."): value for key, value in changes.items()}
    save_file({key: value for key, value in tensors.items() if value is not None}, path)
    return path


def test_without_an_alpha_the_scale_is_one(tmp_path: Path) -> None:
    path = other_file(tmp_path / "x.safetensors", lora_unet_a__alpha=None)
    (layer,) = read(path).values()
    assert layer.alpha == layer.rank == 2
    (layer,) = read(other_file(tmp_path / "x.safetensors")).values()
    assert layer.alpha == 1.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_unet_b__hada_w1_a": torch.ones(2, 2)}, "hada_w1_a"),
        ({"lora_unet_a__lora_mid__weight": torch.ones(2, 2, 3, 3)}, "lora_mid"),
        ({"lora_unet_a__lora_up__weight": torch.ones(4, 3)}, "do not fit each other"),
        ({"lora_unet_a__dora_scale": torch.ones(4, 1)}, "belong to the outputs"),
        ({"lora_unet_a__dora_scale": torch.ones(3, 1)}, "belong to the outputs"),
        ({"lora_unet_a__lora_down__weight": None}, "holds no LoRA"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        read(other_file(tmp_path / "x.safetensors", **changes))
