"""Training runs of the tiny model in this process, for the tests of the train stage."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.serialize import from_dict
from dreambooth_core.job.commands import Command, CommandReader
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import Event, StepDone
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.stages import train
from dreambooth_core.stages.training_state import TrainingState, load_state
from tests.noise_pictures import write_pictures

FAST: dict[str, Any] = {
    "model": "tiny",
    "intervals": {"epochs": 2},
    "images": {"resolution": 64},
    "optimizer": {"name": "adamw"},
    "learning_rate": {"unet": 1e-3, "text_encoder": 1e-3},
    "text_encoder": {"train_ratio": 1.0},
    "batch": {"gradient_checkpointing": False},
    "precision": {"device": "cpu"},
    "saving": {"save_at_end": False},
}
"""Settings under which a few steps of a tiny model show what a setting does."""


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with some of them replaced."""
    result = dict(base)
    for name, value in changes.items():
        inner = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = merged(result[name], value) if inner else value
    return result


class Script:
    """Commands that arrive once the run has done that many steps."""

    def __init__(self, events: list[Event], at_step: Mapping[int, Sequence[str]]) -> None:
        self._events = events
        self._open = dict(at_step)

    def poll(self) -> list[Command]:
        """Return what has arrived, as a CommandReader does."""
        done = sum(isinstance(event, StepDone) for event in self._events)
        names = [name for step in sorted(self._open) if step <= done for name in self._open[step]]
        self._open = {step: names for step, names in self._open.items() if step > done}
        return [Command(name) for name in names]


@dataclass
class Trained:
    """What a run returned, reported and remembered."""

    summary: dict[str, Any]
    events: list[Event]
    states: Path
    state: TrainingState | None = field(default=None)

    @property
    def steps(self) -> list[StepDone]:
        """The reports of the steps."""
        return [event for event in self.events if isinstance(event, StepDone)]

    @property
    def losses(self) -> list[float]:
        """The loss of every step."""
        return [step.loss for step in self.steps]

    @property
    def weights(self) -> dict[str, dict[str, torch.Tensor]]:
        """The trained weights by component."""
        assert self.state is not None
        return self.state.weights

    def events_of(self, kind: type[Event]) -> list[Any]:
        """The events of one kind."""
        return [event for event in self.events if type(event) is kind]


class Trainings:
    """Runs trainings of the tiny model on four pictures of noise, in one workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.pictures = write_pictures(workspace.root / "pictures", 4)

    def config(self, changes: Mapping[str, Any] | None = None) -> TrainConfig:
        """The fast settings with some changed; "concept" changes the one concept."""
        changes = dict(changes or {})
        concept = {
            "instance_folder": str(self.pictures),
            "instance_token": "zwx",
            "class_token": "dog",
            **changes.pop("concept", {}),
        }
        return from_dict(TrainConfig, merged({**FAST, "concepts": [concept]}, changes))

    def context(
        self, run_id: str = "run", at_step: Mapping[int, Sequence[str]] | None = None
    ) -> tuple[RunContext, list[Event]]:
        """A context whose events are collected and whose commands are scripted."""
        events: list[Event] = []
        folder = self.workspace.jobs_dir / run_id
        folder.mkdir(parents=True, exist_ok=True)
        commands = CommandReader(folder / "commands.jsonl")
        script = Script(events, at_step or {})
        commands.poll = script.poll  # type: ignore[method-assign]
        return RunContext(self.workspace, run_id, folder, events.append, commands), events

    def run(
        self,
        changes: Mapping[str, Any] | None = None,
        run_id: str = "run",
        at_step: Mapping[int, Sequence[str]] | None = None,
    ) -> Trained:
        """Train and return what came of it, with its last state if it wrote one."""
        AcceleratorState._reset_state(True)  # each run is a process of its own in the product
        context, events = self.context(run_id, at_step)
        summary = train.run(self.config(changes), context)
        states = self.workspace.model("tiny").states_dir / run_id
        state = load_state(Path(summary["state"])) if summary.get("state") else None
        return Trained(summary, events, states, state)


def same(first: Any, second: Any) -> bool:
    """Whether two nested structures hold the same values, tensors bit for bit."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def trainings_in(folder: Path, created: Path) -> Trainings:
    """A workspace in `folder` with a copy of the models in the workspace `created`, untrained."""
    for name in ("models/dreambooth/tiny", "models/Stable-diffusion"):
        ignore = shutil.ignore_patterns("state", "samples", "cache", "class_images", "tiny_*")
        source = created / name
        if source.exists():
            shutil.copytree(source, folder / name, ignore=ignore)
    return Trainings(Workspace(folder))
