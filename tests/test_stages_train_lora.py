"""Training a LoRA: what learns, its files and states, resuming, previews, and the plan of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dreambooth_core.config.schema import (
    BakeLoraConfig,
    CreateConfig,
    SampleConfig,
    SaveConfig,
)
from dreambooth_core.errors import InputError
from dreambooth_core.families import FAMILIES, load_checkpoint, load_components
from dreambooth_core.families.base import Components
from dreambooth_core.job.events import (
    CheckpointSaved,
    FilesPlanned,
    LoraSaved,
    Notice,
    PlanMade,
    SampleSaved,
)
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.stages import bake_lora, create, plan, sample, save
from dreambooth_core.stages.lora_training import load_with_adapters
from tests.lora_reference import put_in
from tests.original_layout import TINY_SD2, TINY_SDXL, Layout
from tests.tiny import stage_context, write_tiny_checkpoint
from tests.trainings import Trained, Trainings, merged, same, trainings_in

SMALL: dict[str, Any] = {
    "enabled": True,
    "rank": 2,
    "alpha": 1.0,
    "unet_learning_rate": 1e-2,
    "text_encoder_learning_rate": 1e-2,
}
TWO_STEPS: dict[str, Any] = {
    "intervals": {"epochs": 1},
    "batch": {"batch_size": 2},
    "lora": SMALL,
    "saving": {"dtype": "fp32"},
}
SINGLE: dict[str, Any] = {"intervals": {"max_steps": 2}, "lora": SMALL, "saving": {"dtype": "fp32"}}
"""Two steps of one picture: the first leaves its mark in the second's loss."""
SAVED: dict[str, Any] = {"saving": {"save_at_end": True, "dtype": "fp32", "use_ema": False}}
LARGER: dict[str, Any] = {
    "conv_rank": 3,
    "conv_alpha": 1.5,
    "text_encoder_rank": 4,
    "text_encoder_alpha": 2.0,
}


@pytest.fixture(scope="module")
def trainings(module_folder: Path, _created_model: Path) -> Trainings:
    """One workspace with a tiny model for all tests of this module."""
    return trainings_in(module_folder, _created_model)


@pytest.fixture(scope="module")
def plain(trainings: Trainings) -> Trained:
    """Two steps with linear layers alone, the last weights saved."""
    return trainings.run(merged(merged(TWO_STEPS, SAVED), {"saving": {"name": "plain"}}), "plain")


def lora_of(run: Trained) -> Path:
    """The LoRA file that the run wrote last."""
    return Path(run.summary["loras"][-1])


def metadata_of(path: Path) -> dict[str, str]:
    """A file's metadata."""
    with safe_open(path, "pt") as file:
        found: dict[str, str] = file.metadata()
    return found


@torch.no_grad()
def answers(components: Components) -> tuple[torch.Tensor, torch.Tensor]:
    """What the text encoder makes of a prompt, and what the UNet says to fixed noise."""
    family = FAMILIES[components.family]
    told = family.encode_prompts(components, ["a zwx dog", "red"])
    told = told.beside(torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]] * 2), None)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    timesteps = torch.tensor([3, 700])
    return told.encoder_hidden_states, family.predict(components, latents, timesteps, told)


# -- the file gives the trained model's output


@pytest.mark.parametrize(
    "changes",
    [{}, LARGER, {"dora": True}, {**LARGER, "dora": True}],
    ids=["linear", "convolutions", "dora", "dora convolutions"],
)
def test_the_file_at_strength_1_is_the_trained_model(
    trainings: Trainings, changes: dict[str, Any]
) -> None:
    name = f"file of {'-'.join(changes) or 'linear'}"
    settings = merged(merged(TWO_STEPS, SAVED), {"lora": changes, "saving": {"name": name}})
    run = trainings.run(settings, name)
    folder = trainings.workspace.model("tiny")
    config = trainings.config(settings)
    trained = load_with_adapters(folder, config.lora, run.weights)
    applied = load_components(folder)
    tensors = load_file(lora_of(run))
    layers = {key.partition(".")[0] for key in tensors}
    changed = put_in(applied.unet, lora_of(run), "unet")
    assert changed + put_in(applied.text_encoder, lora_of(run), "text_encoder") == len(layers)
    before = answers(load_components(folder))
    for untrained, ours, theirs in zip(before, answers(trained), answers(applied), strict=True):
        assert (ours - untrained).abs().max() > 1e-3
        assert (ours - theirs).abs().max() < 1e-5


def test_the_file_has_the_webuis_keys(plain: Trained) -> None:
    tensors = load_file(lora_of(plain))
    query = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    for name in (query, text, "lora_unet_mid_block_attentions_0_proj_in"):
        assert {f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"} <= {*tensors}
        assert tensors[f"{name}.alpha"].item() == 1.0
    assert tensors[f"{query}.lora_down.weight"].shape[0] == 2
    projection = tensors["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"]
    assert projection.shape[2:] == (1, 1)
    names = {key.partition(".")[0] for key in tensors}
    assert len(tensors) == 3 * len(names)
    assert all(name.startswith(("lora_unet_", "lora_te_")) for name in names)


def test_the_file_says_what_it_is(trainings: Trainings, plain: Trained) -> None:
    metadata = metadata_of(lora_of(plain))
    expected = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "1",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_output_name": "plain_2",
        "ss_sd_model_name": "tiny-source.safetensors",
        "ss_resolution": "(64, 64)",
        "ss_clip_skip": "1",
        "ss_num_train_images": "4",
        "ss_num_reg_images": "0",
        "ss_steps": "2",
        "ss_epoch": "1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": "plain_2",
        "modelspec.trigger_phrase": "zwx",
        "dreambooth.step": "2",
        "dreambooth.ema": "false",
    }
    assert {key: metadata.get(key) for key in expected} == expected
    assert all(isinstance(value, str) and value[:1] != "{" for value in metadata.values())
    assert len(metadata["sshs_model_hash"]) == 64


# -- what learns


def test_the_base_is_not_touched_and_the_state_is_small(
    trainings: Trainings, plain: Trained
) -> None:
    assert set(plain.weights) == {"unet", "text_encoder"}
    for part, tensors in plain.weights.items():
        prefix = "lora_unet_" if part == "unet" else "lora_te_"
        assert all(key.startswith(prefix) for key in tensors)
        assert any(tensor.abs().max() > 0 for key, tensor in tensors.items() if "lora_up" in key)
    state = plain.state
    assert state is not None
    assert {*state.ema} == {
        f"{part}.{key}" for part in plain.weights for key in plain.weights[part]
    }
    remembered = state.optimizer["unet"]
    assert len(remembered) == len(plain.weights["unet"])


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"unet": {"train": False}}, {"text_encoder"}),
        ({"text_encoder": {"train_ratio": 0.0}}, {"unet"}),
    ],
    ids=["text encoder alone", "unet alone"],
)
def test_the_parts_are_trained_apart(
    trainings: Trainings, changes: dict[str, Any], parts: set[str]
) -> None:
    name = f"parts {'-'.join(parts)}"
    settings = merged(merged(TWO_STEPS, SAVED), {**changes, "saving": {"name": name}})
    run = trainings.run(settings, name)
    assert set(run.weights) == parts
    prefixes = {key.partition("_")[2].partition("_")[0] for key in load_file(lora_of(run))}
    assert prefixes == {"unet" if part == "unet" else "te" for part in parts}


def test_the_text_encoders_lora_stops_learning_after_its_share(trainings: Trainings) -> None:
    settings = merged(TWO_STEPS, {"text_encoder": {"train_ratio": 0.5}})
    run = trainings.run(settings, "share")
    one = trainings.run(merged(settings, {"intervals": {"max_steps": 1}}), "share one")
    assert "text_encoder" in run.steps[0].learning_rates
    assert "text_encoder" not in run.steps[1].learning_rates
    trained = trainings.run(
        merged(settings, {"text_encoder": {"train_ratio": 1.0}, "intervals": {"max_steps": 1}}),
        "share whole",
    )
    assert same(run.weights["text_encoder"], trained.weights["text_encoder"])
    assert not same(run.weights["unet"], one.weights["unet"])


@pytest.mark.turns("train.lora.unet_learning_rate", "train.lora.text_encoder_learning_rate")
@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"unet_learning_rate": 1e-3}, ("unet", "learning_rate")),
        ({"text_encoder_learning_rate": 1e-3}, ("text_encoder", "learning_rate")),
    ],
    ids=["unet", "text encoder"],
)
def test_lora_has_learning_rates_of_its_own(
    trainings: Trainings, plain: Trained, changes: dict[str, float], changed: tuple[str, str]
) -> None:
    run = trainings.run(merged(TWO_STEPS, {"lora": changes}), f"rate {changed[0]}")
    assert run.steps[0].learning_rates == {
        part: 1e-3 if part == changed[0] else 1e-2 for part in ("unet", "text_encoder")
    }
    assert not same(run.weights[changed[0]], plain.weights[changed[0]])


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 3},
        {"alpha": 2.0},
        {"conv_rank": 2},
        {"conv_rank": 2, "conv_alpha": 1.0},
        {"text_encoder_rank": 3},
        {"text_encoder_rank": 3, "text_encoder_alpha": 1.0},
        {"dora": True},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_every_size_changes_the_training(
    trainings: Trainings, changes: dict[str, Any], losses_so_far: set[tuple[float, ...]]
) -> None:
    run = trainings.run(merged(SINGLE, {"lora": changes}), f"size {'-'.join(changes)}")
    assert tuple(run.losses) not in losses_so_far
    losses_so_far.add(tuple(run.losses))


@pytest.fixture(scope="module")
def losses_so_far(trainings: Trainings) -> set[tuple[float, ...]]:
    """The losses seen so far, those without changes first."""
    return {tuple(trainings.run(SINGLE, "size").losses)}


def test_a_lora_learns(trainings: Trainings) -> None:
    settings = merged(TWO_STEPS, {"intervals": {"epochs": 6}, "lora": {"alpha": 2.0}})
    run = trainings.run(settings, "learns")
    assert sum(run.losses[-4:]) < 0.9 * sum(run.losses[:4])


def test_gradient_checkpointing_changes_nothing(trainings: Trainings, plain: Trained) -> None:
    run = trainings.run(merged(TWO_STEPS, {"batch": {"gradient_checkpointing": True}}), "recompute")
    assert run.losses == pytest.approx(plain.losses, rel=1e-5)


def test_mixed_precision_keeps_the_adapters_whole(trainings: Trainings, plain: Trained) -> None:
    changes = {"precision": {"mixed_precision": "bf16"}, "lora": {"dora": True}}
    run = trainings.run(merged(TWO_STEPS, changes), "bf16 training")
    assert all(t.dtype == torch.float32 for part in run.weights.values() for t in part.values())
    assert run.losses == pytest.approx(plain.losses, rel=0.1)


# -- states


@pytest.mark.parametrize("lora", [{}, {**LARGER, "dora": True}], ids=["plain", "everything"])
def test_four_steps_are_two_and_two_resumed(trainings: Trainings, lora: dict[str, Any]) -> None:
    settings = merged(
        TWO_STEPS,
        {
            "intervals": {"epochs": 2},
            "lora": lora,
            "learning_rate": {"schedule": "cosine", "warmup_steps": 1},
            "text_encoder": {"train_ratio": 0.75},
        },
    )
    name = "-".join(lora) or "plain"
    torch.manual_seed(3)
    whole = trainings.run(settings, f"{name} whole")
    torch.manual_seed(4)  # what the process drew before must not matter
    first = trainings.run(settings, f"{name} first", at_step={2: ["stop"]})
    rest = trainings.run({**settings, "resume": True}, f"{name} rest")
    assert [step.step for step in rest.steps] == [3, 4]
    assert first.losses + rest.losses == whole.losses
    assert whole.state is not None and rest.state is not None
    assert same(rest.state.weights, whole.state.weights)
    assert same(rest.state.ema, whole.state.ema)
    assert same(rest.state.optimizer, whole.state.optimizer)


def test_another_kind_of_training_cannot_go_on(trainings: Trainings) -> None:
    trainings.run(merged(TWO_STEPS, {"intervals": {"max_steps": 1}}), "before")
    others = {
        "enabled": False,
        "rank": 3,
        "conv_rank": 1,
        "text_encoder_rank": 1,
        "dora": True,
    }
    for name, value in others.items():
        settings = {**merged(TWO_STEPS, {"lora": {name: value}}), "resume": True}
        with pytest.raises(InputError, match="cannot go on") as caught:
            trainings.run(settings, f"after {name}")
        assert caught.value.field == f"lora.{name}"


def test_a_lora_cannot_go_on_from_a_models_training(trainings: Trainings) -> None:
    trainings.run({"intervals": {"max_steps": 1}}, "of the model")
    with pytest.raises(InputError, match="cannot go on"):
        trainings.run({**TWO_STEPS, "resume": True}, "of the lora")


def test_another_alpha_is_told_and_taken(trainings: Trainings) -> None:
    trainings.run(merged(TWO_STEPS, {"intervals": {"max_steps": 1}}), "alpha before")
    changes = {"lora": {"alpha": 2.0}, "intervals": {"max_steps": 2}}
    run = trainings.run({**merged(TWO_STEPS, changes), "resume": True}, "alpha after")
    (warning,) = [n.message for n in run.events_of(Notice) if n.level == "warning"]
    assert "lora.alpha 1.0 to 2.0" in warning


# -- files


def test_loras_are_saved_when_checkpoints_would_be(trainings: Trainings) -> None:
    saving = {"save_every_steps": 1, "save_at_end": True, "name": "often", "subfolder": "dogs"}
    run = trainings.run(merged(TWO_STEPS, {"saving": saving}), "often")
    folder = trainings.workspace.root / "models" / "Lora" / "dogs"
    paths = [folder / f"often_{step}.safetensors" for step in (1, 2)]
    assert run.summary["loras"] == [str(path) for path in paths]
    assert "checkpoints" not in run.summary
    events = run.events_of(LoraSaved)
    assert [(event.path, event.step) for event in events] == [
        (str(path), step) for step, path in enumerate(paths, start=1)
    ]
    assert [event.size for event in events] == [path.stat().st_size for path in paths]
    assert run.events_of(CheckpointSaved) == []
    assert trainings.workspace.model("tiny").read_info().checkpoints == []
    assert sorted(folder.glob("*.safetensors")) == paths
    card = json.loads((folder / "often_2.json").read_text(encoding="utf-8"))
    assert card["activation text"] == "zwx"


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_lora_has_the_number_format_asked_for(trainings: Trainings, dtype: str) -> None:
    saving = {"save_at_end": True, "dtype": dtype, "name": dtype}
    run = trainings.run(merged(TWO_STEPS, {"saving": saving}), dtype)
    expected = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    tensors = load_file(lora_of(run))
    assert {t.dtype for key, t in tensors.items() if "alpha" not in key} == {expected}


@pytest.mark.parametrize("averaged", [True, False])
def test_a_lora_has_the_average_or_the_last_weights(trainings: Trainings, averaged: bool) -> None:
    saving = {"save_at_end": True, "use_ema": averaged, "name": f"average {averaged}"}
    run = trainings.run(merged(TWO_STEPS, {"saving": saving}), f"average {averaged}")
    assert run.state is not None
    tensors = load_file(lora_of(run))
    key = next(key for key in run.weights["unet"] if "lora_up" in key)
    average, live = run.state.ema[f"unet.{key}"], run.weights["unet"][key]
    assert not torch.equal(average, live)
    assert torch.equal(tensors[key], average if averaged else live)
    assert metadata_of(lora_of(run))["dreambooth.ema"] == str(averaged).lower()


def test_previews_are_drawn_with_the_lora(trainings: Trainings) -> None:
    previews = {"every_steps": 1, "prompts": ["a dog"], "steps": 1, "use_ema": False}
    pixels = []
    for rate in (1e-2, 5e-2):
        changes = {"previews": previews, "lora": {"unet_learning_rate": rate}}
        run = trainings.run(merged(TWO_STEPS, changes), f"preview {rate}")
        pixels.append(Path(run.events_of(SampleSaved)[0].path).read_bytes())
    assert pixels[0] != pixels[1]


# -- what later jobs make of a state


@pytest.mark.turns("save.run")
def test_save_writes_the_same_lora_from_the_state(trainings: Trainings, plain: Trained) -> None:
    context, events = trainings.context("saving")
    config = SaveConfig(model="tiny", run="plain", name="later", dtype="fp32", use_ema=False)
    summary = save.run(config, context)
    assert summary["path"] == str(trainings.workspace.lora_dir / "later_2.safetensors")
    assert same(load_file(summary["path"]), load_file(lora_of(plain)))
    (event,) = events
    assert isinstance(event, LoraSaved) and event.sha256 == summary["sha256"]
    assert metadata_of(Path(summary["path"]))["modelspec.trigger_phrase"] == "zwx"


def test_a_lora_has_no_format_of_a_source(trainings: Trainings, plain: Trained) -> None:
    context, _ = trainings.context("no source")
    with pytest.raises(InputError, match="no source"):
        save.run(SaveConfig(model="tiny", run="plain", dtype="source"), context)


def test_sample_draws_with_the_lora(trainings: Trainings, plain: Trained) -> None:
    fresh = trainings.run(merged(TWO_STEPS, {"lora": LARGER}), "to draw with")
    context, _ = trainings.context("drawing")
    source = sample.choose_source(
        SampleConfig(model="tiny", prompts=["a dog"], use_ema=False), context
    )
    settings = trainings.config(merged(TWO_STEPS, {"lora": LARGER}))
    expected = load_with_adapters(trainings.workspace.model("tiny"), settings.lora, fresh.weights)
    assert same(answers(source.components), answers(expected))
    assert "to draw with" in source.name


# -- the plan


def test_the_plan_comes_true(trainings: Trainings) -> None:
    saving = {"save_every_steps": 1, "save_at_end": True, "name": "planned", "dtype": "fp16"}
    settings = merged(TWO_STEPS, {"saving": saving, "lora": {**LARGER, "dora": True}})
    context, events = trainings.context("plan")
    plan.run(trainings.config(settings), context)
    (made,) = [event for event in events if isinstance(event, PlanMade)]
    assert "Trains a LoRA of rank 2 for the UNet and the text encoder." in made.lines
    assert any("planned_1.safetensors" in line and "Lora" in line for line in made.lines)
    (files,) = [event for event in events if isinstance(event, FilesPlanned)]
    planned = {row.path: row.bytes for row in files.rows if row.path.endswith(".safetensors")}
    run = trainings.run(settings, "planned")
    written = {path: Path(path).stat().st_size for path in run.summary["loras"]}
    assert list(planned) == list(written)
    for path, size in written.items():
        assert planned[path] == pytest.approx(size, rel=0.3)
    state = sum(path.stat().st_size for path in Path(run.summary["state"]).iterdir())
    (row,) = [row for row in files.rows if "step_" in row.path]
    assert row.bytes == pytest.approx(state, rel=0.7)


# -- other families


@pytest.mark.parametrize("layout", [TINY_SD2, TINY_SDXL], ids=["sd2", "sdxl"])
def test_other_families_learn_and_write_what_they_learnt(tmp_path: Path, layout: Layout) -> None:
    """The file, baked into the checkpoint, gives the trained model's own output."""
    root = tmp_path / layout.family
    workspace = Workspace(root)
    source = workspace.checkpoints_dir / "base.safetensors"
    write_tiny_checkpoint(source, dtype=torch.float32, layout=layout)
    create.run(CreateConfig(name="tiny", source=str(source)), stage_context(workspace))
    trainings = Trainings(workspace)
    settings = merged(merged(TWO_STEPS, SAVED), {"lora": {**LARGER, "dora": True}})
    run = trainings.run(settings, "other")
    encoders = FAMILIES[layout.family].text_encoders
    assert set(run.weights) == {"unet", *encoders}
    baking = BakeLoraConfig(name="baked", checkpoint="base", lora="tiny_2", dtype="fp32")
    baked = bake_lora.run(baking, stage_context(workspace))
    folder = workspace.model("tiny")
    trained = load_with_adapters(folder, trainings.config(settings).lora, run.weights)
    applied = load_checkpoint(Path(baked["path"]), folder)
    before = answers(load_components(folder))
    for untrained, ours, theirs in zip(before, answers(trained), answers(applied), strict=True):
        assert (ours - untrained).abs().max() > 1e-3
        assert (ours - theirs).abs().max() < 1e-5
    if layout is TINY_SD2:
        return  # a state with one text encoder is resumed above
    first = trainings.run(settings, "first", at_step={1: ["stop"]})
    rest = trainings.run({**settings, "resume": True}, "rest")
    assert first.losses + rest.losses == run.losses
    assert rest.state is not None and run.state is not None
    assert same(rest.state.weights, run.state.weights)
