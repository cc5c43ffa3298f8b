"""What the newest job that made a file out of other files came to: a merge, or a LoRA's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreambooth_core.config.lora import BakeLoraConfig, ExtractLoraConfig
from dreambooth_core.config.merge import MergeConfig
from dreambooth_core.errors import UsageError
from dreambooth_core.job.events import FINAL_EVENTS, Event, JobFailed, read_events
from dreambooth_core.job.runs import FILE_KINDS, Run, events_path, read_run, run_ids
from dreambooth_core.job.workspace import Workspace

SOURCES: dict[type, tuple[str, ...]] = {
    MergeConfig: ("primary", "secondary", "tertiary"),
    ExtractLoraConfig: ("trained", "base"),
    BakeLoraConfig: ("checkpoint", "lora"),
}
"""Which settings name the files that a job makes its own of."""


@dataclass(frozen=True)
class TransferEnd:
    """How such a job ended: with the summary of what it made, or a failure."""

    run_id: str
    kind: str
    name: str
    made_of: str
    summary: dict[str, Any] = field(default_factory=dict)
    failure: JobFailed | None = None


def last_transfer(workspace: Workspace) -> TransferEnd | None:
    """Return how the newest of these jobs ended; None if there is none, or it goes on."""
    for run_id in reversed(run_ids(workspace)):
        run = _read(workspace.run_folder(run_id)) if _is_one(run_id) else None
        if run is not None:
            return _end(run, workspace.run_folder(run_id))
    return None


def _is_one(run_id: str) -> bool:
    return any(f"-{kind}" in run_id for kind in FILE_KINDS)


def _read(folder: Path) -> Run | None:
    try:
        return read_run(folder)
    except UsageError:
        return None  # of another version


def _end(run: Run, folder: Path) -> TransferEnd | None:
    final, name = _final(folder), str(getattr(run.config, "name", ""))
    sources = [str(getattr(run.config, source)) for source in SOURCES[type(run.config)]]
    made_of = ", ".join(Path(source).name for source in sources if source)
    if final is None:
        return None
    if isinstance(final, JobFailed):
        return TransferEnd(run.run_id, run.kind, name, made_of, failure=final)
    return TransferEnd(run.run_id, run.kind, name, made_of, getattr(final, "summary", {}))


def _final(folder: Path) -> Event | None:
    events, _ = read_events(events_path(folder))
    return next((event for event in reversed(events) if isinstance(event, FINAL_EVENTS)), None)
