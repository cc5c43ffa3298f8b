"""A run as it stands: its events folded into what a page, a REST answer or a person looks at."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreambooth_core.errors import DreamboothError, NewerVersionError
from dreambooth_core.job.commands import COMMANDS_FILE, Command, CommandReader
from dreambooth_core.job.curve import Curve, Point, RunningMean
from dreambooth_core.job.events import (
    WARNING,
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
    Resumed,
    SampleSaved,
    StateSaved,
    StepDone,
    UnknownEvent,
)
from dreambooth_core.job.kept import TRAINING
from dreambooth_core.job.launcher import Job
from dreambooth_core.job.lineage import EventsOfRuns
from dreambooth_core.job.newer import newer_notice
from dreambooth_core.job.runs import log_path, read_run, told_kind, told_model

MOST_SAMPLES = 200
MOST_NOTICES = 50
MOST_MARKS = 100
RATE_PREFIX = "learning_rate."
ENDED = ("finished", "stopped", "failed")
STOP_COMMANDS = ("stop", "stop_after_epoch")


@dataclass
class RunView:
    """What is known of a run so far.

    `state` is "starting", "running", "stopping", "finished", "stopped" or "failed". `done` of
    `total` (0 if not known) counts the `unit` of the present `phase`; `epoch` counts from 0.
    `samples` are newest first and only the newest are kept, as are `notices`, newest last. A run
    that goes on from another shows its steps, pictures and files too, up to `resumed_step`.
    """

    run_id: str = ""
    kind: str = ""
    model: str = ""
    state: str = "starting"
    phase: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    step: int = 0
    total_steps: int = 0
    epoch: int = 0
    loss: float | None = None
    steps_per_second: float = 0.0
    eta_seconds: float | None = None
    memory_mb: float = 0.0
    plan: list[str] = field(default_factory=list)
    samples: list[SampleSaved] = field(default_factory=list)
    files: list[CheckpointSaved | LoraSaved] = field(default_factory=list)
    training_state: str = ""
    notices: list[Notice] = field(default_factory=list)
    planned_images: list[PlannedImage] = field(default_factory=list)
    planned_class_images: list[ClassImagesPlanned] = field(default_factory=list)
    planned_files: FilesPlanned | None = None
    preflight: Preflight | None = None
    message: str = ""
    remedy: str = ""
    error: str = ""
    field: str = ""
    kept: list[str] = dataclasses.field(default_factory=list)
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    log_path: str = ""
    started: float = 0.0
    updated: float = 0.0
    stop_asked: str = ""
    resumed_run: str = ""
    resumed_step: int = 0
    _curves: dict[str, Curve] = dataclasses.field(default_factory=dict, repr=False)
    _smoothed: RunningMean = dataclasses.field(default_factory=RunningMean, repr=False)
    _marks: dict[int, RunningMean] = dataclasses.field(default_factory=dict, repr=False)
    _phase_began: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ENDED

    @property
    def fraction(self) -> float | None:
        """How much of the present phase is done, 0 to 1; None where its length is not known."""
        if self.state == "finished":
            return 1.0
        return min(1.0, self.done / self.total) if self.total else None

    @property
    def is_phase_over(self) -> bool:
        """Whether the present phase is counted to its end, though the job goes on."""
        return not self.ended and 0 < self.total <= self.done

    @property
    def seconds(self) -> float:
        """How long the run has gone on, by its own events."""
        return max(0.0, self.updated - self.started) if self.started else 0.0

    @property
    def curves(self) -> dict[str, list[Point]]:
        """Return (step, value) points: the losses, and "learning_rate.<part>" for each part."""
        return {name: curve.points for name, curve in self._curves.items()}

    def update(self, events: Sequence[Event]) -> None:
        """Take in what happened next, oldest first; nothing counts after the final event."""
        for event in events:
            if self.ended:
                return
            self.started = self.started or event.time
            self.updated = max(self.updated, event.time)
            fold = _FOLDS.get(type(event))
            if fold is not None:
                fold(self, event)

    def recall(self, events: Sequence[Event]) -> None:
        """Take in what an earlier run did that this one goes on from."""
        for event in events:
            if isinstance(event, StepDone):
                _numbers(self, event)
            elif isinstance(event, StateSaved):
                self.mark(event.step)
            elif isinstance(event, SampleSaved | CheckpointSaved | LoraSaved):
                _FOLDS[type(event)](self, event)

    def note(self, commands: Sequence[Command]) -> None:
        """Take in what was asked of the run."""
        for command in commands:
            if command.name in STOP_COMMANDS and self.stop_asked != "stop":
                self.stop_asked = command.name
        if self.stop_asked and self.state in ("starting", "running"):
            self.state = "stopping"

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        values = {
            spec.name: getattr(self, spec.name)
            for spec in dataclasses.fields(self)
            if not spec.name.startswith("_")
        }
        for name in ("samples", "files", "notices", "planned_images", "planned_class_images"):
            values[name] = [dataclasses.asdict(row) for row in values[name]]
        for name in ("planned_files", "preflight"):
            values[name] = dataclasses.asdict(values[name]) if values[name] else None
        return {**values, "curves": self.curves, "fraction": self.fraction, "ended": self.ended}

    def add_point(self, name: str, step: int, value: float) -> None:
        """Put a point on a curve, which begins with its first one."""
        self._curves.setdefault(name, Curve()).add(step, value)

    def smooth(self, step: int, loss: float) -> None:
        """Put a loss's running mean on its curve."""
        self.add_point("loss_smoothed", step, self._smoothed.add(loss))

    def mark(self, step: int) -> None:
        """Remember the loss's running mean at a state, from which a run may go on."""
        self._marks[step] = dataclasses.replace(self._smoothed)
        while len(self._marks) > MOST_MARKS:
            del self._marks[next(iter(self._marks))]

    def go_back(self, step: int) -> None:
        """Forget the numbers of the steps after one, which are made again."""
        for curve in self._curves.values():
            curve.cut(step)
        self._smoothed = dataclasses.replace(self._marks.get(step, self._smoothed))

    def begin_phase(self, event: PhaseStarted) -> None:
        """Turn to another part of the job."""
        self.phase, self.total, self.unit = event.phase, event.total, event.unit
        self.done, self.steps_per_second, self.eta_seconds = 0, 0.0, None
        self._phase_began = event.time

    def move_on(self, event: PhaseProgress) -> None:
        """Count what is done; speed and time left follow from when the phase began."""
        if event.phase != self.phase:
            self.begin_phase(PhaseStarted(event.phase, event.total, time=event.time))
        self.done, self.total = event.done, event.total or self.total
        elapsed = event.time - self._phase_began
        if event.done and elapsed > 0:
            self.steps_per_second = event.done / elapsed
            left = max(0, self.total - event.done)
            self.eta_seconds = left / self.steps_per_second if self.total else None


def _start(view: RunView, event: JobStarted) -> None:
    view.run_id, view.kind, view.model = event.run_id, event.kind, event.model
    view.state = "stopping" if view.stop_asked else "running"
    _newer(view, event)


def _newer(view: RunView, event: JobStarted | UnknownEvent) -> None:
    notice = newer_notice(event, view.run_id)
    if notice is not None:
        _notice(view, notice)


def _step(view: RunView, event: StepDone) -> None:
    view.phase, view.unit = TRAINING, "steps"
    view.done, view.total = event.step, event.total_steps
    view.steps_per_second, view.eta_seconds = event.steps_per_second, event.eta_seconds
    view.memory_mb = event.memory_mb
    _numbers(view, event)


def _numbers(view: RunView, event: StepDone) -> None:
    if event.step <= view.step:
        view.go_back(event.step - 1)
    view.step, view.total_steps = event.step, event.total_steps
    view.epoch, view.loss = event.epoch, event.loss
    view.add_point("loss_instance", event.step, event.loss_instance)
    if event.loss_class is not None:
        view.add_point("loss_class", event.step, event.loss_class)
    view.smooth(event.step, event.loss)
    for part, rate in event.learning_rates.items():
        view.add_point(RATE_PREFIX + part, event.step, rate)


def _sample(view: RunView, event: SampleSaved) -> None:
    view.samples.insert(0, event)
    del view.samples[MOST_SAMPLES:]


def _notice(view: RunView, event: Notice) -> None:
    view.notices.append(event)
    del view.notices[:-MOST_NOTICES]


def _state_saved(view: RunView, event: StateSaved) -> None:
    view.training_state = event.path
    view.mark(event.step)


def _resume(view: RunView, event: Resumed) -> None:
    view.resumed_run, view.resumed_step = event.run_id, event.step


def _plan(view: RunView, event: PlanMade) -> None:
    view.plan = list(event.lines)


def _plan_files(view: RunView, event: FilesPlanned) -> None:
    view.planned_files = event


def _preflight(view: RunView, event: Preflight) -> None:
    view.preflight = event


def _finish(view: RunView, event: JobFinished) -> None:
    view.state, view.summary, view.eta_seconds = "finished", event.summary, None


def _stop(view: RunView, event: JobStopped) -> None:
    view.state, view.summary, view.eta_seconds = "stopped", event.summary, None


def _fail(view: RunView, event: JobFailed) -> None:
    view.state, view.eta_seconds = "failed", None
    view.message, view.remedy = event.message, event.remedy
    view.error, view.field = event.error, event.field
    view.kept, view.changes = event.kept, event.changes


_FOLDS: dict[type[Event], Callable[[RunView, Any], None]] = {
    JobStarted: _start,
    Resumed: _resume,
    PhaseStarted: RunView.begin_phase,
    PhaseProgress: RunView.move_on,
    PlanMade: _plan,
    ImagesPlanned: lambda view, event: view.planned_images.extend(event.rows),
    ClassImagesPlanned: lambda view, event: view.planned_class_images.append(event),
    FilesPlanned: _plan_files,
    Preflight: _preflight,
    StepDone: _step,
    SampleSaved: _sample,
    CheckpointSaved: lambda view, event: view.files.append(event),
    LoraSaved: lambda view, event: view.files.append(event),
    StateSaved: _state_saved,
    Notice: _notice,
    JobFinished: _finish,
    JobStopped: _stop,
    JobFailed: _fail,
    UnknownEvent: _newer,
}


class RunReader:
    """Keeps a view of a run up to date; each look reads only what is new in the run's folder."""

    def __init__(self, folder: Path, job: Job | None = None) -> None:
        """Read the run in `folder`; `job` knows how its worker ended if it was started here."""
        self.folder = Path(folder)
        self.job = job or Job(self.folder.name, self.folder)
        self._events = EventsOfRuns(self.folder)
        self._commands = CommandReader(self.folder / COMMANDS_FILE)
        self._view = _blank_view(self.folder)

    def poll(self, most_reads: int = 0) -> RunView:
        """Return the view as of now; a worker that is gone without a word has failed.

        With `most_reads` a long run is not read whole at once: the next looks go on with it.
        """
        if self._view.ended:
            return self._view
        running = self.job.is_running()  # asked first: what an ended worker wrote is there to read
        reads = 0
        while more := self._read():
            reads += 1
            if reads == most_reads:
                break
        self._view.note(self._commands.poll())
        if not (more or running or self._view.ended):
            self._view.update([self.job.death()])
        return self._view

    def _read(self) -> bool:
        """Take in some more; return whether there may be more."""
        events, is_earlier, more = self._events.read()
        (self._view.recall if is_earlier else self._view.update)(events)
        return more


def duration(seconds: float) -> str:
    """Return a time in the two units that matter: 5 s, 2 min 05 s, 1 h 02 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _blank_view(folder: Path) -> RunView:
    view = RunView(run_id=folder.name, log_path=str(log_path(folder)))
    try:
        run = read_run(folder)
    except NewerVersionError as error:
        view.kind, view.model = told_kind(folder), told_model(folder)
        _notice(view, Notice(WARNING, str(error)))
        return view
    except DreamboothError:
        return view  # the worker says what is wrong with its file
    view.kind, view.model = run.kind, run.model
    return view
