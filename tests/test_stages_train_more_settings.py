"""More training settings, turned: gradients between steps, LoRA sizes, which model, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dreambooth_core.checkpoint.header import read_header
from dreambooth_core.config.schema import SaveConfig
from dreambooth_core.families import load_components
from dreambooth_core.families.base import Components
from dreambooth_core.job.events import CheckpointSaved
from dreambooth_core.stages import save, train
from tests.tiny import tiny_model
from tests.trainings import Trained, Trainings, same, trainings_in

ONE_STEP: dict[str, Any] = {"intervals": {"max_steps": 1}, "batch": {"batch_size": 2}}
LORA: dict[str, Any] = {"enabled": True, "rank": 2, "alpha": 1.0}
QUERY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CONVOLUTION = "lora_unet_down_blocks_0_resnets_0_conv1"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


@pytest.fixture(scope="module")
def trainings(module_folder: Path, _created_model: Path) -> Trainings:
    """One workspace with a tiny model for all tests of this module."""
    return trainings_in(module_folder, _created_model)


# -- gradients between two steps


@pytest.mark.turns("train.batch.set_to_none")
def test_gradients_are_none_or_zeros_between_steps(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[Components] = []

    def load(folder: Any) -> Components:
        models.append(load_components(folder))
        return models[-1]

    monkeypatch.setattr(train, "load_components", load)
    settings = {"batch": {"batch_size": 2}, "intervals": {"epochs": 1}}
    freed = trainings.run(settings, "freed")
    kept = trainings.run({**settings, "batch": {"batch_size": 2, "set_to_none": False}}, "kept")
    assert all(p.grad is None for p in models[0].unet.parameters())
    for parameter in models[1].unet.parameters():
        assert parameter.grad is not None and not parameter.grad.any()
    assert kept.losses == freed.losses
    assert same(kept.weights, freed.weights)


# -- the size of a LoRA


def saved_lora(trainings: Trainings, name: str, lora: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The LoRA file after one step."""
    saving = {"save_at_end": True, "dtype": "fp32", "name": name}
    run = trainings.run({**ONE_STEP, "lora": {**LORA, **lora}, "saving": saving}, name)
    return load_file(run.summary["loras"][-1])


def size_of(tensors: dict[str, torch.Tensor], layer: str) -> tuple[int, float] | None:
    """The rank and alpha of a layer."""
    down = tensors.get(f"{layer}.lora_down.weight")
    return None if down is None else (len(down), tensors[f"{layer}.alpha"].item())


@pytest.mark.turns(
    "train.lora.enabled",
    "train.lora.rank",
    "train.lora.alpha",
    "train.lora.conv_rank",
    "train.lora.conv_alpha",
    "train.lora.text_encoder_rank",
    "train.lora.text_encoder_alpha",
    "train.lora.dora",
)
def test_ranks_and_alphas_are_those_of_the_file(trainings: Trainings) -> None:
    small = saved_lora(trainings, "small", {})
    layers = (QUERY, CONVOLUTION, TEXT)
    assert [size_of(small, layer) for layer in layers] == [(2, 1.0), None, (2, 1.0)]
    assert not any("dora_scale" in key for key in small)
    large = {
        "rank": 5,
        "alpha": 4.0,
        "conv_rank": 3,
        "conv_alpha": 1.5,
        "text_encoder_rank": 4,
        "text_encoder_alpha": 2.0,
        "dora": True,
    }
    tensors = saved_lora(trainings, "large", large)
    assert [size_of(tensors, layer) for layer in layers] == [(5, 4.0), (3, 1.5), (4, 2.0)]
    assert f"{QUERY}.dora_scale" in tensors


def test_without_a_lora_the_whole_model_is_trained(trainings: Trainings) -> None:
    run = trainings.run({**ONE_STEP, "lora": {"enabled": False}}, "whole")
    assert "conv_in.weight" in run.weights["unet"]


# -- which model and run


@pytest.mark.turns("train.model", "save.model", "save.run")
def test_the_model_that_is_named_is_trained_and_saved(trainings: Trainings) -> None:
    tiny_model(trainings.workspace, "other", seed=5)
    mine = trainings.run(ONE_STEP, "mine")
    trainings.run({**ONE_STEP, "model": "other"}, "theirs")
    states = {
        name: {path.name for path in trainings.workspace.model(name).states_dir.iterdir()}
        for name in ("tiny", "other")
    }
    assert "mine" in states["tiny"] - states["other"]
    assert states["other"] == {"theirs"}
    later = trainings.run({**ONE_STEP, "seed": 3}, "later")

    def saved(model: str, run: str) -> torch.Tensor:
        context, _ = trainings.context(f"saving {model} {run}")
        config = SaveConfig(model=model, run=run, dtype="fp32", use_ema=False)
        tensors = load_file(save.run(config, context)["path"])
        return tensors["model.diffusion_model.input_blocks.0.0.weight"]

    key = "conv_in.weight"
    assert torch.equal(saved("tiny", "mine"), mine.weights["unet"][key])
    assert torch.equal(saved("tiny", "later"), later.weights["unet"][key])
    assert not torch.equal(saved("other", ""), mine.weights["unet"][key])


# -- files


@pytest.mark.turns("train.saving.ema_keys")
def test_the_average_stands_beside_the_weights_if_asked_for(trainings: Trainings) -> None:
    def keys(run: Trained) -> set[str]:
        (event,) = run.events_of(CheckpointSaved)
        return {*read_header(Path(event.path)).tensors}

    saving = {"save_at_end": True, "name": "alone"}
    alone = keys(trainings.run({**ONE_STEP, "saving": saving}, "alone"))
    saving = {"save_at_end": True, "name": "beside", "ema_keys": True}
    beside = keys(trainings.run({**ONE_STEP, "saving": saving}, "beside"))
    assert not any(key.startswith("model_ema.") for key in alone)
    assert "model_ema.diffusion_modelinput_blocks00weight" in beside
    assert {key for key in beside if not key.startswith("model_ema.")} == alone
