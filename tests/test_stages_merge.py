"""Merging: what the WebUI's own merger gives, bit for bit, as a stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreambooth_core.checkpoint import merge as merging
from dreambooth_core.checkpoint.file import CheckpointReader
from dreambooth_core.checkpoint.recognise import CONV_IN
from dreambooth_core.config.schema import MergeConfig
from dreambooth_core.config.validate import validate
from dreambooth_core.errors import CheckpointError
from dreambooth_core.job.commands import Command
from dreambooth_core.job.events import CheckpointSaved, Event, Notice, PhaseProgress
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.stages import merge
from tests.original_layout import TINY
from tests.tiny import (
    TEXT,
    VARIANTS,
    Dtypes,
    stage_context,
    write_tiny_checkpoint,
    write_variant,
)

IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
ALPHAS = "alphas_cumprod"
QUERY = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
VAE = "first_stage_model.decoder.conv_in.weight"


def webui_merger(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], c: Mapping[str, Tensor] | None, m: float
) -> dict[str, Tensor]:
    """The WebUI's steps on whole state dicts (A1111 1.10.1, `extras.run_modelmerger`).

    First every weight of B becomes its difference to C, or 0 where C lacks it; then each key of A
    that holds "model" is merged, position ids left out. Where A takes more inputs than B, those
    that both have are merged in A's own tensor.
    """
    theirs = dict(b)
    if c is not None:
        for key in theirs:
            if key != IDS and "model" in key:
                lacks = torch.zeros_like(theirs[key])
                theirs[key] = theirs[key] - c[key] if key in c else lacks
    result = dict(a)
    for key in result:
        if "model" in key and key in theirs and key != IDS:
            shared = result[key][:, :4] if result[key].shape != theirs[key].shape else result[key]
            plain = c is None
            mixed = (1 - m) * shared + m * theirs[key] if plain else shared + m * theirs[key]
            if shared.shape != result[key].shape:
                whole = result[key].clone()
                whole[:, :4] = mixed
                mixed = whole
            result[key] = mixed
    return result


def three(workspace: Workspace, *dtypes: Dtypes, **changes: Any) -> list[dict[str, Tensor]]:
    """Write three random checkpoints a, b and c into the checkpoints folder; return them."""
    found = []
    for seed, (name, dtype) in enumerate(zip("abc", dtypes * 3, strict=False)):
        path = workspace.checkpoints_dir / f"{name}.safetensors"
        write_tiny_checkpoint(path, dtype=dtype, seed=seed, **changes)
        found.append(loaded(path))
    return found


def loaded(path: Path) -> dict[str, Tensor]:
    """A file's tensors in memory of their own: the file may be written anew."""
    return {key: tensor.clone() for key, tensor in load_file(path).items()}


def merged(workspace: Workspace, events: list[Event] | None = None, **changes: Any) -> Path:
    """Merge the three and return the file."""
    settings = {"name": "m", "primary": "a", "secondary": "b", "tertiary": "c", **changes}
    if settings.get("method") == "weighted_sum":
        settings["tertiary"] = ""
    config = MergeConfig(**settings)
    assert validate(config, workspace) == []
    return Path(merge.run(config, stage_context(workspace, events))["path"])


def identical(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """Whether two checkpoints hold the same, bit for bit."""
    assert ours.keys() == theirs.keys()
    return all(
        ours[key].dtype == theirs[key].dtype and torch.equal(ours[key], theirs[key]) for key in ours
    )


def metadata_of(path: Path) -> dict[str, str]:
    """A file's metadata."""
    with safe_open(path, "pt") as file:
        found: dict[str, str] = file.metadata()
    return found


# -- what comes out


@pytest.mark.turns("merge.multiplier")
@pytest.mark.parametrize(
    ("dtype", "multiplier"),
    [(torch.float16, 0.3), (torch.float16, 1.0), (torch.bfloat16, 0.3), (torch.float32, 0.0)],
)
def test_a_difference_is_added_as_the_webui_does(
    workspace: Workspace, dtype: torch.dtype, multiplier: float
) -> None:
    a, b, c = three(workspace, dtype)
    ours = load_file(merged(workspace, multiplier=multiplier, dtype="source"))
    assert identical(ours, webui_merger(a, b, c, multiplier))


@pytest.mark.turns("merge.method")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_two_are_mixed_as_the_webui_does(workspace: Workspace, dtype: torch.dtype) -> None:
    a, b, _ = three(workspace, dtype)
    path = merged(workspace, method="weighted_sum", multiplier=0.35, dtype="source")
    assert identical(load_file(path), webui_merger(a, b, None, 0.35))


@pytest.mark.parametrize("method", ["weighted_sum", "add_difference"])
def test_number_formats_may_be_mixed(workspace: Workspace, method: str) -> None:
    a, b, c = three(workspace, torch.float16, torch.float32, torch.bfloat16)
    ours = load_file(merged(workspace, method=method, multiplier=0.4, dtype="fp32"))
    theirs = webui_merger(a, b, c if method == "add_difference" else None, 0.4)
    for key, tensor in theirs.items():
        expected = tensor.float() if "model" in key and key != IDS else tensor
        assert torch.equal(ours[key], expected), key


@pytest.mark.turns("merge.arithmetic")
@pytest.mark.parametrize("method", ["weighted_sum", "add_difference"])
def test_fp32_arithmetic_rounds_only_at_the_end(workspace: Workspace, method: str) -> None:
    a, b, c = three(workspace, torch.float16)
    ours = load_file(
        merged(workspace, method=method, multiplier=0.3, arithmetic="fp32", dtype="fp16")
    )
    whole = [
        {k: t.float() if t.is_floating_point() else t for k, t in s.items()} for s in (a, b, c)
    ]
    exact = webui_merger(whole[0], whole[1], whole[2] if method == "add_difference" else None, 0.3)
    plain = webui_merger(a, b, c if method == "add_difference" else None, 0.3)
    assert torch.equal(ours[QUERY], exact[QUERY].half())
    assert not torch.equal(ours[QUERY], plain[QUERY])


@pytest.mark.turns("merge.dtype")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)],
)
def test_weights_are_saved_as_asked_and_buffers_as_they_were(
    workspace: Workspace, name: str, dtype: torch.dtype
) -> None:
    a, _, _ = three(workspace, torch.float16)
    ours = load_file(merged(workspace, dtype=name))
    assert ours[QUERY].dtype == ours[VAE].dtype == dtype
    for key in (ALPHAS, IDS):
        assert ours[key].dtype == a[key].dtype
        assert torch.equal(ours[key], a[key])


def test_the_order_is_that_of_a(workspace: Workspace) -> None:
    three(workspace, torch.float16)
    with CheckpointReader(workspace.checkpoints_dir / "a.safetensors") as reader:
        expected = list(reader.header.tensors)
    with CheckpointReader(merged(workspace)) as reader:
        assert list(reader.header.tensors) == expected


@pytest.mark.turns("merge.vae")
def test_the_vae_of_a_can_be_kept(workspace: Workspace) -> None:
    a, b, c = three(workspace, torch.float16)
    ours = load_file(merged(workspace, vae="keep", dtype="source"))
    theirs = webui_merger(a, b, c, 1.0)
    for key in theirs:
        expected = a if key.startswith("first_stage_model.") else theirs
        assert torch.equal(ours[key], expected[key]), key


def test_small_pieces_make_the_same(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = three(workspace, torch.float16, torch.float32, torch.float16)
    monkeypatch.setattr(merging, "PIECE_NUMBERS", 4999)
    ours = load_file(merged(workspace, multiplier=0.5, dtype="fp32"))
    assert torch.equal(ours[QUERY], webui_merger(a, b, c, 0.5)[QUERY].float())


def test_never_more_than_a_piece_is_read_at_once(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    three(workspace, torch.float32)
    read: list[int] = []
    fill = CheckpointReader._fill

    def watch(self: CheckpointReader, target: memoryview, offset: int, what: str) -> None:
        read.append(len(target))
        fill(self, target, offset, what)

    monkeypatch.setattr(merging, "PIECE_NUMBERS", 10_000)
    monkeypatch.setattr(CheckpointReader, "_fill", watch)
    merged(workspace)
    largest = max(
        t.numel() for t in load_file(workspace.checkpoints_dir / "a.safetensors").values()
    )
    assert largest > 10_000
    assert max(read) <= 40_000


@pytest.mark.parametrize("method", ["weighted_sum", "add_difference"])
@pytest.mark.parametrize("kind", VARIANTS)
def test_every_family_is_merged_as_the_webui_does(
    workspace: Workspace, kind: str, method: str
) -> None:
    """An inpainting model as A, plain ones of its family as B and C; B in another format."""
    variant = VARIANTS[kind]
    plain = replace(variant, layout=replace(variant.layout, in_channels=4))
    dtypes = (torch.float16, torch.bfloat16, torch.float16)
    a, b, c = (
        loaded(
            write_variant(workspace.checkpoints_dir / f"{name}.safetensors", each, dtype, seed=n)
        )
        for n, (name, each, dtype) in enumerate(
            zip("abc", (variant, plain, plain), dtypes, strict=True)
        )
    )
    path = merged(workspace, method=method, multiplier=0.35, dtype="fp32")
    theirs = webui_merger(a, b, c if method == "add_difference" else None, 0.35)
    for key, tensor in load_file(path).items():
        is_weight = "model" in key and tensor.is_floating_point()
        assert torch.equal(tensor, theirs[key].float() if is_weight else theirs[key]), key
    changed = {key for key in a if not torch.equal(theirs[key], a[key])}
    texts = ("cond_stage_model.", "conditioner.embedders.0.", "conditioner.embedders.1.")
    for part in ("model.diffusion_model.", "first_stage_model.", texts):
        assert any(key.startswith(part) for key in changed)
    yaml = (workspace.checkpoints_dir / "a.yaml").read_bytes()
    assert path.with_suffix(".yaml").read_bytes() == yaml


@pytest.mark.turns("merge.primary", "merge.secondary", "merge.tertiary")
def test_each_of_the_three_models_has_its_part(workspace: Workspace) -> None:
    a, b, c = (tensors[QUERY] for tensors in three(workspace, torch.float32))
    other = workspace.checkpoints_dir / "other.safetensors"
    d = load_file(write_tiny_checkpoint(other, dtype=torch.float32, seed=9))[QUERY]
    for model, expected in (
        ("primary", d + (b - c)),
        ("secondary", a + (d - c)),
        ("tertiary", a + (b - d)),
    ):
        ours = load_file(merged(workspace, **{model: "other"}, dtype="source"))
        assert torch.equal(ours[QUERY], expected)


# -- dare: a thinned difference


@pytest.mark.turns("merge.density")
def test_dare_adds_a_random_part_of_the_difference_made_larger(workspace: Workspace) -> None:
    a, b, c = three(workspace, torch.float32)
    settings = {"method": "dare", "density": 0.25, "multiplier": 0.5, "dtype": "source"}
    ours = load_file(merged(workspace, **settings))
    added, whole = ours[QUERY] - a[QUERY], 0.5 * (b[QUERY] - c[QUERY])
    kept = added.abs() > 1e-6
    assert 0.2 < kept.float().mean().item() < 0.3
    assert torch.allclose(added[kept], whole[kept] / 0.25, atol=1e-5)
    assert torch.equal(ours[ALPHAS], a[ALPHAS])


@pytest.mark.turns("merge.seed")
def test_dare_is_decided_by_its_seed_alone(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    three(workspace, torch.float32)
    settings = {"method": "dare", "density": 0.5, "dtype": "source"}
    first, other = (load_file(merged(workspace, **settings, seed=seed)) for seed in (1, 2))
    monkeypatch.setattr(merging, "PIECE_NUMBERS", 4999)
    assert identical(load_file(merged(workspace, **settings, seed=1)), first)
    assert not torch.equal(other[QUERY], first[QUERY])
    key = QUERY.replace("to_q", "to_k")  # of the same shape
    drop = [(first[name] == other[name]) for name in (QUERY, key)]
    assert not torch.equal(drop[0], drop[1])


def test_a_dense_dare_is_the_difference(workspace: Workspace) -> None:
    a, b, c = three(workspace, torch.float16)
    ours = load_file(merged(workspace, method="dare", density=1.0, dtype="source"))
    assert identical(ours, webui_merger(a, b, c, 1.0))


def test_the_file_says_how_it_was_thinned(workspace: Workspace) -> None:
    three(workspace, torch.float16)
    metadata = metadata_of(merged(workspace, method="dare", density=0.4, seed=7))
    told = ("dreambooth.merge_method", "dreambooth.merge_density", "dreambooth.merge_seed")
    assert [metadata[name] for name in told] == ["dare", "0.4", "7"]
    assert "dreambooth.merge_seed" not in metadata_of(merged(workspace))


# -- what the three do not have in common


def rewrite(workspace: Workspace, name: str, change: Any) -> dict[str, Tensor]:
    """Change the tensors of a checkpoint and return them."""
    path = workspace.checkpoints_dir / f"{name}.safetensors"
    tensors: dict[str, Tensor] = change(loaded(path))
    save_file(tensors, path)
    return tensors


def test_averages_are_left_out(workspace: Workspace) -> None:
    a, b, c = three(workspace, torch.float16, ema=True)
    assert any(key.startswith("model_ema.") for key in a)
    plain = [{k: t for k, t in s.items() if not k.startswith("model_ema.")} for s in (a, b, c)]
    events: list[Event] = []
    ours = load_file(merged(workspace, events, dtype="source"))
    assert identical(ours, webui_merger(*plain, 1.0))
    assert not [event for event in events if isinstance(event, Notice)]


def test_old_names_of_the_text_encoder_are_understood(workspace: Workspace) -> None:
    a, b, c = three(workspace, torch.float16)
    rewrite(
        workspace, "b", lambda s: {k.replace(f"{TEXT}text_model.", TEXT): t for k, t in s.items()}
    )
    ours = load_file(merged(workspace, dtype="source"))
    assert identical(ours, webui_merger(a, b, c, 1.0))


def test_what_b_or_c_lacks_comes_from_a_and_what_a_lacks_is_told(workspace: Workspace) -> None:
    three(workspace, torch.float16)
    extra = "cond_stage_model.logit_scale"
    without = lambda s: {key: t for key, t in s.items() if key != extra}  # noqa: E731
    rewrite(workspace, "c", without)
    rewrite(workspace, "b", lambda s: {**s, "model.of_b": torch.ones(2)})
    rewrite(workspace, "a", lambda s: {**s, extra: torch.tensor(3.0)})
    events: list[Event] = []
    ours = load_file(merged(workspace, events, dtype="source"))
    assert ours[extra].item() == 3.0
    assert "model.of_b" not in ours
    (notice,) = [event for event in events if isinstance(event, Notice)]
    assert "model.of_b" in notice.message and "b.safetensors" in notice.message


def test_older_ckpt_files_are_merged_too(workspace: Workspace) -> None:
    a, b, c = three(workspace, torch.float16)
    for name, tensors in (("a", a), ("b", b)):
        path = workspace.checkpoints_dir / f"{name}.safetensors"
        torch.save({"state_dict": tensors}, path.with_suffix(".ckpt"))
        path.unlink()
    path = merged(workspace, multiplier=0.5, dtype="source")
    assert path.suffix == ".safetensors"
    assert identical(load_file(path), webui_merger(a, b, c, 0.5))


def test_a_difference_goes_into_an_inpainting_model(workspace: Workspace) -> None:
    a, b, c = three(workspace, torch.float16)
    layer = CONV_IN
    path = workspace.checkpoints_dir / "a.safetensors"
    write_tiny_checkpoint(path, seed=0, layout=replace(TINY, in_channels=9))
    a = load_file(path)
    assert a[layer].shape[1] == 9
    ours = load_file(merged(workspace, multiplier=0.5, dtype="source"))
    expected = a[layer].clone()
    expected[:, :4] = a[layer][:, :4] + 0.5 * (b[layer] - c[layer])
    assert torch.equal(ours[layer], expected)
    assert torch.equal(ours[QUERY], a[QUERY] + 0.5 * (b[QUERY] - c[QUERY]))


def test_an_inpainting_model_can_only_be_a(workspace: Workspace) -> None:
    three(workspace, torch.float16)
    path = workspace.checkpoints_dir / "b.safetensors"
    write_tiny_checkpoint(path, seed=1, layout=replace(TINY, in_channels=9))
    with pytest.raises(CheckpointError, match="can only be A"):
        merged(workspace)
    assert not (workspace.checkpoints_dir / "m.safetensors").exists()


def test_models_of_other_widths_are_refused(workspace: Workspace) -> None:
    three(workspace, torch.float16)
    path = workspace.checkpoints_dir / "c.safetensors"
    write_tiny_checkpoint(path, layout=replace(TINY, model_channels=64))
    with pytest.raises(CheckpointError, match="cannot be merged"):
        merged(workspace)


# -- around it


@pytest.mark.turns("merge.name")
def test_the_file_says_what_was_merged(workspace: Workspace) -> None:
    three(workspace, torch.float16)
    metadata = metadata_of(merged(workspace, multiplier=0.7, name="mine"))
    expected = {
        "modelspec.title": "mine",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.merged_from": "a.safetensors, b.safetensors, c.safetensors",
        "dreambooth.merge_method": "add_difference",
        "dreambooth.merge_multiplier": "0.7",
        "dreambooth.merge_model_a": "a.safetensors",
        "dreambooth.merge_model_b": "b.safetensors",
        "dreambooth.merge_model_c": "c.safetensors",
        "dreambooth.merge_arithmetic": "webui",
        "dreambooth.merge_vae": "merge",
    }
    assert {key: metadata.get(key) for key in expected} == expected
    assert all(value[:1] != "{" for value in metadata.values())
    metadata = metadata_of(merged(workspace, method="weighted_sum", name="two"))
    assert "dreambooth.merge_model_c" not in metadata


@pytest.mark.turns("merge.subfolder")
def test_the_yaml_of_a_comes_along_and_nothing_is_written_over(workspace: Workspace) -> None:
    three(workspace, torch.float16)
    events: list[Event] = []
    paths = [merged(workspace, events, subfolder="mixed") for _ in range(2)]
    assert [path.name for path in paths] == ["m.safetensors", "m-2.safetensors"]
    assert {path.parent for path in paths} == {workspace.checkpoints_dir / "mixed"}
    side = (workspace.checkpoints_dir / "a.yaml").read_bytes()
    assert all(path.with_suffix(".yaml").read_bytes() == side for path in paths)
    saved = [event for event in events if isinstance(event, CheckpointSaved)]
    assert [event.path for event in saved] == [str(path) for path in paths]
    assert saved[0].size == paths[0].stat().st_size
    progress = [event for event in events if isinstance(event, PhaseProgress)]
    assert progress[-1].done == progress[-1].total


def test_a_stop_leaves_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    three(workspace, torch.float16)
    context = stage_context(workspace)
    monkeypatch.setattr(context.commands, "poll", lambda: [Command("stop")])
    config = MergeConfig(name="m", primary="a", secondary="b", tertiary="c")
    assert merge.run(config, context) == {"name": "m", "stopped": True}
    assert sorted(path.stem for path in workspace.checkpoints_dir.glob("*.safetensors")) == [*"abc"]
    assert not (workspace.checkpoints_dir / "m.yaml").exists()


def test_problems_are_told_before_anything_is_done(workspace: Workspace) -> None:
    three(workspace, torch.float16)
    (workspace.checkpoints_dir / "d.safetensors").write_bytes(b"no checkpoint")

    def problems(**changes: Any) -> list[str]:
        settings = {"name": "m", "primary": "a", "secondary": "b", "tertiary": "c", **changes}
        return [str(problem) for problem in validate(MergeConfig(**settings), workspace)]

    assert problems() == []
    assert "needs the checkpoint that B was trained from" in problems(tertiary="")[0]
    assert "dare needs" in problems(method="dare", tertiary="")[0]
    assert "mixes only A and B" in problems(method="weighted_sum")[0]
    assert problems(method="weighted_sum", tertiary="") == []
    assert problems(secondary="zzz")[0].startswith("secondary: There is no checkpoint file")
    assert problems(primary="d")[0].startswith("primary: ")
    assert "multiplier" in problems(multiplier=3.0)[0]
    assert "slash" in problems(name="x/y")[0]
