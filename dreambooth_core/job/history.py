"""What was done with a model: its runs and how they ended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.errors import UsageError
from dreambooth_core.job.events import (
    FINAL_EVENTS,
    Event,
    JobFailed,
    JobFinished,
    LoraSaved,
    Resumed,
    StepDone,
    from_json,
    read_events,
)
from dreambooth_core.job.json_lines import read_last_lines
from dreambooth_core.job.launcher import Job
from dreambooth_core.job.lineage import began_from
from dreambooth_core.job.runs import Run, events_path, read_run_of, run_ids, told_kind
from dreambooth_core.job.workspace import Workspace


@dataclass(frozen=True)
class UnreadableRun:
    """What is told of a run that cannot be read, such as one of a newer version, and why."""

    run_id: str
    kind: str
    reason: str


@dataclass(frozen=True)
class PastRun:
    """One run in a line: what was done, the last step it reached and how it ended.

    `resumed` is the run and step that it goes on from, if any.
    """

    run: Run | UnreadableRun
    step: int
    outcome: str
    resumed: Resumed | None = None


def past_runs(workspace: Workspace, model: str, limit: int = 10) -> list[PastRun]:
    """Return the newest runs of a model, newest first; one that cannot be read says why not."""
    found = []
    for run in _runs_of(workspace, model):
        found.append(_past_run(workspace.run_folder(run.run_id), run))
        if len(found) == limit:
            break
    return found


def saved_loras(workspace: Workspace, model: str) -> list[Path]:
    """Return the LoRA files that the runs of a model wrote, oldest first; some may be gone."""
    runs = reversed([run for run in _runs_of(workspace, model) if isinstance(run, Run)])
    folders = (workspace.run_folder(run.run_id) for run in runs if run.kind in ("train", "save"))
    events = (event for folder in folders for event in read_events(events_path(folder))[0])
    return [Path(event.path) for event in events if isinstance(event, LoraSaved)]


def _runs_of(workspace: Workspace, model: str) -> Iterator[Run | UnreadableRun]:
    for run_id in reversed(run_ids(workspace)):
        folder = workspace.run_folder(run_id)
        try:
            run = read_run_of(folder, model)
        except UsageError as error:
            yield UnreadableRun(run_id, told_kind(folder), str(error))
            continue
        if run is not None:
            yield run


def _past_run(folder: Path, run: Run | UnreadableRun) -> PastRun:
    if isinstance(run, UnreadableRun):
        return PastRun(run, 0, f"cannot be read: {run.reason}")
    events = list(map(from_json, read_last_lines(events_path(folder))))
    steps = [event.step for event in events if isinstance(event, StepDone)]
    finals = [event for event in events if isinstance(event, FINAL_EVENTS)]
    outcome = _outcome(finals[-1]) if finals else _open_outcome(folder)
    resumed = began_from(folder) if run.kind == "train" else None
    reached = steps[-1] if steps else resumed.step if resumed else 0
    return PastRun(run, reached, outcome, resumed)


def _outcome(final: Event) -> str:
    if isinstance(final, JobFinished):
        return "finished"
    return f"failed: {final.message}" if isinstance(final, JobFailed) else "stopped"


def _open_outcome(folder: Path) -> str:
    return "running" if Job(folder.name, folder).is_running() else "ended without a word"
