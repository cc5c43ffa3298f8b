"""How a job is shown: plain lines, JSON lines, or (in a terminal) bars."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, TextIO

from dreambooth_core.errors import ConfigError, DreamboothError
from dreambooth_core.job.events import (
    INFO,
    CheckpointSaved,
    ClassImagesPlanned,
    Event,
    FilesPlanned,
    ImagesPlanned,
    JobFailed,
    JobFinished,
    JobStarted,
    JobStopped,
    LoraSaved,
    Notice,
    PhaseProgress,
    PhaseStarted,
    PlanMade,
    PlannedImage,
    Preflight,
    SampleSaved,
    StateSaved,
    StepDone,
    UnknownEvent,
    to_json,
)
from dreambooth_core.job.run_view import duration

SECONDS_BETWEEN_LINES = 2.0
MIB = 2**20
Clock = Callable[[], float]


class View:
    """Shows events; the base of all views."""

    def __enter__(self) -> View:
        """Begin to show."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End."""

    def show(self, event: Event) -> None:
        """Show one event."""
        raise NotImplementedError

    def say(self, text: str) -> None:
        """Say something that is no event."""
        raise NotImplementedError


class JsonView(View):
    """Events as JSON lines; everything else goes to the error output."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        """Write events to `out`, words to `err`."""
        self.out, self.err = out, err

    def show(self, event: Event) -> None:
        """Write the event as it is in the run's file."""
        print(json.dumps(to_json(event)), file=self.out, flush=True)

    def say(self, text: str) -> None:
        """Write the words to the error output."""
        print(text, file=self.err, flush=True)


class PlainView(View):
    """One line per thing that happened; progress at most every two seconds."""

    def __init__(self, out: TextIO, clock: Clock = time.monotonic) -> None:
        """Write to `out`."""
        self.out = out
        self.clock = clock
        self._last_progress = float("-inf")
        self._units: dict[str, str] = {}

    def show(self, event: Event) -> None:
        """Write the event's lines, unless it is progress that comes too soon after the last."""
        if isinstance(event, StepDone):
            self._progress(step_line(event), event.step in (1, event.total_steps))
        elif isinstance(event, PhaseProgress):
            unit = self._units.get(event.phase, "")
            line = f"  {event.phase}: {count_of(event.done, event.total, unit)}"
            self._progress(line, event.done == event.total)
        else:
            if isinstance(event, PhaseStarted):
                self._units[event.phase] = event.unit
            for line in lines_of(event):
                self.say(line)

    def say(self, text: str) -> None:
        """Write a line."""
        print(text, file=self.out, flush=True)

    def _progress(self, line: str, important: bool) -> None:
        now = self.clock()
        if important or now - self._last_progress >= SECONDS_BETWEEN_LINES:
            self._last_progress = now
            self.say(line)


def show_error(error: DreamboothError, as_json: bool) -> None:
    """Write an error and its remedy to the error output; with `as_json` as an event too."""
    if as_json:
        failed = JobFailed(
            error.message, error.remedy, error.field, type(error).__name__, error.exit_code
        )
        print(json.dumps(to_json(failed)), flush=True)
    problems = error.problems if isinstance(error, ConfigError) else (error,)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)


def lines_of(event: Event) -> list[str]:
    """Return what an event that is no progress says, in lines."""
    teller = _TELLERS.get(type(event))
    return teller(event) if teller else []


def step_line(event: StepDone) -> str:
    """Return a step's numbers in one line."""
    parts = [f"loss {event.loss:.4f}"]
    if event.loss_class is not None:
        parts.append(f"(instance {event.loss_instance:.4f}, class {event.loss_class:.4f})")
    parts += [f"{event.steps_per_second:.2f} steps/s", f"{duration(event.eta_seconds)} left"]
    return f"  step {event.step}/{event.total_steps}, epoch {event.epoch + 1}: {', '.join(parts)}"


def count_of(done: int, total: int, unit: str = "") -> str:
    """Return "3/10 images", or "3 images" where the total is not known; bytes in megabytes."""
    if unit == "bytes":
        whole = f"/{total / MIB:.1f}" if total else ""
        return f"{done / MIB:.1f}{whole} MB"
    amount = f"{done}/{total}" if total else f"{done}"
    return f"{amount} {unit}".rstrip()


def summary_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Return a job's summary, one line per value; lists one line per item."""
    for name, value in summary.items():
        label = name.replace("_", " ")
        if isinstance(value, list):
            yield f"  {label}:"
            yield from (f"    {item}" for item in value)
        elif isinstance(value, dict):
            yield f"  {label}: " + ", ".join(f"{key} {item}" for key, item in value.items())
        elif value not in ("", None):
            yield f"  {label}: {value}"


def _tell_started(event: JobStarted) -> list[str]:
    return [f"Run {event.run_id}: {event.kind} of model {event.model}"]


def _tell_phase(event: PhaseStarted) -> list[str]:
    total = f" ({count_of(event.total, 0, event.unit)})" if event.total else ""
    return [f"{event.phase}{total}"]


def _tell_failed(event: JobFailed) -> list[str]:
    where = f"{event.field}: " if event.field and event.error != "ConfigError" else ""
    return [f"error: {where}{event.message}", *filter(None, [event.remedy, *event.kept])]


def _picture_line(row: PlannedImage) -> str:
    shown = f"{row.bucket}, {row.repeats} times" if row.exists else f"{row.bucket}, to be made"
    return f"  {row.kind} image {row.file} ({shown}): {row.prompt}"


def _tell_files(event: FilesPlanned) -> list[str]:
    lines = [
        f"  {row.when}: {row.path} ({'about ' * row.estimated}{count_of(row.bytes, 0, 'bytes')})"
        for row in event.rows
    ]
    needed, free = (count_of(size, 0, "bytes") for size in (event.needed_bytes, event.free_bytes))
    return ["Files:", *lines, f"  {needed} in all, {free} free"]


def _tell_preflight(event: Preflight) -> list[str]:
    return [
        "Before the start:",
        *(f"  {row.level}: {row.message} {row.remedy}".rstrip() for row in event.findings),
        *([] if event.findings else ["  nothing stands in the way."]),
        *(
            f"  memory for {row.phase}: about {_gigabytes(row.gpu_bytes, row.ram_bytes)}"
            for row in event.memory
        ),
        f"  {event.device} has {_gigabytes(event.gpu_bytes, event.ram_bytes)}",
    ]


def _gigabytes(gpu_bytes: int, ram_bytes: int) -> str:
    gpu = [f"{gpu_bytes / 2**30:.1f} GB of the GPU"] if gpu_bytes else []
    return " and ".join([*gpu, f"{ram_bytes / 2**30:.1f} GB of main memory"])


_TELLERS: dict[type[Event], Callable[[Any], list[str]]] = {
    JobStarted: _tell_started,
    PhaseStarted: _tell_phase,
    ImagesPlanned: lambda e: [_picture_line(row) for row in e.rows],
    ClassImagesPlanned: lambda e: [
        f"Concept {e.concept}: {e.own} class images of your own, {e.found} found and fitting,"
        f" {e.to_generate} to generate."
    ],
    FilesPlanned: _tell_files,
    Preflight: _tell_preflight,
    PlanMade: lambda e: ["Plan:", *(f"  {line}" for line in e.lines)],
    SampleSaved: lambda e: [f"  picture (step {e.step}, seed {e.seed}): {e.path}"],
    CheckpointSaved: lambda e: [
        f"  checkpoint (step {e.step}, {count_of(e.size, 0, 'bytes')}): {e.path}"
    ],
    LoraSaved: lambda e: [f"  LoRA (step {e.step}, {count_of(e.size, 0, 'bytes')}): {e.path}"],
    StateSaved: lambda e: [f"  training state (step {e.step}): {e.path}"],
    Notice: lambda e: [f"{'note' if e.level == INFO else e.level}: {e.message}"],
    JobFinished: lambda e: ["Done.", *summary_lines(e.summary)],
    JobStopped: lambda e: [f"Stopped at step {e.step}.", *summary_lines(e.summary)],
    JobFailed: _tell_failed,
    UnknownEvent: lambda e: [f"{e.event}: {json.dumps(e.data)}"],
}
