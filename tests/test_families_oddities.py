"""A file of every family, format and oddity, made into a model and saved: byte for byte as before.

Only what the product says it leaves out is missing: moving averages that nobody asked for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreambooth_core.config.schema import CreateConfig
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.stages import create
from dreambooth_core.stages.save import save_checkpoint
from tests.original_layout import TINY, Layout
from tests.test_families_layouts import small_layouts
from tests.tiny import (
    TEXT,
    VARIANTS,
    Variant,
    stage_context,
    write_tiny_checkpoint,
    write_variant,
)

Tensors = dict[str, Tensor]

KINDS = {"sd1": Variant(TINY), **VARIANTS}
IDS = "text_model.embeddings.position_ids"
VAE = "first_stage_model."
EMA = "model_ema."
MIXED = {"": torch.float16, VAE: torch.float32, "model.diffusion_model.out.": torch.bfloat16}
FORMATS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "mixed": MIXED}


def clip_of(kind: str) -> str:
    """The prefix of CLIP-L's weights in a kind that has it."""
    return "conditioner.embedders.0.transformer." if kind.startswith("sdxl") else TEXT


def came_out(source: Path, root: Path, vae: Path | None = None) -> Tensors:
    """Make a model of a file, save it untrained in its own formats, and return what was written."""
    workspace = Workspace(root)
    config = CreateConfig(name="m", source=str(source), vae=str(vae or ""))
    create.run(config, stage_context(workspace))
    written = save_checkpoint(workspace.model("m"), root / "out.safetensors", {}, "source")
    return dict(load_file(written.path))


def assert_same(ours: Tensors, expected: Tensors) -> None:
    """The same names, formats and bytes; a v-prediction model may say so by an empty key more."""
    added = {key: ours[key].numel() for key in ours.keys() - expected.keys()}
    assert added in ({}, {"v_pred": 0})
    for key, value in expected.items():
        assert ours[key].dtype == value.dtype, key
        as_bytes = [t.contiguous().flatten().view(torch.uint8) for t in (ours[key], value)]
        assert torch.equal(*as_bytes), key


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, dtype) for kind in ("sd1", "sd2-v", "sdxl") for dtype in FORMATS),
        *((kind, "mixed") for kind in KINDS if kind.endswith("inpainting")),
    ],
)
def test_every_number_format_comes_back(kind: str, dtype: str, tmp_path: Path) -> None:
    source = write_variant(tmp_path / "x.safetensors", KINDS[kind], FORMATS[dtype])
    assert_same(came_out(source, tmp_path), dict(load_file(source)))


def float_ids(kind: str, tensors: Tensors) -> Tensors:
    """Position ids as numbers with a point, as converters of fp16 files leave them."""
    ids = torch.arange(77, dtype=torch.float16)[None]
    return {**tensors, clip_of(kind) + IDS: ids}


def no_ids(kind: str, tensors: Tensors) -> Tensors:
    """No position ids, as newer converters leave them out."""
    return {key: value for key, value in tensors.items() if not key.endswith(IDS)}


def unknown_keys(kind: str, tensors: Tensors) -> Tensors:
    """What other programs add, of formats that no network has."""
    added = {"control.hint": torch.ones(3, dtype=torch.int16), "embedding_manager": torch.ones(2)}
    return {**tensors, **added}


def stale_averages(kind: str, tensors: Tensors) -> Tensors:
    """Moving averages that the person did not ask for."""
    flat = EMA + "diffusion_modelinput_blocks00weight"
    return {**tensors, flat: torch.ones(32, 4, 3, 3), EMA + "decay": torch.tensor(0.9999)}


def old_names(kind: str, tensors: Tensors) -> Tensors:
    """The text encoder's names from before transformers 4.31."""
    prefix = clip_of(kind)
    return {key.replace(f"{prefix}text_model.", prefix): value for key, value in tensors.items()}


ODDITIES: dict[str, Callable[[str, Tensors], Tensors]] = {
    "float_ids": float_ids,
    "no_ids": no_ids,
    "unknown_keys": unknown_keys,
    "stale_averages": stale_averages,
}


@pytest.mark.parametrize("oddity", ODDITIES)
@pytest.mark.parametrize("kind", ["sd1", "sd2-v", "sdxl"])
def test_every_oddity_comes_back(kind: str, oddity: str, tmp_path: Path) -> None:
    source = write_variant(tmp_path / "x.safetensors", KINDS[kind])
    tensors = ODDITIES[oddity](kind, {k: t.clone() for k, t in load_file(source).items()})
    save_file(tensors, source)
    expected = {key: value for key, value in tensors.items() if not key.startswith(EMA)}
    assert_same(came_out(source, tmp_path), expected)


@pytest.mark.parametrize("kind", ["sd1", "sd1-inpainting"])
def test_the_text_encoders_old_names_come_back(kind: str, tmp_path: Path) -> None:
    source = write_variant(tmp_path / "x.safetensors", KINDS[kind])
    tensors = old_names(kind, {key: t.clone() for key, t in load_file(source).items()})
    save_file(tensors, source)
    assert_same(came_out(source, tmp_path), tensors)


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_a_missing_vae_is_filled_from_a_file(kind: str, tmp_path: Path) -> None:
    source = write_variant(tmp_path / "x.safetensors", KINDS[kind])
    tensors = {key: t.clone() for key, t in load_file(source).items()}
    other = write_variant(tmp_path / "other.safetensors", KINDS[kind], torch.float32, seed=5)
    vae = {key: t.clone() for key, t in load_file(other).items() if key.startswith(VAE)}
    save_file({key.removeprefix(VAE): t for key, t in vae.items()}, other)
    rest = {key: value for key, value in tensors.items() if not key.startswith(VAE)}
    save_file(rest, source)
    assert_same(came_out(source, tmp_path, other), {**rest, **vae})


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    layout=small_layouts(),
    width=st.sampled_from([32, 64]),
    dtype=st.sampled_from(list(FORMATS)),
    parameterization=st.sampled_from(["eps", "v"]),
)
def test_any_width_and_depth_comes_back(
    layout: Layout, width: int, dtype: str, parameterization: str
) -> None:
    layout = replace(layout, model_channels=width)
    with tempfile.TemporaryDirectory() as root:
        source = write_tiny_checkpoint(
            Path(root) / "x.safetensors",
            dtype=FORMATS[dtype],
            layout=layout,
            parameterization=parameterization,
        )
        assert_same(came_out(source, Path(root)), dict(load_file(source)))
