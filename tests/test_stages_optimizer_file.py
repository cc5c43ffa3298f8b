"""What an optimizer remembers comes back from its file as it was, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from dreambooth_core.checkpoint.file import write_checkpoint
from dreambooth_core.errors import CheckpointError, NonFiniteError
from dreambooth_core.stages.optimizer_file import read_memory, write_memory
from tests.trainings import same

MEMORY: dict[str, Any] = {
    "unet": [
        {"exp_avg": torch.tensor([[0.1, -2.0 / 3.0]]), "step": torch.tensor(7.0)},
        {},
        {
            "state1": torch.arange(6, dtype=torch.uint8).reshape(2, 3),
            "nested": {"qmap": torch.tensor([1.5], dtype=torch.bfloat16), "name": None},
        },
    ],
    "unet:whole": [{"d": 0.1 + 0.2, "k": 3, "train_mode": True, "tiny": 5e-324}],
    "text_encoder": [],
}


def test_tensors_and_numbers_come_back(tmp_path: Path) -> None:
    write_memory(tmp_path / "o.safetensors", MEMORY)
    read = read_memory(tmp_path / "o.safetensors")
    assert same(read, MEMORY)
    assert type(read["unet:whole"][0]["k"]) is int
    assert read["unet:whole"][0]["train_mode"] is True
    assert read["unet"][0]["step"].shape == ()


def test_it_is_a_file_that_others_read(tmp_path: Path) -> None:
    write_memory(tmp_path / "o.safetensors", MEMORY)
    with safe_open(str(tmp_path / "o.safetensors"), "pt") as file:
        assert set(file.keys()) == {
            "unet/0/exp_avg",
            "unet/0/step",
            "unet/2/state1",
            "unet/2/nested/qmap",
        }
        assert torch.equal(file.get_tensor("unet/2/state1"), MEMORY["unet"][2]["state1"])
        assert json.loads(file.metadata()["memory"])["unet"][0]["step"] == "tensor"


def test_a_tensor_that_does_not_lie_in_order_is_written_in_order(tmp_path: Path) -> None:
    weights = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    write_memory(tmp_path / "o.safetensors", {"unet": [{"m": weights}]})
    assert torch.equal(read_memory(tmp_path / "o.safetensors")["unet"][0]["m"], weights)


def test_numbers_that_are_none_are_not_written(tmp_path: Path) -> None:
    broken = {"unet": [{"exp_avg": torch.tensor([float("nan")])}]}
    with pytest.raises(NonFiniteError, match="unet/0/exp_avg"):
        write_memory(tmp_path / "o.safetensors", broken)
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize("value", ["a word", float("inf"), object()])
def test_only_tensors_and_finite_numbers_are_remembered(tmp_path: Path, value: object) -> None:
    error = NonFiniteError if isinstance(value, float) else TypeError
    with pytest.raises(error, match="unet/0/what"):
        write_memory(tmp_path / "o.safetensors", {"unet": [{"what": value}]})


@pytest.mark.parametrize("metadata", [{}, {"memory": "{"}])
def test_a_file_of_something_else_is_refused(tmp_path: Path, metadata: dict[str, str]) -> None:
    write_checkpoint(tmp_path / "o.safetensors", [], metadata)
    with pytest.raises(CheckpointError, match="does not hold what an optimizer remembers"):
        read_memory(tmp_path / "o.safetensors")


def test_a_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "o.safetensors", [], {"memory": '{"unet":[{"m":"tensor"}]}'})
    with pytest.raises(CheckpointError, match="unet/0/m"):
        read_memory(tmp_path / "o.safetensors")
