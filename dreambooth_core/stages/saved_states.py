"""The training states on disk: which there are, whole or damaged, and how far their runs were.

The tensors inside are read by `training_state.py`; nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreambooth_core.checkpoint.contents import Damage
from dreambooth_core.checkpoint.header import read_header
from dreambooth_core.errors import CheckpointError, InputError, NewerVersionError
from dreambooth_core.job import disk, plain_json
from dreambooth_core.job.formats import STATE
from dreambooth_core.job.storage import drop_folder
from dreambooth_core.job.workspace import ModelFolder

PROGRESS_FILE = "progress.json"
OPTIMIZER_FILE = "optimizer.safetensors"
OLD_OPTIMIZER_FILE = "optimizer.pt"
"""How it is called in states that were written before it was a `.safetensors` file."""
EMA_FILE = "ema.safetensors"

Tell = Callable[[str], None]
"""Takes a sentence for the person."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: `step` updates are done; the next is number `position` of epoch `epoch`."""

    step: int = 0
    epoch: int = 0
    position: int = 0


@dataclass(frozen=True)
class StoredFile:
    """A file of a state: its length in bytes and its CRC-32, "" where that was not kept yet."""

    size: int
    crc32: str = ""


@dataclass(frozen=True)
class _Retreats:
    steps: list[int] = field(default_factory=list)
    factor: float = 1.0


@dataclass(frozen=True)
class _Told:
    """What a state says of itself: its types, which are held against what the file says."""

    step: int
    epoch: int
    position: int
    seed: int
    saved_at: float
    loss_scaler: dict[str, float]
    settings: dict[str, Any]
    files: dict[str, StoredFile]
    retreats: _Retreats = field(default_factory=_Retreats)


def state_folder(folder: ModelFolder, run_id: str, step: int) -> Path:
    """Return where a run's state after a step lies."""
    return folder.states_dir / run_id / f"step_{step:08d}"


def keep_newest(folder: ModelFolder, run_id: str, count: int, before: Sequence[str] = ()) -> None:
    """Delete the states of a run, and of those `before` it, except the `count` newest.

    And what killed jobs left over in any run of the model, which is hidden: this one has its lock.
    """
    runs = [folder.states_dir / name for name in (*before, run_id)]
    old = [path for run in runs for path in sorted(run.glob("step_*"))]
    for path in old[: max(0, len(old) - count)]:
        with suppress(OSError):  # what is in use now goes the next time
            drop_folder(path)
    for path in folder.states_dir.glob("*/.step_*"):
        with suppress(OSError):
            disk.remove_folder(path)


def states(folder: ModelFolder, run_id: str = "", step: int = 0) -> list[Path]:
    """Return the states, whole or damaged, newest first: of one run and one step if given."""
    pattern = f"{run_id or '*'}/step_{f'{step:08d}' if step else '*'}"
    return sorted(folder.states_dir.glob(pattern), key=_age, reverse=True)


def unheard(sentence: str) -> None:
    """Tell nobody."""


def latest_state(
    folder: ModelFolder, run_id: str = "", step: int = 0, tell: Tell = unheard
) -> Path | None:
    """Return the newest intact state, of one run and one step if they are given.

    `tell` gets a sentence about each damaged one that is passed over. Raises NewerVersionError if
    the newest was written by a newer version.
    """
    for path in states(folder, run_id, step):
        try:
            read_intact(path)
        except CheckpointError as error:
            tell(f"{error.message} The one before is taken, if there is one.")
        else:
            return path
    return None


def state_to_resume(folder: ModelFolder, tell: Tell = unheard) -> Path:
    """Return the state that a run goes on from; raises InputError if there is none."""
    path = latest_state(folder, tell=tell)
    if path is None:
        raise no_state(folder)
    return path


def no_state(folder: ModelFolder) -> InputError:
    """Return the error that there is no state, saying what is wrong with the newest if there is."""
    found = states(folder)
    newest = f" (the newest, {found[0]}, is damaged: {damage(found[0])})" if found else ""
    return InputError(
        f"The model {folder.name!r} has no intact training state to go on from{newest}.",
        remedy="Train it without resume.",
        field="resume",
    )


def state_progress(path: Path) -> Progress:
    """Return how far the run of a state is, without reading its tensors."""
    progress = read_intact(path)
    return Progress(progress["step"], progress["epoch"], progress["position"])


def damage(path: Path) -> str:
    """Return what is wrong with a state folder in words, or "" if it is whole.

    Its files' sizes and headers are looked at; their sums, as they are read.
    """
    try:
        _look(path)
    except (Damage, NewerVersionError) as problem:
        return str(problem)
    return ""


def read_intact(path: Path) -> dict[str, Any]:
    """Return a state's counters and settings, and its files as `StoredFile` by name.

    Raises CheckpointError saying what is damaged, or NewerVersionError.
    """
    try:
        return _look(path)
    except Damage as problem:
        raise CheckpointError(
            f"The training state {path} cannot be used: {problem}.",
            remedy="Resume from another state, or start a new run.",
        ) from problem


def _look(path: Path) -> dict[str, Any]:
    """Return what a state says of itself; raises Damage if it or a file is not as it should be."""
    values = _told(path)
    for name, file in values["files"].items():
        _check_file(path / name, file.size)
    return values


def _told(path: Path) -> dict[str, Any]:
    """Return what a state says of itself as today's version has it; nothing in it is trusted."""
    wrong = Damage(f"{PROGRESS_FILE} is missing or damaged")
    try:
        values = STATE.read(plain_json.parse(disk.read(path / PROGRESS_FILE)), path)
    except NewerVersionError:
        raise
    except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise wrong from error
    if not _are_sound(values):
        raise wrong
    return {**values, "files": {name: StoredFile(**file) for name, file in values["files"].items()}}


def _are_sound(values: dict[str, Any]) -> bool:
    return (
        plain_json.fits(_Told, values)
        and min(values["step"], values["epoch"], values["position"]) >= 0
        and all(map(_is_file_name, values["files"]))
    )


def _is_file_name(name: str) -> bool:
    return name == Path(name).name and "\\" not in name and name not in ("", ".", "..")


def _check_file(path: Path, size: int) -> None:
    try:
        there = path.stat().st_size if path.is_file() else -1
        if there == size and path.suffix == ".safetensors":
            read_header(path)
    except (CheckpointError, OSError, ValueError) as error:
        words = error.message if isinstance(error, CheckpointError) else error
        raise Damage(f"{path.name}: {words}") from error
    if there < 0:
        raise Damage(f"{path.name} is missing")
    if there != size:
        raise Damage(f"{path.name} has {there} bytes instead of {size}")


def _age(path: Path) -> tuple[float, str]:
    """Return when a state was saved; one that does not say so, when its folder was changed."""
    try:
        saved = plain_json.parse(disk.read(path / PROGRESS_FILE))["saved_at"]
        return float(saved), path.name
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        with suppress(OSError):
            return path.stat().st_mtime, path.name
        return 0.0, path.name
