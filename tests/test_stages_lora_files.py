"""Extracting a LoRA from two checkpoints, and baking one into a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreambooth_core.adapters.lora_file import low_rank_entries, write_lora
from dreambooth_core.adapters.weights import LowRank
from dreambooth_core.config.schema import BakeLoraConfig, ExtractLoraConfig
from dreambooth_core.config.validate import validate
from dreambooth_core.errors import CheckpointError, InputError
from dreambooth_core.families import load_checkpoint
from dreambooth_core.families.base import Components
from dreambooth_core.job.commands import Command
from dreambooth_core.job.events import CheckpointSaved, Event, LoraSaved, Notice
from dreambooth_core.job.workspace import ModelFolder, Workspace
from dreambooth_core.stages import bake_lora, extract_lora
from tests.lora_reference import changed_weight
from tests.original_layout import TINY, TINY_SD2, TINY_SDXL, Layout
from tests.tiny import TEXT, UNET, stage_context, write_tiny_checkpoint

QUERY = f"{UNET}middle_block.1.transformer_blocks.0.attn1.to_q.weight"
PROJECTION = f"{UNET}middle_block.1.proj_in.weight"
CONVOLUTION = f"{UNET}middle_block.0.in_layers.2.weight"
TEXT_QUERY = f"{TEXT}text_model.encoder.layers.0.self_attn.q_proj.weight"
NAMES = {
    QUERY: "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q",
    PROJECTION: "lora_unet_mid_block_attentions_0_proj_in",
    CONVOLUTION: "lora_unet_mid_block_resnets_0_conv1",
    TEXT_QUERY: "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
}


def write_pair(
    workspace: Workspace, rank: int = 2, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Write a base and a copy of which four weights are changed by matrices of a rank."""
    base = workspace.checkpoints_dir / "base.safetensors"
    write_tiny_checkpoint(base, dtype=dtype)
    before = {key: tensor.clone() for key, tensor in load_file(base).items()}
    after, generator = dict(before), torch.Generator().manual_seed(3)
    for key in NAMES:
        flat = before[key].float().flatten(1)
        left = torch.randn(flat.shape[0], rank, generator=generator)
        right = torch.randn(rank, flat.shape[1], generator=generator)
        after[key] = (flat + 0.2 * left @ right).reshape(before[key].shape).to(dtype)
    save_file(after, workspace.checkpoints_dir / "trained.safetensors")
    return before, after


def extract(workspace: Workspace, events: list[Event] | None = None, **changes: Any) -> Path:
    """Extract a LoRA and return its file."""
    settings = {"name": "x", "base": "base", "trained": "trained", "dtype": "fp32", **changes}
    config = ExtractLoraConfig(**settings)
    assert validate(config, workspace) == []
    return Path(extract_lora.run(config, stage_context(workspace, events))["path"])


def bake(workspace: Workspace, events: list[Event] | None = None, **changes: Any) -> Path:
    """Bake the LoRA x into the base and return the checkpoint."""
    settings = {"name": "baked", "checkpoint": "base", "lora": "x", "dtype": "fp32", **changes}
    config = BakeLoraConfig(**settings)
    assert validate(config, workspace) == []
    return Path(bake_lora.run(config, stage_context(workspace, events))["path"])


def put_lora(
    workspace: Workspace, layers: dict[str, LowRank], name: str = "x", **told: str
) -> Path:
    """Write a LoRA into the Lora folder; `told` is added to what it says about itself."""
    path = workspace.lora_dir / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lora(path, low_rank_entries(layers, "F32"), {"ss_network_dim": "2", **told})
    return path


def layer_for(weight: Tensor, rank: int = 2, dora: bool = False) -> LowRank:
    """A random LoRA layer for a weight."""
    generator = torch.Generator().manual_seed(weight.numel())
    ones = [1] * (weight.dim() - 2)
    scale = 0.5 + torch.rand(1, weight.shape[1], *ones, generator=generator)
    return LowRank(
        0.3 * torch.randn(rank, *weight.shape[1:], generator=generator),
        0.3 * torch.randn(weight.shape[0], rank, *ones, generator=generator),
        alpha=1.5,
        dora_scale=scale if dora else None,
    )


def metadata_of(path: Path) -> dict[str, str]:
    """A file's metadata."""
    with safe_open(path, "pt") as file:
        found: dict[str, str] = file.metadata()
    return found


# -- extracting


@pytest.mark.turns("extract-lora.base", "extract-lora.trained")
def test_a_change_of_low_rank_is_found_again(workspace: Workspace) -> None:
    before, after = write_pair(workspace)
    events: list[Event] = []
    path = extract(workspace, events, rank=2, conv_rank=2)
    assert path == workspace.lora_dir / "x.safetensors"
    tensors = load_file(path)
    assert {key.partition(".")[0] for key in tensors} == set(NAMES.values())
    for key, name in NAMES.items():
        assert tensors[f"{name}.lora_down.weight"].shape[0] == 2
        applied = changed_weight(before[key], tensors, name)
        assert torch.allclose(applied, after[key], atol=1e-5), key
    (saved,) = [event for event in events if isinstance(event, LoraSaved)]
    assert saved.path == str(path) and saved.size == path.stat().st_size


@pytest.mark.turns("extract-lora.rank")
def test_the_rank_says_how_much_is_kept(workspace: Workspace) -> None:
    before, after = write_pair(workspace, rank=4)
    errors = []
    for rank in (1, 2, 4):
        tensors = load_file(extract(workspace, name=f"r{rank}", rank=rank))
        applied = changed_weight(before[QUERY], tensors, NAMES[QUERY])
        errors.append((applied - after[QUERY]).norm().item())
    assert errors[0] > errors[1] > errors[2] == pytest.approx(0, abs=1e-4)
    values = torch.linalg.svdvals(after[QUERY] - before[QUERY])
    assert errors[1] == pytest.approx(values[2:].norm().item(), rel=1e-3)


@pytest.mark.turns("extract-lora.conv_rank", "extract-lora.text_encoder")
def test_convolutions_and_the_text_encoder_are_extracted_if_asked_for(workspace: Workspace) -> None:
    write_pair(workspace)
    for changes, left_out in (
        ({}, CONVOLUTION),
        ({"conv_rank": 1, "text_encoder": False}, TEXT_QUERY),
    ):
        tensors = load_file(extract(workspace, name=f"n{len(changes)}", **changes))
        found = {key.partition(".")[0] for key in tensors}
        assert found == {name for key, name in NAMES.items() if key != left_out}


@pytest.mark.turns("extract-lora.name", "extract-lora.dtype", "extract-lora.subfolder")
def test_an_extracted_lora_says_what_it_is(workspace: Workspace) -> None:
    write_pair(workspace)
    path = extract(workspace, name="mine", rank=3, conv_rank=2, dtype="fp16", subfolder="sub")
    assert path == workspace.lora_dir / "sub" / "mine.safetensors"
    metadata = metadata_of(path)
    expected = {
        "ss_base_model_version": "sd_v1",
        "ss_network_dim": "3",
        "ss_network_alpha": "3",
        "ss_network_module": "networks.lora",
        "ss_output_name": "mine",
        "ss_sd_model_name": "base.safetensors",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "dreambooth.extracted_from": "trained.safetensors",
    }
    assert {key: metadata.get(key) for key in expected} == expected
    tensors = load_file(path)
    assert tensors[f"{NAMES[QUERY]}.lora_down.weight"].dtype == torch.float16
    assert tensors[f"{NAMES[QUERY]}.alpha"].item() == 3.0


def test_extracted_and_baked_in_again_it_is_the_trained_checkpoint(workspace: Workspace) -> None:
    _, after = write_pair(workspace)
    extract(workspace, rank=2, conv_rank=2)
    baked = load_file(bake(workspace))
    assert baked.keys() == after.keys()
    for key, tensor in after.items():
        assert torch.allclose(baked[key].double(), tensor.double(), atol=1e-5), key


def test_nothing_to_extract_is_told(workspace: Workspace) -> None:
    write_pair(workspace)
    with pytest.raises(InputError, match="does not differ"):
        extract(workspace, trained="base")
    assert not workspace.lora_dir.exists()


def test_checkpoints_of_other_widths_are_refused(workspace: Workspace) -> None:
    write_pair(workspace)
    path = workspace.checkpoints_dir / "trained.safetensors"
    write_tiny_checkpoint(path, layout=replace(TINY, model_channels=64))
    with pytest.raises(CheckpointError, match="not of the form"):
        extract(workspace)


# -- baking


@pytest.mark.parametrize("dora", [False, True])
def test_baking_is_what_the_webui_does_with_the_lora(workspace: Workspace, dora: bool) -> None:
    before, _ = write_pair(workspace)
    layers = {name: layer_for(before[key], dora=dora) for key, name in NAMES.items()}
    tensors = load_file(put_lora(workspace, layers))
    baked = load_file(bake(workspace, strength=0.7, text_encoder_strength=-0.4))
    for key, tensor in before.items():
        strength = -0.4 if key == TEXT_QUERY else 0.7
        name = NAMES.get(key)
        expected = changed_weight(tensor, tensors, name, strength) if name else tensor
        assert torch.allclose(baked[key].double(), expected.double(), atol=1e-5), key


@pytest.mark.turns("bake-lora.strength", "bake-lora.text_encoder_strength")
@pytest.mark.parametrize(
    ("changes", "untouched"),
    [({"strength": 0.0}, QUERY), ({"text_encoder_strength": 0.0}, TEXT_QUERY)],
    ids=["unet", "text encoder"],
)
def test_a_strength_of_0_leaves_a_part_byte_for_byte(
    workspace: Workspace, changes: dict[str, float], untouched: str
) -> None:
    before, _ = write_pair(workspace, dtype=torch.float16)
    put_lora(workspace, {name: layer_for(before[key]) for key, name in NAMES.items()})
    baked = load_file(bake(workspace, dtype="source", **changes))
    changed = {key for key in before if not torch.equal(before[key], baked[key])}
    part = UNET if untouched == QUERY else TEXT
    assert changed == {key for key in NAMES if not key.startswith(part)}


def test_a_schedule_that_training_made_end_in_noise_is_marked(workspace: Workspace) -> None:
    before, _ = write_pair(workspace)
    put_lora(workspace, {NAMES[QUERY]: layer_for(before[QUERY])}, ss_zero_terminal_snr="True")
    baked = load_file(bake(workspace))
    assert baked.keys() - before.keys() == {"ztsnr"}
    assert baked["ztsnr"].shape == (0,)


@pytest.mark.turns("bake-lora.dtype")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("source", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)],
)
def test_weights_are_saved_as_asked_and_buffers_as_they_were(
    workspace: Workspace, name: str, dtype: torch.dtype
) -> None:
    before, _ = write_pair(workspace, dtype=torch.float16)
    put_lora(workspace, {NAMES[QUERY]: layer_for(before[QUERY])})
    path = bake(workspace, dtype=name)
    baked = load_file(path)
    assert list(baked) == list(before)
    assert baked[QUERY].dtype == baked[PROJECTION].dtype == dtype
    assert torch.equal(baked["alphas_cumprod"], before["alphas_cumprod"])
    assert torch.equal(baked[PROJECTION], before[PROJECTION].to(dtype))
    side = (workspace.checkpoints_dir / "base.yaml").read_bytes()
    assert path.with_suffix(".yaml").read_bytes() == side


@pytest.mark.turns("bake-lora.lora")
def test_a_baked_checkpoint_says_what_it_is_and_averages_are_left_out(workspace: Workspace) -> None:
    base = workspace.checkpoints_dir / "base.safetensors"
    write_tiny_checkpoint(base, ema=True)
    put_lora(workspace, {NAMES[QUERY]: layer_for(load_file(base)[QUERY])}, "style")
    events: list[Event] = []
    path = bake(workspace, events, lora="style", strength=0.8)
    metadata = metadata_of(path)
    expected = {
        "modelspec.title": "baked",
        "modelspec.merged_from": "base.safetensors, style.safetensors",
        "dreambooth.baked_lora": "style.safetensors",
        "dreambooth.baked_strength": "0.8",
        "dreambooth.baked_text_encoder_strength": "1",
    }
    assert {key: metadata.get(key) for key in expected} == expected
    assert not [key for key in load_file(path) if key.startswith("model_ema.")]
    (saved,) = [event for event in events if isinstance(event, CheckpointSaved)]
    assert saved.path == str(path)


def test_layers_that_fit_nothing_are_told(workspace: Workspace) -> None:
    before, _ = write_pair(workspace)
    layers = {NAMES[QUERY]: layer_for(before[QUERY]), "lora_unet_other": layer_for(before[QUERY])}
    put_lora(workspace, layers)
    events: list[Event] = []
    bake(workspace, events)
    (notice,) = [event for event in events if isinstance(event, Notice)]
    assert "1 layers" in notice.message and "lora_unet_other" in notice.message
    put_lora(workspace, {"lora_unet_other": layer_for(before[QUERY])}, "none")
    with pytest.raises(CheckpointError, match="fits no layer"):
        bake(workspace, lora="none")
    put_lora(workspace, {NAMES[QUERY]: layer_for(torch.zeros(6, 6))}, "wrong")
    with pytest.raises(CheckpointError, match="another size"):
        bake(workspace, lora="wrong")


@pytest.mark.turns("bake-lora.checkpoint", "bake-lora.name", "bake-lora.subfolder")
def test_it_is_baked_into_the_checkpoint_that_is_named(workspace: Workspace) -> None:
    before, after = write_pair(workspace)
    side = workspace.checkpoints_dir / "base.yaml"
    side.with_name("trained.yaml").write_bytes(side.read_bytes())
    put_lora(workspace, {NAMES[QUERY]: layer_for(before[QUERY])})
    path = bake(workspace, checkpoint="trained", name="mine", subfolder="of me")
    assert path == workspace.checkpoints_dir / "of me" / "mine.safetensors"
    change = load_file(path)[QUERY] - after[QUERY]
    assert torch.allclose(change, load_file(bake(workspace))[QUERY] - before[QUERY], atol=1e-5)


# -- other families


def weights_by_layer(components: Components) -> dict[str, Tensor]:
    """The adaptable weights of a loaded model, by the names that their layers have in it."""
    return {
        f"{name} {path}": module.weight.detach().clone()
        for name, network in components.modules().items()
        if name != "vae"
        for path, module in network.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }


FAMILY_NAMES = {
    "sd2": {
        "unet mid_block.attentions.0.proj_in": "lora_unet_mid_block_attentions_0_proj_in",
        "text_encoder text_model.encoder.layers.0.self_attn.v_proj": (
            "lora_te_text_model_encoder_layers_0_self_attn_v_proj"
        ),
    },
    "sdxl": {
        "unet mid_block.attentions.0.proj_in": "lora_unet_middle_block_1_proj_in",
        "unet down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (
            "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q"
        ),
        "text_encoder text_model.encoder.layers.0.self_attn.v_proj": (
            "lora_te1_text_model_encoder_layers_0_self_attn_v_proj"
        ),
        "text_encoder_2 text_model.encoder.layers.1.mlp.fc1": (
            "lora_te2_text_model_encoder_layers_1_mlp_fc1"
        ),
        "text_encoder_2 text_model.encoder.layers.0.self_attn.k_proj": (
            "lora_te2_text_model_encoder_layers_0_self_attn_k_proj"
        ),
    },
}


@pytest.mark.parametrize("layout", [TINY_SD2, TINY_SDXL], ids=["sd2", "sdxl"])
def test_other_families_have_names_of_their_own(workspace: Workspace, layout: Layout) -> None:
    """A text encoder's joined matrices and SDXL's names go there and back."""
    from dreambooth_core.config.schema import CreateConfig
    from dreambooth_core.stages import create

    base = workspace.checkpoints_dir / "base.safetensors"
    write_tiny_checkpoint(base, dtype=torch.float32, layout=layout)
    create.run(CreateConfig(name="m", source=str(base)), stage_context(workspace))
    folder: ModelFolder = workspace.model("m")
    before = weights_by_layer(load_checkpoint(base, folder))
    names = FAMILY_NAMES[layout.family]
    tensors = load_file(
        put_lora(workspace, {name: layer_for(before[place]) for place, name in names.items()})
    )
    baked = bake(workspace)
    after = weights_by_layer(load_checkpoint(baked, folder))
    for place, weight in before.items():
        name = names.get(place)
        expected = changed_weight(weight, tensors, name) if name else weight
        assert torch.allclose(after[place], expected, atol=1e-5), place
    found = load_file(extract(workspace, name="again", trained="baked", rank=4))
    assert {key.partition(".")[0] for key in found} == set(names.values())
    for place, name in names.items():
        assert torch.allclose(changed_weight(before[place], found, name), after[place], atol=1e-4)
    version = {"sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}[layout.family]
    metadata = metadata_of(workspace.lora_dir / "again.safetensors")
    assert metadata["ss_base_model_version"] == version
    assert metadata["ss_v2"] == str(layout.family == "sd2")


# -- problems and stops


def test_problems_are_told_before_anything_is_done(workspace: Workspace) -> None:
    before, _ = write_pair(workspace)
    put_lora(workspace, {NAMES[QUERY]: layer_for(before[QUERY])})

    def extracting(**changes: Any) -> list[str]:
        settings = {"name": "x", "base": "base", "trained": "trained", **changes}
        return [str(problem) for problem in validate(ExtractLoraConfig(**settings), workspace)]

    def baking(**changes: Any) -> list[str]:
        settings = {"name": "x", "checkpoint": "base", "lora": "x", **changes}
        return [str(problem) for problem in validate(BakeLoraConfig(**settings), workspace)]

    assert extracting() == baking() == []
    assert extracting(base="none")[0].startswith("base: There is no checkpoint")
    assert "rank" in extracting(rank=0)[0]
    assert baking(checkpoint="none")[0].startswith("checkpoint: ")
    assert baking(lora="none")[0].startswith("lora: There is no LoRA file")
    text = str(workspace.checkpoints_dir / "base.safetensors")
    assert "is no LoRA" in baking(lora=text)[0]
    assert "would do nothing" in baking(strength=0.0, text_encoder_strength=0.0)[0]
    sdxl = workspace.checkpoints_dir / "xl.safetensors"
    write_tiny_checkpoint(sdxl, layout=TINY_SDXL)
    assert "is of the family sdxl, and base of sd1" in extracting(trained="xl")[0]


def test_a_stop_leaves_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    before, _ = write_pair(workspace)
    put_lora(workspace, {NAMES[QUERY]: layer_for(before[QUERY])})
    context = stage_context(workspace)
    monkeypatch.setattr(context.commands, "poll", lambda: [Command("stop")])
    config = ExtractLoraConfig(name="y", base="base", trained="trained")
    assert extract_lora.run(config, context) == {"name": "y", "stopped": True}
    baking = BakeLoraConfig(name="y", checkpoint="base", lora="x")
    assert bake_lora.run(baking, context) == {"name": "y", "stopped": True}
    assert [path.name for path in workspace.lora_dir.iterdir()] == ["x.safetensors"]
    assert not list(workspace.checkpoints_dir.glob("y*"))
