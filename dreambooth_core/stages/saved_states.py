"""The training states on disk: which there are, whole or damaged, and how far their runs were.

The tensors inside are read by `training_state.py`; nothing here needs torch.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.checkpoint.header import read_header
from dreambooth_core.errors import CheckpointError, InputError
from dreambooth_core.job.workspace import ModelFolder

STATE_VERSION = 1
PROGRESS_FILE = "progress.json"
OPTIMIZER_FILE = "optimizer.safetensors"
OLD_OPTIMIZER_FILE = "optimizer.pt"
"""How it is called in states that were written before it was a `.safetensors` file."""
EMA_FILE = "ema.safetensors"


@dataclass(frozen=True)
class Progress:
    """How far a run is: `step` updates are done; the next is number `position` of epoch `epoch`."""

    step: int = 0
    epoch: int = 0
    position: int = 0


def state_folder(folder: ModelFolder, run_id: str, step: int) -> Path:
    """Return where a run's state after a step lies."""
    return folder.states_dir / run_id / f"step_{step:08d}"


def keep_newest(folder: ModelFolder, run_id: str, count: int) -> None:
    """Delete the run's states except the `count` with the highest steps."""
    states = sorted((folder.states_dir / run_id).glob("step_*"))
    for path in states[: max(0, len(states) - count)]:
        (path / PROGRESS_FILE).unlink(missing_ok=True)  # a half-deleted state is no state
        shutil.rmtree(path, ignore_errors=True)


def latest_state(folder: ModelFolder, run_id: str = "", step: int = 0) -> Path | None:
    """Return the newest intact state, of one run and one step if they are given."""
    pattern = f"{run_id or '*'}/step_{f'{step:08d}' if step else '*'}"
    found = [path for path in folder.states_dir.glob(pattern) if not damage(path)]
    return max(found, key=_age, default=None)


def state_to_resume(folder: ModelFolder) -> Path:
    """Return the state that a run goes on from; raises InputError if there is none."""
    path = latest_state(folder)
    if path is None:
        raise InputError(
            f"The model {folder.name!r} has no intact training state to go on from.",
            remedy="Train it without resume.",
            field="resume",
        )
    return path


def state_progress(path: Path) -> Progress:
    """Return how far the run of a state is, without reading its tensors."""
    progress = read_intact(path)
    return Progress(progress["step"], progress["epoch"], progress["position"])


def damage(path: Path) -> str:
    """Return what is wrong with a state folder in words, or "" if it is whole."""
    try:
        progress = json.loads((path / PROGRESS_FILE).read_text(encoding="utf-8"))
        version, sizes = progress["version"], dict(progress["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{PROGRESS_FILE} is missing or damaged"
    if version != STATE_VERSION:
        return f"it has version {version}, and this program reads version {STATE_VERSION}"
    for name, size in sizes.items():
        problem = _file_damage(path / name, size)
        if problem:
            return problem
    return ""


def _file_damage(path: Path, size: int) -> str:
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != size:
        return f"{path.name} has {path.stat().st_size} bytes instead of {size}"
    if path.suffix != ".safetensors":
        return ""
    try:
        read_header(path)
    except CheckpointError as error:
        return f"{path.name}: {error.message}"
    return ""


def read_intact(path: Path) -> dict[str, Any]:
    """Return a state's counters and settings; raises CheckpointError saying what is damaged."""
    problem = damage(path)
    if problem:
        raise CheckpointError(
            f"The training state {path} cannot be used: {problem}.",
            remedy="Resume from another state, or start a new run.",
        )
    progress: dict[str, Any] = json.loads((path / PROGRESS_FILE).read_text(encoding="utf-8"))
    return progress


def _age(path: Path) -> tuple[float, int]:
    progress = json.loads((path / PROGRESS_FILE).read_text(encoding="utf-8"))
    return progress["saved_at"], progress["step"]
