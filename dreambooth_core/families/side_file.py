"""The `.yaml` beside a checkpoint, in the form of the original training configuration.

It fills in what no weight tells: numbers of heads, the noise schedule, the prediction type.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dreambooth_core.errors import CheckpointError
from dreambooth_core.job import disk
from dreambooth_core.job.checkpoint_files import side_path
from dreambooth_core.job.plain_json import is_number

Side = Mapping[str, Any] | None

MOST_BYTES = 2**20
"""Those of Stable Diffusion have two thousand."""
YAML_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    RecursionError,
    yaml.YAMLError,
)
"""What PyYAML raises for values that are none of their kind, besides its own errors."""


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain values only: with references a few lines would become gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse a reference to another part of the file."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it refers to its own parts (&, *), which no usual one does")
        return super().compose_node(parent, index)


def read_side_file(checkpoint: Path) -> Side:
    """Return the side file's contents, or None if there is none; raises CheckpointError."""
    path = side_path(checkpoint)
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MOST_BYTES:
            raise _unreadable(path, f"it has more than {MOST_BYTES // 2**20} MiB")
        side = yaml.load(disk.read(path).decode("utf-8"), _PlainLoader)
    except YAML_ERRORS as error:
        raise _unreadable(path, str(error) or type(error).__name__) from error
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
    if not is_number(value):
        raise CheckpointError(
            f"The .yaml beside the checkpoint says {str(value)[:100]!r} for {path}, which is not a"
            " number.",
            remedy="Correct it there.",
        )
    number: float = value
    return number


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
