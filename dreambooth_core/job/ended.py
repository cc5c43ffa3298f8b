"""How a worker ended that is gone without a final event, as far as it can be told from outside."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dreambooth_core.config.memory_savers import all_changes, in_words
from dreambooth_core.config.schema import JobConfig, TrainConfig
from dreambooth_core.errors import DreamboothError
from dreambooth_core.job.events import JobFailed
from dreambooth_core.job.kept import Kept, read_kept
from dreambooth_core.job.log import log_tail
from dreambooth_core.job.oom_kills import LIKELY, SURE, UNKNOWN, killed_since
from dreambooth_core.job.process import start_mark
from dreambooth_core.job.runs import events_path, log_path, read_run

LOG_TAIL_LINES = 5
ROOM_FOR_EVENTS = 64 * 1024
"""A disk with less room than that is full."""

NO_MEMORY = {
    SURE: "The system ended the worker because memory ran out",
    LIKELY: "The worker is gone, most likely ended by the system because memory ran out",
}
OFTEN_MEMORY = "A killed worker often means that memory ran out."
"""Said where the system does not count what it ends."""


@dataclass(frozen=True)
class Traces:
    """What was noted of a worker when it started, and the exit code that is known of it, if any."""

    mark: str = ""
    kills: Mapping[str, int] = field(default_factory=dict)
    code: int | None = None


def how_it_ended(folder: Path, traces: Traces) -> JobFailed:
    """Return the final event of a worker that could not write its own."""
    kept, tail = read_kept(events_path(folder)), "\n".join(log_tail(folder, LOG_TAIL_LINES))
    said = f" Its last words:\n{tail}" if tail else ""
    remedy, config = [f"The log is {log_path(folder)}."], _settings(folder)
    sure = _ended_for_memory(traces)
    if sure:
        words = f"{NO_MEMORY[sure]}, {kept.where()}."
        remedy.insert(0, _needs_less(config, kept))
    elif _was_restarted(traces):
        words = f"The machine was restarted while the worker ran, {kept.where()}."
    else:
        words = f"The worker process {_end_in_words(traces.code)} without finishing,"
        words += f" {kept.where()}.{_full_disk(folder)}"
        remedy += [OFTEN_MEMORY] if _was_killed(traces) and not traces.kills else []
    return JobFailed(
        message=f"{words}{said}",
        remedy=" ".join(filter(None, remedy)),
        error="WorkerDied",
        kept=kept.lines(config),
    )


def _settings(folder: Path) -> JobConfig | None:
    try:
        return read_run(folder).config
    except DreamboothError:
        return None


def _ended_for_memory(traces: Traces) -> str:
    if not _was_killed(traces) or _was_restarted(traces):
        return UNKNOWN
    return killed_since(traces.kills)


def _was_killed(traces: Traces) -> bool:
    """Whether it may have been killed: for all that is known, its exit code may be lost."""
    return traces.code in (None, -getattr(signal, "SIGKILL", 9))


def _was_restarted(traces: Traces) -> bool:
    """Whether the machine started anew since; where marks tell it, they begin with the start."""
    then, slash, _ = traces.mark.partition("/")
    now, _, _ = start_mark(os.getpid()).partition("/")
    return bool(slash and then and now) and then != now


def _needs_less(config: JobConfig | None, kept: Kept) -> str:
    """Return which settings need less memory, the least harmful first."""
    if not isinstance(config, TrainConfig):
        return "Close other programs, or give the machine more memory."
    on_gpu = config.precision.device != "cpu"
    words = "; ".join(map(in_words, all_changes(config, kept.phase, on_gpu=on_gpu)))
    return f"Less memory is needed, in this order, with {words}." if words else ""


def _full_disk(folder: Path) -> str:
    try:
        full = shutil.disk_usage(folder).free < ROOM_FOR_EVENTS
    except OSError:
        return ""
    return f" The disk of {folder} is full, so that it could not say why." if full else ""


def _end_in_words(code: int | None) -> str:
    if code is None:
        return "ended"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"was killed by signal {-code}"
