"""Rules of lengths, pauses, number formats, parts and layers: what does not fit is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth_core.config.schema import Concept, TrainConfig
from dreambooth_core.config.serialize import apply_set
from dreambooth_core.config.validate import validate
from dreambooth_core.job.workspace import ModelInfo, Workspace


@pytest.fixture
def training(tmp_path: Path) -> TrainConfig:
    """Settings without a fault."""
    (tmp_path / "one.png").write_bytes(b"")
    return TrainConfig(model="ada", concepts=[Concept(instance_folder=str(tmp_path))])


def problems(training: TrainConfig, *assignments: str) -> list[str]:
    """What is said of settings with some changed."""
    for assignment in assignments:
        training = apply_set(training, assignment)
    return [str(problem) for problem in validate(training, None)]


LORA = "lora.enabled=on"
HALVES = ("precision.weights=bf16", "precision.mixed_precision=bf16")


@pytest.mark.parametrize(
    ("assignments", "start"),
    [
        (["intervals.epochs=0"], "intervals.epochs: is 0, and intervals.max_steps too"),
        (["intervals.pause_every_epochs=2"], "intervals.pause_seconds: is 0"),
        (["intervals.pause_seconds=2"], "intervals.pause_every_epochs: is 0"),
        (["precision.weights=bf16"], "precision.weights: is bf16, but mixed_precision is no."),
        (
            ["precision.weights=bf16", "precision.mixed_precision=fp16"],
            "precision.weights: is bf16, but mixed_precision is fp16.",
        ),
        (
            [*HALVES, "optimizer.name=adamw_schedule_free"],
            "precision.weights: is bf16, which cannot hold the averages",
        ),
        (["precision.device=cpu", "precision.tf32=on"], "precision.tf32: needs a GPU"),
        (
            ["precision.device=cpu", "precision.attention=xformers"],
            "precision.attention: xformers needs a GPU",
        ),
        (
            ["precision.device=cpu", "precision.mixed_precision=fp16"],
            "precision.mixed_precision: is fp16 on the cpu.",
        ),
        (["unet.parts=attention", LORA], "unet.parts: is for training the whole model"),
        (["unet.parts=attention", "unet.train=off"], "unet.parts: is set, but unet.train is off."),
        (["unet.freeze_spectral_norm=on", LORA], "unet.freeze_spectral_norm: is for training the"),
        (
            ["unet.freeze_spectral_norm=on", "unet.train=off"],
            "unet.freeze_spectral_norm: is set, but unet.train is off.",
        ),
        (
            ["unet.freeze_spectral_norm=on", *HALVES],
            "unet.freeze_spectral_norm: is set, but weights in bf16",
        ),
        (
            ["unet.freeze_spectral_norm=on", "optimizer.name=adamw_schedule_free"],
            "unet.freeze_spectral_norm: is set, but adamw_schedule_free",
        ),
    ],
)
def test_what_does_not_go_together_is_named(
    training: TrainConfig, assignments: list[str], start: str
) -> None:
    found = [text for text in problems(training, *assignments) if text.startswith(start)]
    assert len(found) == 1
    assert len(found[0]) > len(start)  # a remedy follows


@pytest.mark.parametrize(
    "assignments",
    [
        ["intervals.epochs=0", "intervals.max_steps=5"],
        ["intervals.pause_every_epochs=2", "intervals.pause_seconds=5"],
        [*HALVES],
        [*HALVES, LORA, "text_encoder.freeze_norm_layers=on"],
        ["precision.tf32=on", "precision.attention=xformers", "precision.mixed_precision=fp16"],
        ["unet.parts=cross_attention_kv", "unet.freeze_spectral_norm=on"],
    ],
)
def test_what_goes_together_is_not(training: TrainConfig, assignments: list[str]) -> None:
    assert problems(training, *assignments) == []


def test_a_layer_that_the_text_encoder_lacks_is_named(
    training: TrainConfig, workspace: Workspace
) -> None:
    folder = workspace.model("ada")
    (folder.path / "text_encoder").mkdir(parents=True)
    config = folder.path / "text_encoder" / "config.json"
    config.write_text('{"num_hidden_layers": 4}', encoding="utf-8")
    for family, skip, refused in (("sd1", 4, False), ("sd1", 5, True), ("sd2", 5, False)):
        folder.write_info(ModelInfo("ada", family, ""))
        changed = apply_set(training, f"text_encoder.clip_skip={skip}")
        fields = [problem.field for problem in validate(changed, workspace)]
        assert fields == ["text_encoder.clip_skip"] * refused
