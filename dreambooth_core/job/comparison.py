"""What the newest comparison of a model's checkpoints found, read from its run and its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.errors import InputError
from dreambooth_core.job import disk, plain_json
from dreambooth_core.job.events import JobFinished, JobStopped, read_events
from dreambooth_core.job.formats import COMPARISON
from dreambooth_core.job.runs import events_path, read_run_of, run_ids
from dreambooth_core.job.workspace import Workspace

KIND = "compare"
NEEDED = ("grid", "numbers")


def measure_text(value: float) -> str:
    """Return a measure with two digits, never "-0.00"."""
    return f"{round(value, 2) + 0.0:.2f}"


@dataclass(frozen=True)
class Comparison:
    """The sheet of pictures, one row of numbers per checkpoint (the base first), and remarks."""

    run_id: str
    grid: Path
    rows: list[dict[str, Any]]
    remarks: list[str]

    @property
    def measured(self) -> bool:
        """Whether there are numbers, so that one checkpoint is the one to keep."""
        return any("keep" in row for row in self.rows)

    @property
    def kept(self) -> int:
        """The place of the row to keep; -1 if nothing was measured."""
        return next((place for place, row in enumerate(self.rows) if row.get("keep")), -1)


def last_comparison(workspace: Workspace, model: str) -> Comparison | None:
    """Return the newest comparison whose sheet is still there; None if there is none.

    Raises InputError naming the file of numbers if it cannot be read.
    """
    for run_id in reversed(run_ids(workspace)):
        if f"-{KIND}" not in run_id:
            continue
        folder = workspace.run_folder(run_id)
        run = read_run_of(folder, model)
        summary = _summary(folder) if run and run.kind == KIND else {}
        if all(summary.get(name) for name in NEEDED) and Path(summary["grid"]).is_file():
            return _read(run_id, Path(summary["grid"]), Path(summary["numbers"]))
    return None


def _summary(folder: Path) -> dict[str, Any]:
    events, _ = read_events(events_path(folder))
    ends = [event for event in events if isinstance(event, JobFinished | JobStopped)]
    return ends[-1].summary if ends else {}


def _read(run_id: str, grid: Path, numbers: Path) -> Comparison:
    try:
        values = COMPARISON.read(plain_json.parse(disk.read(numbers)), numbers)
        rows = [dict(row) for row in values["rows"]]
        remarks = [str(remark) for remark in values["remarks"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"The comparison's numbers {numbers} cannot be read: {error!r}.",
            remedy="Compare the checkpoints again.",
        ) from error
    return Comparison(run_id, grid, rows, remarks)
