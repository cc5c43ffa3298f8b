"""What a worker reports: one JSON line per event, appended to the run's `events.jsonl`."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreambooth_core.errors import NonFiniteError
from dreambooth_core.job import plain_json
from dreambooth_core.job.held_lines import HeldLines
from dreambooth_core.job.json_lines import read_lines

ERROR, WARNING, INFO = "error", "warning", "info"


@dataclass(frozen=True)
class Event:
    """Something that happened in a run; `time` is set when the event is written (unix seconds)."""

    time: float = field(default=0.0, kw_only=True, compare=False)


@dataclass(frozen=True)
class JobStarted(Event):
    """The worker process is running; `format` is the version of events, 0 before they had one."""

    kind: str
    model: str
    run_id: str
    pid: int
    version: str
    format: int = 0


@dataclass(frozen=True)
class Resumed(Event):
    """The run goes on from the state that another run, or this one, saved after `step`."""

    run_id: str
    step: int


@dataclass(frozen=True)
class PhaseStarted(Event):
    """A part of the job began; `total` is 0 where its length is not known."""

    phase: str
    total: int = 0
    unit: str = ""


@dataclass(frozen=True)
class PhaseProgress(Event):
    """A part of the job moved on."""

    phase: str
    done: int
    total: int = 0


@dataclass(frozen=True)
class PlanMade(Event):
    """What the job is going to do, in words, before it does it."""

    lines: list[str]


@dataclass(frozen=True)
class PlannedImage:
    """A picture that a training would show; `concept` counts from 1, `bucket` is "512x640".

    `kind` is "instance" or "class"; `repeats` is how often the run shows it; `exists` is false for
    a class image that is made first.
    """

    file: str
    kind: str
    concept: int
    prompt: str
    bucket: str
    repeats: int
    exists: bool = True


@dataclass(frozen=True)
class ImagesPlanned(Event):
    """Some of the pictures that a training would show; several events make up the whole table."""

    rows: list[PlannedImage]

    def __post_init__(self) -> None:
        """Make rows of what was read from a file."""
        object.__setattr__(self, "rows", _rows(PlannedImage, self.rows))


@dataclass(frozen=True)
class ClassImagesPlanned(Event):
    """How many class images a concept has that fit, and how many would be made first."""

    concept: int
    own: int
    found: int
    to_generate: int
    folder: str


@dataclass(frozen=True)
class PlannedFile:
    """A file, or a folder of many, that a training would write: its bytes, and when it is written.

    `kept` is false for one that the same run deletes again; a size that is not `estimated` is
    right to a kilobyte.
    """

    path: str
    bytes: int
    when: str
    kept: bool = True
    estimated: bool = False


@dataclass(frozen=True)
class FilesPlanned(Event):
    """What a training would write; `needed_bytes` is the most it takes up, `free_bytes` is there.

    Where files go to several disks, both are of the disk that is left with the least.
    """

    rows: list[PlannedFile]
    needed_bytes: int
    free_bytes: int

    def __post_init__(self) -> None:
        """Make rows of what was read from a file."""
        object.__setattr__(self, "rows", _rows(PlannedFile, self.rows))


@dataclass(frozen=True)
class Finding:
    """Something about the pictures, words or memory of a training that is worth knowing before it.

    `level` is ERROR (training would fail), WARNING or INFO; `field` a setting's path, or "".
    """

    level: str
    message: str
    remedy: str = ""
    field: str = ""


@dataclass(frozen=True)
class PhaseMemory:
    """The most that a part of a training takes, estimated: of the GPU's memory and of the RAM."""

    phase: str
    gpu_bytes: int
    ram_bytes: int


@dataclass(frozen=True)
class Preflight(Event):
    """What was found before a training starts, and what memory its parts take.

    Of the device's own memory `gpu_bytes` is all there is, of the RAM `ram_bytes` is what is free;
    0 where that is not known.
    """

    findings: list[Finding]
    memory: list[PhaseMemory] = field(default_factory=list)
    device: str = "cpu"
    gpu_bytes: int = 0
    ram_bytes: int = 0

    def __post_init__(self) -> None:
        """Make rows of what was read from a file."""
        object.__setattr__(self, "findings", _rows(Finding, self.findings))
        object.__setattr__(self, "memory", _rows(PhaseMemory, self.memory))


@dataclass(frozen=True)
class StepDone(Event):
    """One optimizer update; `epoch` counts from 0, `step` from 1, memory is the peak so far."""

    step: int
    total_steps: int
    epoch: int
    loss: float
    loss_instance: float
    loss_class: float | None = None
    learning_rates: dict[str, float] = field(default_factory=dict)
    grad_norm: float = 0.0
    steps_per_second: float = 0.0
    eta_seconds: float = 0.0
    memory_mb: float = 0.0


@dataclass(frozen=True)
class SampleSaved(Event):
    """A picture was written."""

    path: str
    prompt: str
    seed: int
    step: int = 0


@dataclass(frozen=True)
class CheckpointSaved(Event):
    """A checkpoint file was written; `size` in bytes."""

    path: str
    step: int
    epoch: int
    sha256: str
    size: int


@dataclass(frozen=True)
class LoraSaved(Event):
    """A LoRA file was written; `size` in bytes."""

    path: str
    step: int
    epoch: int
    sha256: str
    size: int


@dataclass(frozen=True)
class StateSaved(Event):
    """A training state that a later run can resume from was written."""

    path: str
    step: int


@dataclass(frozen=True)
class Notice(Event):
    """Something worth reading; `level` is ERROR, WARNING or INFO."""

    level: str
    message: str


@dataclass(frozen=True)
class JobFinished(Event):
    """The job did all it was asked to."""

    summary: dict[str, Any]


@dataclass(frozen=True)
class JobStopped(Event):
    """The job ended early because it was told to, and saved what it was asked to save."""

    step: int
    summary: dict[str, Any]


@dataclass(frozen=True)
class JobFailed(Event):
    """The job could not be done; `error` is the exception's class, `field` a setting's path.

    `kept` says what of it lasts, a sentence each; `changes` are new values of settings, by path,
    with which it should work.
    """

    message: str
    remedy: str = ""
    field: str = ""
    error: str = ""
    exit_code: int = 1
    kept: list[str] = dataclasses.field(default_factory=list)
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class UnknownEvent(Event):
    """An event that this version does not know, kept as it was read."""

    event: str
    data: dict[str, Any]


FINAL_EVENTS = (JobFinished, JobStopped, JobFailed)

EVENT_TYPES: tuple[type[Event], ...] = (
    JobStarted,
    Resumed,
    PhaseStarted,
    PhaseProgress,
    PlanMade,
    ImagesPlanned,
    ClassImagesPlanned,
    FilesPlanned,
    Preflight,
    StepDone,
    SampleSaved,
    CheckpointSaved,
    LoraSaved,
    StateSaved,
    Notice,
    JobFinished,
    JobStopped,
    JobFailed,
)


def _rows(cls: type[Any], rows: Sequence[Any]) -> list[Any]:
    return [row if isinstance(row, cls) else cls(**row) for row in rows]


def event_name(cls: type[Event]) -> str:
    """Return the name an event type has in the file: StepDone is "step_done"."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


_TYPE_OF_NAME = {event_name(cls): cls for cls in EVENT_TYPES}


def to_json(event: Event) -> dict[str, Any]:
    """Return the event as the JSON object of its line."""
    values = dataclasses.asdict(event)
    moment = values.pop("time")
    if isinstance(event, UnknownEvent):
        return {"time": moment, "event": event.event, **event.data}
    return {"time": moment, "event": event_name(type(event)), **values}


def from_json(line: Mapping[str, Any]) -> Event:
    """Return the event of a parsed line; one that this version cannot read is an UnknownEvent."""
    values = dict(line)
    name, told = str(values.pop("event", "")), values.pop("time", 0.0)
    moment = float(told) if plain_json.is_number(told) else 0.0
    cls = _TYPE_OF_NAME.get(name)
    if cls is not None and plain_json.fits(cls, values):
        return cls(**values, time=moment)
    return UnknownEvent(event=name, data=values, time=moment)


def spare_path(path: Path) -> Path:
    """Return the file that keeps some room taken for the last events of a run."""
    return path.with_suffix(".spare")


class EventWriter:
    """Appends events to a run's `events.jsonl`; on a full disk they wait here for room, in order.

    Of steps and progress only a part is kept then.
    """

    def __init__(self, path: Path, *, spare: bool = False) -> None:
        """Write to `path`, which is created with the first event.

        `spare` keeps some room taken, which is given back with the final event.
        """
        self.path = Path(path)
        self._lines = HeldLines(self.path, spare_path(self.path) if spare else None)
        self._lines.take_spare()

    def emit(self, event: Event) -> None:
        """Write one event as one line; raises NonFiniteError naming a number that is not finite."""
        _refuse_non_finite(event)
        stamped = dataclasses.replace(event, time=event.time or time.time())
        line = plain_json.line_of(to_json(stamped))
        self._lines.add(line, must=not isinstance(event, (StepDone, PhaseProgress)))
        if isinstance(event, FINAL_EVENTS):
            self._lines.end()


def read_events(path: Path, offset: int = 0, most: int = -1) -> tuple[list[Event], int]:
    """Return the events written after byte `offset`, and the offset to go on from.

    A last line without its end is left for the next call; a line torn by a crash is passed over.
    With `most` about so many bytes are read, but a line at least if there is a whole one.
    """
    lines, offset = read_lines(path, offset, most)
    return [from_json(line) for line in lines], offset


def _refuse_non_finite(event: Event) -> None:
    for name, value in dataclasses.asdict(event).items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        for key, number in inner:
            if isinstance(number, float) and not math.isfinite(number):
                where = f"{name}.{key}" if key else name
                raise NonFiniteError(
                    f"{where} is {number} in {event_name(type(event))}.",
                    remedy="Lower the learning rate, or train with mixed precision bf16 or no.",
                )
