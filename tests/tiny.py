"""Tiny random checkpoints in the original single-file layout, and models created from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from dreambooth_core.checkpoint.header import Header, TensorInfo
from tests.original_layout import (
    SCHEDULE_BUFFERS,
    TINY,
    TINY_SD2,
    TINY_SDXL,
    Layout,
    checkpoint_shapes,
    side_yaml,
)

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
    if "norm" in key or (len(parts) > 1 and parts[-2] in ("ln_1", "ln_2", "ln_final")):
        return True
    return parts[-2:-1] == ["0"] and parts[-3] in ("in_layers", "out_layers", "out")


def random_weight(key: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """A value that keeps activations near unit size: norms near 1, weights scaled by fan-in."""
    noise = torch.randn(shape, generator=generator)
    if key.endswith(("bias", "logit_scale")):
        # A final norm with bias 0 gives encoder states of mean 0, which the WebUI divides by.
        return 0.02 * noise + (0.1 if "final_layer_norm" in key or "ln_final" in key else 0.0)
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
    parameterization: str = "eps",
    marks: Sequence[str] = (),
) -> Path:
    """Write a random single file with its side yaml; 64x64 pictures at the defaults.

    `marks` are empty tensors by which a file says what it is, such as "v_pred".
    """
    weights = tiny_weights(layout, seed)
    tensors = {key: value.to(_dtype_of(key, dtype)) for key, value in weights.items()}
    if ema:
        tensors |= ema_of(weights)
    if extras:
        tensors |= tiny_extras(seed)
    tensors |= {mark: torch.tensor([]) for mark in marks}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    if side:
        path.with_suffix(".yaml").write_text(side_yaml(layout, parameterization), encoding="utf-8")
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


def tiny_model(
    workspace: Workspace,
    name: str = "tiny",
    *,
    seed: int = 0,
    variant: Variant | None = None,
) -> ModelFolder:
    """A model created by the product from a tiny checkpoint in the checkpoints folder."""
    from dreambooth_core.config.schema import CreateConfig
    from dreambooth_core.stages import create

    source = workspace.checkpoints_dir / f"{name}-source.safetensors"
    if not source.exists():
        write_variant(source, variant or Variant(TINY), seed=seed)
    create.run(CreateConfig(name=name, source=str(source)), stage_context(workspace))
    return workspace.model(name)


@dataclass(frozen=True)
class Variant:
    """A kind of checkpoint that can be trained: its layout and how it tells what it predicts."""

    layout: Layout
    parameterization: str = "eps"
    marks: tuple[str, ...] = ()

    @property
    def inpaints(self) -> bool:
        """Whether the UNet also takes a mask and a masked picture."""
        return self.layout.in_channels == 9


VARIANTS = {
    "sd2": Variant(TINY_SD2),
    "sd2-v": Variant(TINY_SD2, "v"),
    "sdxl": Variant(TINY_SDXL),
    "sdxl-v": Variant(TINY_SDXL, "v", ("v_pred", "ztsnr")),
    "sd1-inpainting": Variant(replace(TINY, in_channels=9)),
    "sd2-inpainting": Variant(replace(TINY_SD2, in_channels=9)),
    "sdxl-inpainting": Variant(replace(TINY_SDXL, in_channels=9)),
}
"""All kinds but the plain Stable Diffusion 1 that the other tests use."""


def write_variant(
    path: Path, variant: Variant, dtype: Dtypes = torch.float16, *, seed: int = 0
) -> Path:
    """Write a random checkpoint of a kind, with its side yaml."""
    return write_tiny_checkpoint(
        path,
        dtype=dtype,
        seed=seed,
        layout=variant.layout,
        parameterization=variant.parameterization,
        marks=variant.marks,
    )
