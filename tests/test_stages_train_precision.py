"""Number formats, kinds of attention, and where the average is kept."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0, SlicedAttnProcessor
from PIL import Image

from dreambooth_core.config.schema import PrecisionSection
from dreambooth_core.errors import ConfigError
from dreambooth_core.families import load_components
from dreambooth_core.families.base import Components
from dreambooth_core.families.sd1 import StableDiffusion1
from dreambooth_core.job.events import CheckpointSaved, SampleSaved
from dreambooth_core.optim.ema import ExponentialMovingAverage
from dreambooth_core.stages import training_setup
from dreambooth_core.stages.device import apply_precision, require_support
from tests.trainings import Trainings, merged, same, trainings_in

ONE_STEP: dict[str, Any] = {"intervals": {"max_steps": 1}, "batch": {"batch_size": 2}}
HALVES: dict[str, Any] = {"precision": {"weights": "bf16", "mixed_precision": "bf16"}}
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(scope="module")
def trainings(module_folder: Path, _created_model: Path) -> Trainings:
    """One workspace with a tiny model for all tests of this module."""
    return trainings_in(module_folder, _created_model)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[Components]:
    """The models with which predictions were made, the first one alone."""
    seen: list[Components] = []
    predict = StableDiffusion1.predict

    def spied(self: Any, components: Components, *parts: Any) -> torch.Tensor:
        seen.append(components)
        return predict(self, components, *parts)

    monkeypatch.setattr(StableDiffusion1, "predict", spied)
    return seen


# -- weights in bf16


@pytest.mark.turns("train.precision.weights", "train.precision.mixed_precision")
def test_bf16_weights_are_half_as_large_and_learn_alike(
    trainings: Trainings, models: list[Components]
) -> None:
    full = trainings.run(merged(ONE_STEP, {"intervals": {"max_steps": 2}}), "full")
    half = trainings.run(merged({**ONE_STEP, **HALVES}, {"intervals": {"max_steps": 2}}), "half")
    model = models[-1]
    for network in (model.unet, model.text_encoder):
        assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.vae.parameters()} == {torch.float32}
    assert half.losses == pytest.approx(full.losses, rel=0.05)
    assert half.state is not None and full.state is not None
    for part, weights in half.weights.items():
        assert all(torch.equal(w.bfloat16().float(), w) for w in weights.values())
        base = dict(
            load_components(trainings.workspace.model("tiny")).modules()[part].named_parameters()
        )
        steps = [(w - base[k]).flatten() for k, w in weights.items()]
        exact = [(w - base[k]).flatten() for k, w in full.weights[part].items()]
        towards = torch.nn.functional.cosine_similarity(torch.cat(steps), torch.cat(exact), dim=0)
        assert towards > 0.3  # a step of 1e-3 is about what bf16 can hold
    average = half.state.ema["unet.conv_in.weight"]
    assert average.dtype == torch.float32
    assert not torch.equal(average.bfloat16().float(), average)
    memory = half.state.optimizer["unet"][0]
    assert memory["exp_avg"].dtype == torch.float32


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_four_steps_in_bf16_are_two_and_two_resumed(trainings: Trainings, optimizer: str) -> None:
    settings = {
        **HALVES,
        "batch": {"batch_size": 2, "set_to_none": False},
        "text_encoder": {"train_ratio": 0.75},
        "optimizer": {"name": optimizer},
        "ema": {"device": "cpu"},
    }
    whole = trainings.run(settings, f"{optimizer} whole")
    first = trainings.run(settings, f"{optimizer} first", at_step={2: ["stop"]})
    rest = trainings.run({**settings, "resume": True}, f"{optimizer} rest")
    assert first.losses + rest.losses == whole.losses
    assert whole.state is not None and rest.state is not None
    assert same(rest.state.weights, whole.state.weights)
    assert same(rest.state.ema, whole.state.ema)
    assert same(rest.state.optimizer, whole.state.optimizer)


def test_previews_and_checkpoints_are_written_of_bf16_weights(trainings: Trainings) -> None:
    changes = {
        "previews": {"every_steps": 1, "prompts": ["a dog"], "steps": 1},
        "saving": {"save_at_end": True, "name": "halves"},
    }
    run = trainings.run({**ONE_STEP, **HALVES, **changes}, "written")
    (picture,) = run.events_of(SampleSaved)
    with Image.open(picture.path) as image:
        assert len(set(image.convert("L").getdata())) > 5
    assert len(run.events_of(CheckpointSaved)) == 1


@pytest.mark.parametrize("lora", [{}, {"dora": True, "conv_rank": 2}], ids=["plain", "dora"])
def test_of_a_lora_only_the_model_is_in_bf16(
    trainings: Trainings, models: list[Components], lora: dict[str, Any]
) -> None:
    settings = {**ONE_STEP, "lora": {"enabled": True, "rank": 2, **lora}}
    exact = trainings.run(settings, "lora")
    run = trainings.run({**settings, **HALVES}, "halved lora")
    network = models[-1].unet
    kinds = {p.dtype for p in network.parameters() if p.requires_grad}
    assert kinds == {torch.float32}
    assert {p.dtype for p in network.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert run.losses == pytest.approx(exact.losses, rel=0.02)


# -- attention


@pytest.mark.turns("train.precision.attention")
def test_sliced_attention_goes_in_parts_to_the_same_result(
    trainings: Trainings, models: list[Components]
) -> None:
    plain = trainings.run(ONE_STEP, "plain")
    assert {type(p) for p in models[-1].unet.attn_processors.values()} == {AttnProcessor2_0}
    sliced = trainings.run({**ONE_STEP, "precision": {"attention": "sliced"}}, "sliced")
    assert {type(p) for p in models[-1].unet.attn_processors.values()} == {SlicedAttnProcessor}
    assert sliced.losses == pytest.approx(plain.losses, rel=1e-5)
    assert sliced.steps[0].grad_norm == pytest.approx(plain.steps[0].grad_norm, rel=1e-3)


def test_xformers_is_switched_on_where_it_is(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    switched: list[bool] = []
    monkeypatch.setattr(
        UNet2DConditionModel,
        "enable_xformers_memory_efficient_attention",
        lambda self: switched.append(True),
    )
    components = load_components(trainings.workspace.model("tiny"))
    apply_precision(PrecisionSection(attention="xformers"), components)
    assert switched == [True]


# -- what a machine cannot do


class Gpu:
    """A GPU of some generation that torch seems to see."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GTX 1080")


def refused(device: torch.device, **settings: Any) -> dict[str, str]:
    """What is said of each setting that is refused: the problem and the remedy."""
    try:
        require_support(PrecisionSection(**settings), device)
    except ConfigError as error:
        return {problem.field: f"{problem.message} {problem.remedy}" for problem in error.problems}
    return {}


@pytest.mark.turns("train.precision.tf32", "train.precision.attention")
def test_a_cpu_has_no_fp16_no_tf32_and_no_xformers() -> None:
    told = refused(CPU, mixed_precision="fp16", tf32=True, attention="xformers")
    assert set(told) == {f"precision.{name}" for name in ("mixed_precision", "tf32", "attention")}
    assert all("cpu" in words for words in told.values())
    assert refused(CPU, mixed_precision="bf16", attention="sliced", weights="bf16") == {}


def test_an_old_gpu_has_fp16_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpu(monkeypatch, (6, 1))
    told = refused(GPU, mixed_precision="bf16", tf32=True)
    assert "GTX 1080" in told["precision.mixed_precision"]
    assert "Choose fp16" in told["precision.mixed_precision"]
    assert "GTX 1080" in told["precision.tf32"]
    assert refused(GPU, mixed_precision="fp16") == {}


def test_a_new_gpu_has_them_and_xformers_if_it_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Gpu(monkeypatch, (8, 6))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    settings = {"mixed_precision": "bf16", "tf32": True, "attention": "xformers"}
    told = refused(GPU, **settings)
    assert set(told) == {"precision.attention"}
    assert "not installed" in told["precision.attention"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert refused(GPU, **settings) == {}


def test_a_machine_is_asked_before_the_model_is_loaded(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dreambooth_core.stages.train.refuse_or_warn", None)
    with pytest.raises(ConfigError) as caught:
        trainings.run({"precision": {"device": "cpu", "tf32": True}}, "refused")
    assert caught.value.problems[0].field == "precision.tf32"


@pytest.mark.turns("train.precision.tf32")
def test_tf32_shortens_matrix_products_only_if_asked_for(trainings: Trainings) -> None:
    components = load_components(trainings.workspace.model("tiny"))
    before = torch.get_float32_matmul_precision()
    try:
        apply_precision(PrecisionSection(tf32=True), components)
        assert torch.get_float32_matmul_precision() == "high"
        apply_precision(PrecisionSection(), components)
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


# -- where the average is


@pytest.mark.turns("train.ema.device")
@pytest.mark.parametrize(("device", "expected"), [("auto", None), ("cpu", "cpu")])
def test_the_average_lies_beside_the_weights_or_on_the_cpu(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch, device: str, expected: str | None
) -> None:
    asked: list[Any] = []

    class Spied(ExponentialMovingAverage):
        def __init__(self, *args: Any, **options: Any) -> None:
            asked.append(options["device"])
            super().__init__(*args, **options)

    monkeypatch.setattr(training_setup, "ExponentialMovingAverage", Spied)
    run = trainings.run({**ONE_STEP, "ema": {"device": device}}, f"ema {device}")
    assert asked == [expected]
    assert run.state is not None and run.state.ema


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_average_on_the_cpu_follows_weights_on_the_gpu() -> None:
    weights = torch.zeros(3, device="cuda", dtype=torch.bfloat16)
    average = ExponentialMovingAverage({"w": weights}, 0.0, device="cpu")
    weights.fill_(1.0)
    average.update(1)
    assert average.state_dict()["w"].device.type == "cpu"
    assert average.state_dict()["w"].tolist() == [1.0] * 3
