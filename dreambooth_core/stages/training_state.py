"""What a run remembers: weights, EMA, optimizer and counters, in one folder written all or nothing.

`state/<run_id>/step_00000400/` holds `unet.safetensors` and `text_encoder.safetensors` (only what
is trained, fp32), `ema.safetensors`, `optimizer.safetensors` and `progress.json`. No random state
is kept: every random number is a function of (seed, purpose, step), so the counters are enough.
"""

from __future__ import annotations

import pickle
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dreambooth_core.checkpoint.file import CheckpointReader, Entry, write_checkpoint
from dreambooth_core.errors import CheckpointError
from dreambooth_core.job.storage import atomic_write_json, replace, sync_folder
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.stages.optimizer_file import read_memory, write_memory
from dreambooth_core.stages.saved_states import (
    EMA_FILE,
    OLD_OPTIMIZER_FILE,
    OPTIMIZER_FILE,
    PROGRESS_FILE,
    STATE_VERSION,
    Progress,
    damage,
    read_intact,
    state_folder,
)

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class TrainingState:
    """Everything that a run needs to go on as if it had never ended.

    `weights` are the trained tensors by component; `ema` has their average under
    "<component>.<name>", or is empty; `optimizer` is what `optimizer_memory` returns.
    """

    progress: Progress
    seed: int
    settings: dict[str, Any]
    weights: dict[str, Tensors]
    ema: Tensors
    optimizer: dict[str, Any]
    loss_scaler: dict[str, Any] = field(default_factory=dict)


def save_state(folder: ModelFolder, run_id: str, state: TrainingState) -> Path:
    """Write the state durably and return its folder; a crash leaves no folder of that name."""
    target = state_folder(folder, run_id, state.progress.step)
    if target.exists() and not damage(target):
        return target
    temporary = target.with_name(f".{target.name}.tmp")
    for leftover in (temporary, target):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write_files(temporary, state)
        replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(target.parent)
    return target


def load_state(path: Path) -> TrainingState:
    """Read a state; raises CheckpointError naming the folder if it is incomplete or damaged."""
    progress = read_intact(path)
    return TrainingState(
        progress=Progress(progress["step"], progress["epoch"], progress["position"]),
        seed=progress["seed"],
        settings=progress["settings"],
        weights=trained_weights(path, use_ema=False),
        ema=_read_tensors(path / EMA_FILE) if EMA_FILE in progress["files"] else {},
        optimizer=_load_optimizer(path, progress["files"]),
        loss_scaler=progress["loss_scaler"],
    )


def trained_weights(path: Path, use_ema: bool) -> dict[str, Tensors]:
    """Return the trained tensors by component; their EMA if asked for and the run kept one."""
    files = read_intact(path)["files"]
    if use_ema and EMA_FILE in files:
        return by_component(_read_tensors(path / EMA_FILE))
    others = (EMA_FILE, OPTIMIZER_FILE)
    weight_files = [name for name in files if name.endswith(".safetensors") and name not in others]
    return {Path(name).stem: _read_tensors(path / name) for name in weight_files}


def _write_files(folder: Path, state: TrainingState) -> None:
    for component, tensors in state.weights.items():
        _write_tensors(folder / f"{component}.safetensors", tensors)
    if state.ema:
        _write_tensors(folder / EMA_FILE, state.ema)
    write_memory(folder / OPTIMIZER_FILE, state.optimizer)
    progress = {
        "version": STATE_VERSION,
        "step": state.progress.step,
        "epoch": state.progress.epoch,
        "position": state.progress.position,
        "seed": state.seed,
        "saved_at": time.time(),
        "loss_scaler": state.loss_scaler,
        "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        "settings": state.settings,
    }
    atomic_write_json(folder / PROGRESS_FILE, progress)


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    def entry(key: str, tensor: torch.Tensor) -> Entry:
        return Entry(key, "F32", tuple(tensor.shape), lambda: tensor.detach().float().cpu())

    write_checkpoint(path, [entry(key, tensor) for key, tensor in tensors.items()], {})


def _read_tensors(path: Path) -> Tensors:
    with CheckpointReader(path) as reader:
        return {key: reader.read(key) for key in reader.header.tensors}


def by_component(flat: Mapping[str, torch.Tensor]) -> dict[str, Tensors]:
    """Return "<component>.<name>" tensors by component, then by name."""
    components: dict[str, Tensors] = {}
    for name, tensor in flat.items():
        component, _, key = name.partition(".")
        components.setdefault(component, {})[key] = tensor
    return components


def _load_optimizer(folder: Path, files: Mapping[str, int]) -> dict[str, Any]:
    if OPTIMIZER_FILE in files:
        return read_memory(folder / OPTIMIZER_FILE)
    path = folder / OLD_OPTIMIZER_FILE
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(
            f"The optimizer's memory {path} cannot be read: {error}.",
            remedy="Resume from another state, or start a new run.",
        ) from error
    return state
