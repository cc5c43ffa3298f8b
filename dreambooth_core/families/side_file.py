"""The `.yaml` beside a checkpoint, in the form of the original training configuration.

It fills in what no weight tells: numbers of heads, the noise schedule, the prediction type.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dreambooth_core.errors import CheckpointError
from dreambooth_core.job.checkpoint_files import side_path

Side = Mapping[str, Any] | None


def read_side_file(checkpoint: Path) -> Side:
    """Return the side file's contents, or None if there is none; raises CheckpointError."""
    path = side_path(checkpoint)
    if not path.is_file():
        return None
    try:
        side = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(side, Mapping):
        raise _unreadable(path, "it holds no settings")
    return side


def side_value(side: Side, path: str) -> Any:
    """Return the value at a dotted path such as "model.params.timesteps", or None."""
    value: Any = side
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def side_number(side: Side, path: str, default: float) -> float:
    """Return the number at a dotted path; raises CheckpointError if it is something else."""
    value = side_value(side, path)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(
            f"The .yaml beside the checkpoint says {value!r} for {path}, which is not a number.",
            remedy="Correct it there.",
        )
    return value


def side_count(side: Side, path: str, default: int) -> int:
    """Return the positive whole number at a dotted path; raises CheckpointError otherwise."""
    value = side_number(side, path, default)
    if value != int(value) or value < 1:
        raise CheckpointError(
            f"The .yaml beside the checkpoint says {value} for {path}, where a whole number of at"
            " least 1 belongs.",
            remedy="Correct it there.",
        )
    return int(value)


def _unreadable(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path}, the settings beside the checkpoint, cannot be read: {why}.",
        remedy="Correct it, or move it away if the checkpoint is a usual one.",
    )
