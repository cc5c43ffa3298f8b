"""Which weights a training moves: frozen parts, frozen normalization layers, spectral norms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth_core.checkpoint.header import read_header
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.serialize import from_dict
from dreambooth_core.families import load_components
from dreambooth_core.families.base import Components
from dreambooth_core.job.events import CheckpointSaved
from dreambooth_core.stages.learning_weights import learning_weights
from tests.trainings import Trained, Trainings, merged, same, trainings_in

ONE_STEP: dict[str, Any] = {"intervals": {"max_steps": 1}, "batch": {"batch_size": 2}}
SPECTRAL: dict[str, Any] = {"unet": {"freeze_spectral_norm": True}}


@pytest.fixture(scope="module")
def trainings(module_folder: Path, _created_model: Path) -> Trainings:
    """One workspace with a tiny model for all tests of this module."""
    return trainings_in(module_folder, _created_model)


@pytest.fixture(scope="module")
def base(trainings: Trainings) -> Components:
    """The model before training."""
    return load_components(trainings.workspace.model("tiny"))


def moved(run: Trained, base: Components, part: str) -> set[str]:
    """The names of the weights that differ from the base's."""
    start = dict(base.modules()[part].named_parameters())
    return {key for key, p in run.weights[part].items() if not torch.equal(p, start[key])}


# -- parts of the UNet


@pytest.mark.parametrize(
    ("parts", "learning", "frozen"),
    [
        ("all", ["conv_in.weight", "a.attn1.to_q.weight"], []),
        ("attention", ["a.attn1.to_q.weight", "a.attn2.to_out.0.bias"], ["conv_in.weight"]),
        ("cross_attention", ["a.attn2.to_q.weight"], ["a.attn1.to_k.weight", "a.ff.net.2.bias"]),
        (
            "cross_attention_kv",
            ["a.attn2.to_k.weight", "a.attn2.to_v.weight"],
            ["a.attn2.to_q.weight", "a.attn2.to_out.0.weight", "a.attn1.to_k.weight"],
        ),
    ],
)
def test_a_choice_names_its_layers(parts: str, learning: list[str], frozen: list[str]) -> None:
    config = from_dict(TrainConfig, {"model": "tiny", "unet": {"parts": parts}})
    assert learning_weights(config, "unet", [*learning, *frozen]) == {*learning}
    assert learning_weights(config, "text_encoder", frozen) == {*frozen}


@pytest.mark.turns("train.unet.parts")
@pytest.mark.parametrize(
    ("parts", "inside"),
    [
        ("attention", (".attn1.", ".attn2.")),
        ("cross_attention", (".attn2.",)),
        ("cross_attention_kv", (".attn2.to_k.", ".attn2.to_v.")),
    ],
)
def test_only_the_chosen_parts_of_the_unet_move(
    trainings: Trainings, base: Components, parts: str, inside: tuple[str, ...]
) -> None:
    run = trainings.run({**ONE_STEP, "unet": {"parts": parts}}, parts)
    expected = {
        name for name, _ in base.unet.named_parameters() if any(layer in name for layer in inside)
    }
    assert moved(run, base, "unet") == set(run.weights["unet"]) == expected
    assert moved(run, base, "text_encoder")
    assert run.state is not None
    assert {key for key in run.state.ema if key.startswith("unet.")} == {
        f"unet.{name}" for name in expected
    }
    assert len(run.state.optimizer["unet"]) == len(expected)


def test_a_checkpoint_of_some_parts_is_whole(trainings: Trainings) -> None:
    saving = {"save_at_end": True, "name": "custom", "dtype": "source"}
    settings = {**ONE_STEP, "unet": {"parts": "cross_attention_kv"}, "saving": saving}
    run = trainings.run(settings, "custom")
    (event,) = run.events_of(CheckpointSaved)
    source = next(trainings.workspace.checkpoints_dir.glob("tiny-source.safetensors"))
    saved, original = read_header(Path(event.path)), read_header(source)
    assert {k: i.shape for k, i in saved.tensors.items()} == {
        k: i.shape for k, i in original.tensors.items()
    }


def test_other_parts_can_learn_after_a_resume(trainings: Trainings, base: Components) -> None:
    first = trainings.run({**ONE_STEP, "unet": {"parts": "cross_attention_kv"}}, "keys")
    changes: dict[str, Any] = {
        "resume": True,
        "intervals": {"max_steps": 2},
        "unet": {"parts": "cross_attention"},
        "optimizer": {"name": "lion"},
    }
    run = trainings.run(merged(ONE_STEP, changes), "all of it")
    queries = {name for name in run.weights["unet"] if ".attn2.to_q." in name}
    assert queries and queries <= moved(run, base, "unet")
    assert set(first.weights["unet"]) < set(run.weights["unet"])
    changes |= {
        "intervals": {"max_steps": 3},
        "unet": {"parts": "cross_attention_kv"},
        "optimizer": {"name": "adamw"},
    }
    back = trainings.run(merged(ONE_STEP, changes), "keys again")
    for name in queries:  # what was learnt before is kept, and learns no more
        assert torch.equal(back.weights["unet"][name], run.weights["unet"][name])


# -- normalization layers of the text encoder


@pytest.mark.turns("train.text_encoder.freeze_norm_layers")
def test_frozen_normalization_layers_keep_their_weights(
    trainings: Trainings, base: Components
) -> None:
    free = trainings.run(ONE_STEP, "free")
    frozen = trainings.run({**ONE_STEP, "text_encoder": {"freeze_norm_layers": True}}, "frozen")
    norms = {name for name in moved(free, base, "text_encoder") if "layer_norm" in name}
    assert len(norms) == 2 * (2 * len(base.text_encoder.text_model.encoder.layers) + 1)
    assert moved(frozen, base, "text_encoder") == moved(free, base, "text_encoder") - norms
    assert frozen.state is not None and free.state is not None
    left_out = len(free.state.optimizer["text_encoder"]) - len(norms)
    assert len(frozen.state.optimizer["text_encoder"]) == left_out


# -- spectral norms


def norms_of(weights: dict[str, torch.Tensor], base: Components) -> list[tuple[float, float]]:
    """The spectral norms of the UNet's layers before and after."""
    layers = [
        f"{path}.weight"
        for path, layer in base.unet.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    ]
    start = dict(base.unet.named_parameters())

    def largest(weight: torch.Tensor) -> float:
        return float(torch.linalg.matrix_norm(weight.detach().flatten(1), ord=2))

    return [(largest(start[name]), largest(weights[name])) for name in layers]


@pytest.mark.turns("train.unet.freeze_spectral_norm")
def test_frozen_spectral_norms_stay_while_weights_move(
    trainings: Trainings, base: Components
) -> None:
    settings = {**ONE_STEP, "learning_rate": {"unet": 5e-3}}
    free = norms_of(trainings.run(settings, "loud").weights["unet"], base)
    run = trainings.run({**settings, **SPECTRAL}, "spectral")
    kept = norms_of(run.weights["unet"], base)
    drift, left = (
        sorted(abs(after / before - 1) for before, after in each) for each in (free, kept)
    )
    assert drift[-1] > 0.02
    assert left[-1] < 0.005
    assert sum(left) < 0.05 * sum(drift)
    weight_names = {name for name in moved(run, base, "unet") if name.endswith("weight")}
    assert len(weight_names) > len(kept)


# -- resuming


@pytest.mark.parametrize(
    "changes",
    [
        {"unet": {"parts": "attention"}, "text_encoder": {"freeze_norm_layers": True}},
        SPECTRAL,
    ],
    ids=["frozen parts", "spectral norms"],
)
def test_four_steps_are_two_and_two_resumed(trainings: Trainings, changes: dict[str, Any]) -> None:
    settings = merged({"batch": {"batch_size": 2}, "text_encoder": {"train_ratio": 0.75}}, changes)
    name = "-".join(settings["unet"])
    whole = trainings.run(settings, f"{name} whole")
    first = trainings.run(settings, f"{name} first", at_step={2: ["stop"]})
    rest = trainings.run({**settings, "resume": True}, f"{name} rest")
    assert first.losses + rest.losses == whole.losses
    assert whole.state is not None and rest.state is not None
    assert same(rest.state.weights, whole.state.weights)
    assert same(rest.state.ema, whole.state.ema)
    assert same(rest.state.optimizer, whole.state.optimizer)
