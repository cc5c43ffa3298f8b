"""What a run remembers: weights, EMA, optimizer and counters, in one folder written all or nothing.

`state/<run_id>/step_00000400/` holds `unet.safetensors` and `text_encoder.safetensors` (only what
is trained, fp32), `ema.safetensors`, `optimizer.safetensors` and `progress.json`, which has each
file's size and checksum. No random state is kept: every random number is a function of (seed,
purpose, step), so the counters are enough.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from dreambooth_core.checkpoint.file import Entry, write_summed
from dreambooth_core.checkpoint.stored import StoredTensors, check_sum, read_whole
from dreambooth_core.errors import CheckpointError
from dreambooth_core.families.base import Weights
from dreambooth_core.job import disk
from dreambooth_core.job.formats import STATE
from dreambooth_core.job.storage import atomic_write_json, put_folder
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.stages.optimizer_file import read_memory, write_memory
from dreambooth_core.stages.retreats import Retreats
from dreambooth_core.stages.saved_states import (
    EMA_FILE,
    OLD_OPTIMIZER_FILE,
    OPTIMIZER_FILE,
    PROGRESS_FILE,
    Progress,
    StoredFile,
    Tell,
    damage,
    no_state,
    read_intact,
    state_folder,
    states,
    unheard,
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
    retreats: Retreats = field(default_factory=Retreats)


def save_state(folder: ModelFolder, run_id: str, state: TrainingState) -> Path:
    """Write the state durably and return its folder; a crash leaves no folder of that name."""
    target = state_folder(folder, run_id, state.progress.step)
    if target.exists() and not damage(target):
        return target
    temporary = target.with_name(f".{target.name}.tmp")
    disk.remove_folder(temporary)
    try:
        disk.make_folder(temporary, new=True)
        _write_files(temporary, state)
        put_folder(temporary, target)
    except BaseException:
        with suppress(OSError):
            disk.remove_folder(temporary)
        raise
    return target


def load_state(path: Path) -> TrainingState:
    """Read a state; raises CheckpointError naming the folder if it is incomplete or damaged."""
    progress = read_intact(path)
    files: dict[str, StoredFile] = progress["files"]
    return TrainingState(
        progress=Progress(progress["step"], progress["epoch"], progress["position"]),
        seed=progress["seed"],
        settings=progress["settings"],
        weights={
            Path(name).stem: read_whole(path / name, files[name].crc32)[1]
            for name in _weight_files(files)
        },
        ema=read_whole(path / EMA_FILE, files[EMA_FILE].crc32)[1] if EMA_FILE in files else {},
        optimizer=_load_optimizer(path, files),
        loss_scaler=progress["loss_scaler"],
        retreats=Retreats.of_dict(progress.get("retreats", {})),
    )


def load_newest(folder: ModelFolder, tell: Tell = unheard) -> tuple[Path, TrainingState]:
    """Load the newest state that is whole; `tell` gets a sentence about each that is passed over.

    Raises InputError if there is none, and NewerVersionError for one of a newer version.
    """
    for path in states(folder):
        try:
            return path, load_state(path)
        except CheckpointError as error:
            tell(f"{error.message} The run goes on from the one before, if there is one.")
    raise no_state(folder)


def trained_weights(path: Path, use_ema: bool) -> dict[str, Weights]:
    """Return the trained tensors by component; their EMA if asked for and the run kept one.

    They are checked, but stay in their files until each is asked for.
    """
    files: dict[str, StoredFile] = read_intact(path)["files"]
    averaged = use_ema and EMA_FILE in files
    used = [EMA_FILE] if averaged else _weight_files(files)
    for name in used:
        if files[name].crc32:
            check_sum(path / name, files[name].crc32)
    if not averaged:
        return {Path(name).stem: StoredTensors(path / name) for name in used}
    components = {key.partition(".")[0] for key in StoredTensors(path / EMA_FILE)}
    return {name: StoredTensors(path / EMA_FILE, f"{name}.") for name in sorted(components)}


def _weight_files(files: Mapping[str, StoredFile]) -> list[str]:
    others = (EMA_FILE, OPTIMIZER_FILE)
    return [name for name in files if name.endswith(".safetensors") and name not in others]


def _write_files(folder: Path, state: TrainingState) -> None:
    sums = {
        f"{component}.safetensors": _write_tensors(folder / f"{component}.safetensors", tensors)
        for component, tensors in state.weights.items()
    }
    if state.ema:
        sums[EMA_FILE] = _write_tensors(folder / EMA_FILE, state.ema)
    sums[OPTIMIZER_FILE] = write_memory(folder / OPTIMIZER_FILE, state.optimizer)
    progress = {
        "step": state.progress.step,
        "epoch": state.progress.epoch,
        "position": state.progress.position,
        "seed": state.seed,
        "saved_at": time.time(),
        "loss_scaler": state.loss_scaler,
        "retreats": state.retreats.as_dict(),
        "files": {
            name: asdict(StoredFile((folder / name).stat().st_size, sums[name]))
            for name in sorted(sums)
        },
        "settings": state.settings,
    }
    atomic_write_json(folder / PROGRESS_FILE, STATE.stamped(progress))


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    def entry(key: str, tensor: torch.Tensor) -> Entry:
        return Entry(key, "F32", tuple(tensor.shape), lambda: tensor.detach().float().cpu())

    return write_summed(path, [entry(key, tensor) for key, tensor in tensors.items()], {})


def by_component(flat: Mapping[str, torch.Tensor]) -> dict[str, Tensors]:
    """Return "<component>.<name>" tensors by component, then by name."""
    components: dict[str, Tensors] = {}
    for name, tensor in flat.items():
        component, _, key = name.partition(".")
        components.setdefault(component, {})[key] = tensor
    return components


def _load_optimizer(folder: Path, files: Mapping[str, StoredFile]) -> dict[str, Any]:
    if OPTIMIZER_FILE in files:
        return read_memory(folder / OPTIMIZER_FILE, files[OPTIMIZER_FILE].crc32)
    path = folder / OLD_OPTIMIZER_FILE
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(
            f"The optimizer's memory {path} cannot be read: {error}.",
            remedy="Resume from another state, or start a new run.",
        ) from error
    return state
