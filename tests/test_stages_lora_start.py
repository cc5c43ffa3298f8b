"""A LoRA's training that begins from a file, and comparing LoRA files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth_core.config.schema import BakeLoraConfig, CompareConfig
from dreambooth_core.config.validate import validate
from dreambooth_core.errors import CheckpointError, InputError
from dreambooth_core.families import load_checkpoint, load_components
from dreambooth_core.job.events import EventWriter, LoraSaved, Notice
from dreambooth_core.job.history import saved_loras
from dreambooth_core.job.runs import Run, create_run_folder, events_path, write_run
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.stages import bake_lora, compare
from dreambooth_core.stages.lora_start import put_in
from tests.test_stages_train_lora import LARGER, SAVED, TWO_STEPS, lora_of, metadata_of
from tests.tiny import VARIANTS, stage_context, tiny_model, write_tiny_checkpoint
from tests.trainings import Trained, Trainings, merged, trainings_in

STANDING = {"unet_learning_rate": 1e-12, "text_encoder_learning_rate": 1e-12}
"""Rates at which a step moves nothing that fp32 could show."""


@pytest.fixture(scope="module")
def trainings(module_folder: Path, _created_model: Path) -> Trainings:
    """One workspace with a tiny model for all tests of this module."""
    return trainings_in(module_folder, _created_model)


def named(name: str, *changes: dict[str, Any]) -> dict[str, Any]:
    """Settings of two steps whose last weights are saved under a name."""
    settings = merged(merged(TWO_STEPS, SAVED), {"saving": {"name": name}})
    for change in changes:
        settings = merged(settings, change)
    return settings


@pytest.fixture(scope="module")
def first(trainings: Trainings) -> Trained:
    """Two steps from nothing."""
    return trainings.run(named("first"), "first")


def going_on(start: str | Path, **lora: Any) -> dict[str, Any]:
    """Settings of a training that begins with a file."""
    return {"lora": {"start_from": str(start), **lora}}


@pytest.mark.turns("train.lora.start_from")
def test_a_training_goes_on_from_its_own_file(trainings: Trainings, first: Trained) -> None:
    name = lora_of(first).stem
    second = trainings.run(named("second", going_on(name, **STANDING)), "second")
    before, after = load_file(lora_of(first)), load_file(lora_of(second))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[key], after[key], atol=1e-7) for key in before)
    assert any(before[key].abs().max() > 1e-3 for key in before if "lora_up" in key)
    assert second.losses[0] != first.losses[0]
    assert metadata_of(lora_of(second))["dreambooth.started_from"] == name
    (told,) = [e.message for e in second.events_of(Notice) if "begins with" in e.message]
    assert lora_of(first).name in told and "begin anew" not in told


def test_what_the_file_has_learned_is_there_at_the_first_step(
    trainings: Trainings, first: Trained
) -> None:
    """The third step of one training has the loss of the first after two, on the same pictures."""
    single = {"batch": {"batch_size": 4}, "intervals": {"epochs": 3}, "ema": {"enabled": False}}
    straight = trainings.run(named("straight", single, {"saving": {"save_every_steps": 2}}), "all")
    two = straight.summary["loras"][0]
    again = trainings.run(named("again", single, going_on(two, **STANDING)), "again")
    assert again.losses[0] < straight.losses[0]


@pytest.mark.parametrize(
    "lora", [{"dora": True}, LARGER, {**LARGER, "dora": True}], ids=["dora", "larger", "all"]
)
def test_every_form_goes_on(trainings: Trainings, lora: dict[str, Any]) -> None:
    name = "-".join(lora)
    run = trainings.run(named(name, {"lora": lora}), name)
    start = going_on(lora_of(run), **lora, **STANDING)
    again = trainings.run(named(f"{name} on", start), f"{name} on")
    before, after = load_file(lora_of(run)), load_file(lora_of(again))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in before)


def test_a_file_of_the_unet_alone_lets_the_rest_begin_anew(
    trainings: Trainings, first: Trained, tmp_path: Path
) -> None:
    tensors = load_file(lora_of(first))
    unet = {key: t.clone() for key, t in tensors.items() if key.startswith("lora_unet_")}
    save_file(unet, tmp_path / "half.safetensors")
    start = going_on(tmp_path / "half.safetensors", **STANDING)
    run = trainings.run(named("half on", start), "half on")
    after = load_file(lora_of(run))
    assert after.keys() == tensors.keys()
    assert all(torch.allclose(unet[key], after[key], atol=1e-7) for key in unet)
    fresh = [key for key in after if key.startswith("lora_te_") and "lora_up" in key]
    assert fresh and all(after[key].abs().max() < 1e-6 for key in fresh)
    assert any("begin anew" in e.message for e in run.events_of(Notice))


def test_a_file_without_alphas_has_the_rank_as_alpha(
    trainings: Trainings, first: Trained, tmp_path: Path
) -> None:
    path = tmp_path / "plain.safetensors"
    tensors = {k: t.clone() for k, t in load_file(lora_of(first)).items() if "alpha" not in k}
    save_file(tensors, path)
    assert trainings.run(merged(TWO_STEPS, going_on(path, alpha=2.0)), "no alpha").losses
    assert "alpha 2" in refused(trainings, {"lora": {"start_from": str(path)}}, "lora.alpha")


def test_a_resumed_training_needs_the_file_no_more(trainings: Trainings, first: Trained) -> None:
    copy = lora_of(first).with_name("copy.safetensors")
    copy.write_bytes(lora_of(first).read_bytes())
    settings = merged(TWO_STEPS, going_on(copy))
    trainings.run(merged(settings, {"intervals": {"max_steps": 1}}), "resumed")
    copy.unlink()
    second = trainings.run({**settings, "resume": True}, "resumed on")
    assert [step.step for step in second.steps] == [2]


def refused(trainings: Trainings, changes: dict[str, Any], field: str) -> str:
    """What is said of a file that a training cannot begin with, before any work."""
    with pytest.raises(InputError) as raised:
        trainings.run(merged(TWO_STEPS, changes), "refused")
    assert raised.value.field == field
    return str(raised.value)


def test_files_of_another_form_are_refused_by_the_setting(
    trainings: Trainings, first: Trained
) -> None:
    path = lora_of(first)
    told = refused(trainings, going_on(path, rank=4), "lora.rank")
    assert "rank 2" in told and "Set lora.rank to 2" in told
    told = refused(trainings, going_on(path, alpha=7.0), "lora.alpha")
    assert "Set lora.alpha to 1." in told
    told = refused(trainings, going_on(path, text_encoder_rank=3), "lora.text_encoder_rank")
    assert "Set lora.text_encoder_rank to 2 and lora.text_encoder_alpha to 1" in told
    assert "no DoRA" in refused(trainings, going_on(path, dora=True), "lora.dora")
    off = {**going_on(path), "text_encoder": {"train_ratio": 0.0}}
    assert "the text encoder" in refused(trainings, off, "lora.start_from")
    off = {**going_on(path), "unet": {"train": False}}
    assert "the UNet" in refused(trainings, off, "lora.start_from")


def test_a_file_with_convolutions_asks_for_their_rank(trainings: Trainings) -> None:
    run = trainings.run(named("conv", {"lora": {"conv_rank": 3, "conv_alpha": 1.5}}), "conv")
    told = refused(trainings, going_on(lora_of(run)), "lora.conv_rank")
    assert "Set lora.conv_rank to 3 and lora.conv_alpha to 1.5" in told


def test_loras_of_other_models_are_refused(
    trainings: Trainings, first: Trained, tmp_path: Path
) -> None:
    tensors = {key: t.clone() for key, t in load_file(lora_of(first)).items()}
    path = tmp_path / "other.safetensors"
    save_file({k.replace("lora_te_", "lora_te1_"): t for k, t in tensors.items()}, path)
    assert "a layer that this model lacks" in refused(trainings, going_on(path), "lora.start_from")
    down = next(key for key in tensors if key.endswith("lora_down.weight"))
    save_file({**tensors, down: torch.ones(2, 999)}, path)
    with pytest.raises(CheckpointError, match="another size"):
        trainings.run(merged(TWO_STEPS, going_on(path)), "refused")


def test_what_is_no_lora_is_told_before_the_job_starts(
    trainings: Trainings, first: Trained
) -> None:
    def problems(**lora: Any) -> list[str]:
        config = trainings.config(merged(TWO_STEPS, {"lora": lora}))
        return [str(problem) for problem in validate(config, trainings.workspace)]

    assert problems(start_from=lora_of(first).stem) == []
    assert "no LoRA file 'nothing'" in problems(start_from="nothing")[0]
    checkpoint = write_tiny_checkpoint(trainings.workspace.root / "x.safetensors")
    assert "is no LoRA" in problems(start_from=str(checkpoint))[0]
    assert "lora.enabled" in problems(start_from="x", enabled=False)[0]


def test_sdxl_goes_on_in_its_own_naming(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    tiny_model(workspace, variant=VARIANTS["sdxl"])
    trainings = Trainings(workspace)
    run = trainings.run(named("xl"), "xl")
    again = trainings.run(named("xl on", going_on(lora_of(run), **STANDING)), "xl on")
    before, after = load_file(lora_of(run)), load_file(lora_of(again))
    assert {key.split("_")[1] for key in before} == {"unet", "te1", "te2"}
    assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in before)


# -- comparing


@pytest.mark.parametrize("name", ["first", "dora"])
def test_a_lora_put_in_is_the_lora_baked_in(
    trainings: Trainings, first: Trained, name: str
) -> None:
    run = first
    if name == "dora":
        run = trainings.run(named("dora in", {"lora": {"dora": True}}), "dora in")
    workspace = trainings.workspace
    folder = workspace.model("tiny")
    source = folder.read_info().source
    config = BakeLoraConfig(
        name=f"baked {name}", checkpoint=source, lora=str(lora_of(run)), dtype="fp32"
    )
    baked = bake_lora.run(config, stage_context(workspace))
    expected = load_checkpoint(Path(baked["path"]), folder)
    ours = load_components(folder)
    put_in(ours, lora_of(run))
    for name, module in expected.modules().items():
        for key, value in module.state_dict().items():
            assert torch.allclose(ours.modules()[name].state_dict()[key], value, atol=1e-6), key


def test_loras_are_compared_with_the_base(trainings: Trainings, first: Trained) -> None:
    workspace = trainings.workspace
    config = CompareConfig(
        model="tiny", checkpoints=[lora_of(first).stem], prompts=["a zwx dog"], steps=1
    )
    assert validate(config, workspace) == []
    summary = compare.run(config, stage_context(workspace))
    rows = json.loads(Path(summary["numbers"]).read_text())["rows"]
    assert [row["checkpoint"] for row in rows] == ["as created", lora_of(first).stem]
    assert Path(summary["grid"]).is_file()


def test_none_named_are_all_loras_that_the_models_runs_saved(
    trainings: Trainings, first: Trained
) -> None:
    workspace = trainings.workspace
    folder = create_run_folder(workspace, "train")
    write_run(folder, Run(folder.name, "train", workspace.root, trainings.config(TWO_STEPS)))
    gone = workspace.lora_dir / "gone.safetensors"
    for path in (lora_of(first), gone):
        EventWriter(events_path(folder)).emit(LoraSaved(str(path), 2, 0, "", 1))
    assert saved_loras(workspace, "tiny") == [lora_of(first), gone]
    assert saved_loras(workspace, "other") == []
    events: list[Any] = []
    config = CompareConfig(model="tiny", prompts=["a zwx dog"])
    found = compare.candidates(config, stage_context(workspace, events))
    assert [candidate.path for candidate in found] == [None, lora_of(first)]
    assert "gone.safetensors is no longer there" in events[0].message


def test_a_lora_of_another_family_is_refused(
    trainings: Trainings, first: Trained, tmp_path: Path
) -> None:
    path = tmp_path / "other.safetensors"
    tensors = load_file(lora_of(first))
    save_file({f"lora_te9_{key}": t.clone() for key, t in tensors.items()}, path)
    with pytest.raises(CheckpointError, match="fits no layer"):
        put_in(load_components(trainings.workspace.model("tiny")), path)
