"""What a run's folder says of its job: what it is, how it stands and what happened since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreambooth_core.api.answers import Refused, not_found
from dreambooth_core.errors import InputError
from dreambooth_core.job.events import (
    FINAL_EVENTS,
    Event,
    JobFailed,
    JobFinished,
    JobStopped,
    from_json,
)
from dreambooth_core.job.json_lines import read_last_lines, read_lines
from dreambooth_core.job.launcher import Job, attach, read_process
from dreambooth_core.job.runs import events_path, job_path, told, told_name
from dreambooth_core.job.workspace import Workspace

EVENTS_BYTES = 1024 * 1024
STATES = {JobFinished: "finished", JobStopped: "stopped", JobFailed: "failed"}


def find_job(workspace: Workspace, run_id: str) -> Job:
    """Return a run by its id; raises Refused with 404 if there is none."""
    try:
        return attach(workspace, run_id)
    except InputError as error:
        raise not_found(error.message, error.remedy) from error


def final_event(job: Job) -> Event | None:
    """Return how a job ended; None until its worker process is gone.

    The last event comes a moment before that, in which no other job could be started yet.
    """
    if job.is_running():
        return None
    final = last_event(job.folder)
    return final if isinstance(final, FINAL_EVENTS) else job.death()


def state_of(job: Job) -> str:
    """Return "starting", "running", "finished", "stopped" or "failed"."""
    final = final_event(job)
    if final is not None:
        return STATES[type(final)]
    named = read_process(job.folder)
    return "starting" if named is None or named.preparing else "running"


def summary_of(job: Job) -> dict[str, Any]:
    """Return what a list of jobs says of one."""
    values = told(job.folder)
    return {
        "id": job.run_id,
        "kind": values.get("kind", ""),
        "model": told_name(values),
        "state": state_of(job),
        "created": job_path(job.folder).stat().st_mtime,
    }


def events_since(folder: Path, offset: int) -> tuple[list[dict[str, Any]], int, bool]:
    """Return events after a byte offset as JSON objects, the next offset, and whether more wait."""
    path = events_path(folder)
    size = path.stat().st_size if path.exists() else 0
    if not 0 <= offset <= size:
        raise Refused(
            422,
            f"offset is {offset}, but the events have {size} bytes.",
            remedy="Begin with 0.",
            field="offset",
        )
    lines, after = read_lines(path, offset, EVENTS_BYTES)
    return lines, after, offset < after < size


def last_event(folder: Path) -> Event | None:
    """Return the newest whole event of a run; None if there is none."""
    lines = read_last_lines(events_path(folder))
    return from_json(lines[-1]) if lines else None
