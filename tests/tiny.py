"""Tiny random checkpoints in the original single-file layout, and models created from them."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from dreambooth_core.checkpoint.header import Header, TensorInfo
from tests.original_layout import SCHEDULE_BUFFERS, TINY, Layout, checkpoint_shapes, side_yaml

if TYPE_CHECKING:
    from dreambooth_core.job.context import RunContext
    from dreambooth_core.job.events import Event
    from dreambooth_core.job.workspace import ModelFolder, Workspace

UNET = "model.diffusion_model."
TEXT = "cond_stage_model.transformer."
Dtypes = torch.dtype | Mapping[str, torch.dtype]
"""One dtype for all weights, or one for each key prefix (the longest match counts)."""


def _is_norm(key: str) -> bool:
    parts = key.split(".")
    return "norm" in key or (parts[-2] == "0" and parts[-3] in ("in_layers", "out_layers", "out"))


def random_weight(key: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """A value that keeps activations near unit size: norms near 1, weights scaled by fan-in."""
    noise = torch.randn(shape, generator=generator)
    if key.endswith(".bias"):
        # A final norm with bias 0 gives encoder states of mean 0, which the WebUI divides by.
        return 0.02 * noise + (0.1 if "final_layer_norm" in key else 0.0)
    if _is_norm(key):
        return 1 + 0.02 * noise
    if "embedding" in key:
        return 0.1 * noise
    return noise / sqrt(prod(shape[1:]))


def tiny_weights(layout: Layout = TINY, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random float32 weights of a whole checkpoint, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: random_weight(key, shape, generator)
        for key, shape in checkpoint_shapes(layout).items()
    }


def tiny_extras(seed: int = 0) -> dict[str, torch.Tensor]:
    """What real files carry beside the weights: schedule buffers, position ids, an unknown key."""
    generator = torch.Generator().manual_seed(seed + 1)
    buffers = {name: torch.rand(1000, generator=generator) for name in SCHEDULE_BUFFERS}
    ids = f"{TEXT}text_model.embeddings.position_ids"
    return {**buffers, ids: torch.arange(77)[None], "cond_stage_model.logit_scale": torch.ones(())}


def ema_of(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Moving averages of the UNet under the original code's flat names, at half the weights."""
    unet = {key: value for key, value in weights.items() if key.startswith(UNET)}
    flat = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): value / 2
        for key, value in unet.items()
    }
    counters = {"decay": torch.tensor(0.9999), "num_updates": torch.tensor(7)}
    return {**flat, **{f"model_ema.{name}": value for name, value in counters.items()}}


def _dtype_of(key: str, dtype: Dtypes) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    return dtype[max((prefix for prefix in dtype if key.startswith(prefix)), key=len)]


def write_tiny_checkpoint(
    path: Path,
    *,
    dtype: Dtypes = torch.float16,
    seed: int = 0,
    extras: bool = True,
    ema: bool = False,
    layout: Layout = TINY,
    side: bool = True,
) -> Path:
    """Write a random SD1-layout single file with its side yaml; 64x64 pictures at the defaults."""
    weights = tiny_weights(layout, seed)
    tensors = {key: value.to(_dtype_of(key, dtype)) for key, value in weights.items()}
    if ema:
        tensors |= ema_of(weights)
    if extras:
        tensors |= tiny_extras(seed)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    if side:
        path.with_suffix(".yaml").write_text(side_yaml(layout), encoding="utf-8")
    return path


def header_of(
    shapes: Mapping[str, tuple[int, ...]], dtype: str = "F16", path: str = "made up.safetensors"
) -> Header:
    """A header without a file, to ask questions about models too large to write."""
    infos = {key: TensorInfo(dtype, tuple(shape), 0, 0) for key, shape in shapes.items()}
    return Header(Path(path), infos, {}, 0)


def stage_context(workspace: Workspace, events: list[Event] | None = None) -> RunContext:
    """A context to call a stage in this process; its events are collected in `events`."""
    from dreambooth_core.job.commands import CommandReader
    from dreambooth_core.job.context import RunContext

    folder = workspace.jobs_dir / "test"
    folder.mkdir(parents=True, exist_ok=True)
    collected: list[Event] = [] if events is None else events
    return RunContext(
        workspace=workspace,
        run_id="test",
        folder=folder,
        emit=collected.append,
        commands=CommandReader(folder / "commands.jsonl"),
    )


def tiny_model(workspace: Workspace, name: str = "tiny", *, seed: int = 0) -> ModelFolder:
    """A model created by the product from a tiny checkpoint in the checkpoints folder."""
    from dreambooth_core.config.schema import CreateConfig
    from dreambooth_core.stages import create

    source = workspace.checkpoints_dir / f"{name}-source.safetensors"
    if not source.exists():
        write_tiny_checkpoint(source, seed=seed)
    create.run(CreateConfig(name=name, source=str(source)), stage_context(workspace))
    return workspace.model(name)
