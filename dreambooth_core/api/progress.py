"""What a run's folder says of its job: what it is, how it stands and what happened since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreambooth_core.api.answers import Refused, not_found
from dreambooth_core.errors import InputError
from dreambooth_core.job import disk, plain_json
from dreambooth_core.job.events import (
    FINAL_EVENTS,
    Event,
    JobFailed,
    JobFinished,
    JobStopped,
    from_json,
)
from dreambooth_core.job.launcher import Job, attach, read_process
from dreambooth_core.job.runs import events_path, job_path, log_path
from dreambooth_core.job.workspace import Workspace

EVENTS_BYTES = 1024 * 1024
TAIL_BYTES = 64 * 1024
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
    settings = run_settings(job.folder)
    config = settings.get("config") or {}
    return {
        "id": job.run_id,
        "kind": settings.get("kind", ""),
        "model": config.get("model") or config.get("name") or "",
        "state": state_of(job),
        "created": job_path(job.folder).stat().st_mtime,
    }


def run_settings(folder: Path) -> dict[str, Any]:
    """Return what is written in a run's `job.json`, as it is; {} if that cannot be read."""
    try:
        values = plain_json.parse(disk.read(job_path(folder)))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


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
    data = _read(path, offset, EVENTS_BYTES) if size else b""
    end = data.rfind(b"\n") + 1
    if not end and len(data) == EVENTS_BYTES:
        raise Refused(500, f"{path} has a line longer than {EVENTS_BYTES} bytes.")
    return _objects(data[:end]), offset + end, offset + end < size and end > 0


def last_event(folder: Path) -> Event | None:
    """Return the newest whole event of a run; None if there is none."""
    path = events_path(folder)
    if not path.exists():
        return None
    start = max(0, path.stat().st_size - TAIL_BYTES)
    data = _read(path, start, 2 * TAIL_BYTES)
    lines = _objects(data[: data.rfind(b"\n") + 1])
    return from_json(lines[-1]) if lines else None


def last_log_lines(folder: Path, count: int) -> list[str]:
    """Return the last lines of what the worker printed."""
    path = log_path(folder)
    if not path.exists():
        return []
    start = max(0, path.stat().st_size - 4 * TAIL_BYTES)
    text = _read(path, start, 8 * TAIL_BYTES).decode("utf-8", "replace")
    return text.splitlines()[-count:] if count > 0 else []


def _read(path: Path, start: int, count: int) -> bytes:
    with disk.open_read(path) as file:
        file.seek(start)
        return file.read(count)


def _objects(data: bytes) -> list[dict[str, Any]]:
    found = []
    for line in data.splitlines():
        try:
            value = plain_json.parse(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found
