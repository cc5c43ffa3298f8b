"""Damaged, foreign and hostile files through create: a clear error each, and nothing left of it."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dreambooth_core.config.schema import CreateConfig
from dreambooth_core.config.validate import validate
from dreambooth_core.errors import InputError
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.stages import create
from tests.tiny import UNET, stage_context, write_tiny_checkpoint

KEY = UNET + "input_blocks.0.0.weight"


@pytest.fixture(scope="module")
def good(module_folder: Path) -> bytes:
    """The bytes of a checkpoint that makes a model; its yaml is written beside each file."""
    return write_tiny_checkpoint(module_folder / "good.safetensors").read_bytes()


@pytest.fixture(scope="module")
def side(module_folder: Path) -> str:
    """The checkpoint's yaml."""
    path = write_tiny_checkpoint(module_folder / "side.safetensors")
    return path.with_suffix(".yaml").read_text(encoding="utf-8")


def table_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file as a table, and what follows it."""
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def with_table(table: dict[str, Any], data: bytes) -> bytes:
    """The file with this header."""
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data


def refused(content: bytes, side: str, name: str = "bad.safetensors") -> str:
    """What create says of a file that it refuses, as the worker and before the worker starts."""
    with tempfile.TemporaryDirectory() as root:
        workspace, source = Workspace(Path(root)), Path(root) / name
        source.write_bytes(content)
        source.with_suffix(".yaml").write_text(side, encoding="utf-8")
        config = CreateConfig(name="m", source=str(source))
        with pytest.raises(InputError) as raised:
            create.run(config, stage_context(workspace))
        assert name in raised.value.message
        assert raised.value.remedy
        left = [path for path in workspace.models_dir.rglob("*") if ".jobs" not in path.parts]
        assert left == []
        assert {problem.field for problem in validate(config, workspace)} <= {"source"}
        assert source.read_bytes() == content
        return str(raised.value)


def test_the_good_file_makes_a_model(good: bytes, side: str, workspace: Workspace) -> None:
    source = workspace.checkpoints_dir / "good.safetensors"
    source.write_bytes(good)
    source.with_suffix(".yaml").write_text(side, encoding="utf-8")
    create.run(CreateConfig(name="m", source=str(source)), stage_context(workspace))
    assert workspace.model("m").exists()


@pytest.mark.parametrize("name", ["bad.safetensors", "bad.ckpt"])
@pytest.mark.parametrize("content", [b"", b"\0", bytes(8), bytes(4096), b"<!DOCTYPE html><html>"])
def test_files_of_nothing(content: bytes, name: str, side: str) -> None:
    refused(content, side, name)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.9, 0.99999])
def test_truncated_files(good: bytes, side: str, share: float) -> None:
    refused(good[: int(len(good) * share)], side)


def test_one_byte_short_and_one_too_many(good: bytes, side: str) -> None:
    refused(good[:-1], side)
    refused(good + b"\0", side)


@pytest.mark.parametrize("length", [2**63 - 1, 2**64 - 1, 10**12, 200 * 2**20])
def test_oversized_headers_are_not_read(good: bytes, side: str, length: int) -> None:
    refused(struct.pack("<Q", length) + good[8:], side)


def test_overlapping_offsets(good: bytes, side: str) -> None:
    table, data = table_of(good)
    first, second = [key for key in table if key != "__metadata__"][:2]
    table[second]["data_offsets"] = table[first]["data_offsets"]
    table[second]["shape"] = table[first]["shape"]
    refused(with_table(table, data), side)


def test_gaps_and_offsets_beyond_the_end(good: bytes, side: str) -> None:
    table, data = table_of(good)
    key = next(key for key in table if key != "__metadata__")
    for change in ([-8, 8], [0, 2**62], [8, 0], ["0", "8"], [0]):
        refused(with_table({**table, key: {**table[key], "data_offsets": change}}, data), side)
    gap = {k: v for k, v in table.items() if k != key}
    refused(with_table(gap, data), side)


@pytest.mark.parametrize("dtype", ["I32", "U8", "BOOL", "F8_E4M3", "F64x", "", None, 7])
def test_weights_of_a_wrong_format(good: bytes, side: str, dtype: Any) -> None:
    table, data = table_of(good)
    for key in table:
        if key.startswith(UNET):
            table[key]["dtype"] = dtype
    assert "bad.safetensors" in refused(with_table(table, data), side)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_one_weight_of_whole_or_small_numbers(
    good: bytes, side: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    source = tmp_path / "x.safetensors"
    source.write_bytes(good)
    tensors = {key: value.clone() for key, value in load_file(source).items()}
    tensors[KEY] = tensors[KEY].to(dtype)
    save_file(tensors, source)
    assert KEY in refused(source.read_bytes(), side)


class Bomb:
    """A pickle that would run a program."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo was here > proof",)


@pytest.mark.parametrize("name", ["bad.ckpt", "bad.safetensors"])
def test_pickle_bombs_do_not_go_off(
    side: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain, zipped = pickle.dumps({"state_dict": Bomb()}), tmp_path / "bomb.ckpt"
    torch.save({"state_dict": {KEY: torch.ones(2)}, "x": Bomb()}, zipped)
    for content in (plain, zipped.read_bytes()):
        refused(content, side, name)
    assert not Path("proof").exists()


def test_a_pickle_that_swells_is_refused(side: str, tmp_path: Path) -> None:
    path = tmp_path / "swells.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"]" * 2**22 + b".")
        archive.writestr("archive/data/0", bytes(2**24))
    refused(path.read_bytes(), side, "bad.ckpt")


@settings(max_examples=40, deadline=None)
@given(content=st.binary(max_size=2000), name=st.sampled_from(["bad.safetensors", "bad.ckpt"]))
def test_random_bytes(content: bytes, name: str) -> None:
    refused(content, "", name)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), flips=st.integers(1, 4))
def test_a_damaged_header_makes_a_whole_model_or_none(
    good: bytes, side: str, seed: int, flips: int
) -> None:
    """Some flips hit what no reader minds, such as a letter of a name that is only carried."""
    chance, content = random.Random(seed), bytearray(good)
    end = 8 + struct.unpack("<Q", good[:8])[0]
    for _ in range(flips):
        content[chance.randrange(end)] ^= 1 << chance.randrange(8)
    with tempfile.TemporaryDirectory() as root:
        workspace, source = Workspace(Path(root)), Path(root) / "bad.safetensors"
        source.write_bytes(content)
        source.with_suffix(".yaml").write_text(side, encoding="utf-8")
        with suppress(InputError):
            create.run(CreateConfig(name="m", source=str(source)), stage_context(workspace))
        made = [path.name for path in workspace.models_dir.glob("*") if path.name != ".jobs"]
        assert made == workspace.model_names()
