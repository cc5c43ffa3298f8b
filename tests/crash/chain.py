"""A training that is killed again and again, and what it ends with."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreambooth_core.config.schema import CreateConfig, TrainConfig
from dreambooth_core.config.serialize import from_dict
from dreambooth_core.job import launcher
from dreambooth_core.job.events import (
    CheckpointSaved,
    JobFinished,
    LoraSaved,
    PhaseStarted,
    StateSaved,
    StepDone,
)
from dreambooth_core.job.run_view import RunReader
from dreambooth_core.job.runs import log_path
from dreambooth_core.job.workspace import ModelFolder, Workspace
from dreambooth_core.stages.saved_states import latest_state, state_progress
from tests.crash import power
from tests.crash.blow import Blow
from tests.crash.inspection import Inspector, events_of, sha256, tensors_of
from tests.crash.nursery import Child, Nursery
from tests.trainings import merged

KEEP_STATES = 2
SPACING = 4
"""A run is killed within this part of the changes that a whole training makes to the disk."""
MOST_BLOWS = 12
"""After so many kills a training may come to its end."""

TRAINING: dict[str, Any] = {
    "model": "tiny",
    "intervals": {"epochs": 6},
    "images": {"resolution": 64, "horizontal_flip": True, "cache_latents": "disk"},
    "learning_rate": {"unet": 1e-3, "text_encoder": 1e-3, "schedule": "cosine"},
    "text_encoder": {"train_ratio": 0.6},
    "captions": {"shuffle_tags": True, "dropout": 0.1},
    "batch": {"batch_size": 2, "gradient_checkpointing": False},
    "precision": {"device": "cpu"},
    "ema": {"enabled": True, "decay": 0.9},
    "previews": {"prompts": ["a zwx dog"], "steps": 1, "every_epochs": 3},
    "saving": {"save_every_epochs": 2, "state_every_epochs": 1, "keep_states": KEEP_STATES},
}
CONCEPT = {
    "instance_token": "zwx",
    "class_token": "dog",
    "class_prompt": "a dog",
    "class_images_per_instance_image": 1,
    "class_steps": 1,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": {"name": "adamw"}},
    "lion": {
        "optimizer": {"name": "lion"},
        "unet": {"parts": "cross_attention"},
        "batch": {"batch_size": 1, "gradient_accumulation_steps": 2},
        "saving": {"ema_keys": True},
    },
    "lora": {
        "optimizer": {"name": "adamw_schedule_free"},
        "learning_rate": {"schedule": "constant"},
        "lora": {"enabled": True},
        "saving": {"use_ema": False},
    },
}
"""Trainings of 12 steps: a state after every second, a checkpoint after every fourth."""


@dataclass
class Tally:
    """What happened in all chains together."""

    kills: dict[str, int] = field(default_factory=dict)
    inside_saves: int = 0
    before_first_state: int = 0
    losses: list[str] = field(default_factory=list)
    taken_by_power: int = 0
    runs: int = 0
    files_read: int = 0
    chains: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def killed(self) -> int:
        """How many workers were killed."""
        return sum(self.kills.values())


@dataclass(frozen=True)
class Ending:
    """What a training ends with, for comparing: every byte that must not depend on kills."""

    state: dict[str, Any]
    pictures: dict[str, str]
    checkpoints: dict[int, list[Any]]
    steps: dict[int, Any]


@dataclass
class Base:
    """What the chains of a variant begin with, and what they must end with."""

    root: Path
    config: TrainConfig
    ending: Ending
    changes: int
    seconds: float


class Field:
    """Where trainings are made: a nursery, and a folder for workspaces."""

    def __init__(self, folder: Path, nursery: Nursery) -> None:
        """Make the untrained model that every training begins with."""
        self.folder, self.nursery = folder, nursery
        self.tally = Tally()
        self._numbers = iter(range(1, 10**6))
        template = folder / "template"
        self._call("tests.crash.nursery:prepare", template)
        source = template / "models/Stable-diffusion/tiny-source.safetensors"
        create = CreateConfig(name="tiny", source=str(source))
        job, _ = self.run(Workspace(template), "create", create)
        assert isinstance(job.wait(), JobFinished)
        self.template = template

    def _call(self, call: str, root: Path) -> None:
        child = Child(self.nursery, call=call, argument=str(root), log=str(self.folder / "log"))
        assert child.wait() == 0, (self.folder / "log").read_text()

    def workspace(self) -> Workspace:
        """Return a fresh copy of the untrained workspace."""
        root = self.folder / f"workspace-{next(self._numbers)}"
        shutil.copytree(self.template, root, ignore=shutil.ignore_patterns("pictures", ".jobs"))
        return Workspace(root)

    def config(self, variant: str, seed: int) -> TrainConfig:
        """Return the settings of a variant; its pictures lie outside the workspaces."""
        concept = {**CONCEPT, "instance_folder": str(self.folder / "template" / "pictures")}
        settings = {**TRAINING, "concepts": [concept], "seed": seed}
        return from_dict(TrainConfig, merged(settings, VARIANTS[variant]))

    def run(
        self, workspace: Workspace, kind: str, config: Any, blow: Blow | None = None
    ) -> tuple[launcher.Job, Path | None]:
        """Start a job in a forked worker, as the launcher starts it in one of its own."""
        self.tally.runs += 1
        job = launcher.reserve(workspace, kind, config)
        note = None
        if blow and blow.get("power"):
            note = self.folder / f"note-{next(self._numbers)}"
            note.mkdir()
        child = Child(
            self.nursery,
            call="tests.crash.nursery:work",
            argument=str(job.folder),
            log=str(log_path(job.folder)),
            blow=blow,
            note=str(note or ""),
        )
        before = launcher._start_worker
        launcher._start_worker = lambda *_: child  # type: ignore[assignment,return-value]
        try:
            return launcher.begin(workspace, job), note
        finally:
            launcher._start_worker = before

    def base(self, variant: str, seed: int) -> Base:
        """Train to the end without a kill."""
        workspace, config = self.workspace(), self.config(variant, seed)
        began = time.monotonic()
        job, _ = self.run(workspace, "train", config)
        final = job.wait()
        assert isinstance(final, JobFinished), final
        seconds = time.monotonic() - began
        said = log_path(job.folder).read_text().rpartition("changes of the disk: ")[2]
        ending = ending_of(workspace, [job.run_id])
        return Base(workspace.root, config, ending, int(said), seconds)


def ending_of(workspace: Workspace, run_ids: list[str]) -> Ending:
    """Return what a chain of runs left."""
    model = workspace.model("tiny")
    state = latest_state(model)
    assert state is not None
    files = {path.name: tensors_of(path) for path in state.glob("*.safetensors")}
    progress = json.loads((state / "progress.json").read_text())
    counters = {name: progress[name] for name in ("step", "epoch", "position", "seed")}
    checkpoints: dict[int, list[Any]] = {}
    steps: dict[int, Any] = {}
    for run_id in run_ids:
        for event in events_of(workspace, run_id):
            if isinstance(event, CheckpointSaved | LoraSaved):
                checkpoints.setdefault(event.step, []).append(tensors_of(Path(event.path)))
            elif isinstance(event, StepDone):
                steps[event.step] = numbers_of(event)
    pictures = {
        str(path.relative_to(model.path)): sha256(path)
        for path in model.class_images_dir.rglob("*")
        if path.suffix in (".png", ".txt")
    }
    return Ending({**files, "counters": counters}, pictures, checkpoints, steps)


def numbers_of(event: StepDone) -> tuple[Any, ...]:
    """Return what of a step does not depend on the machine's speed."""
    rates = tuple(sorted(event.learning_rates.items()))
    return (
        *(event.epoch, event.total_steps, event.loss, event.loss_instance, event.loss_class),
        *(event.grad_norm, rates),
    )


def differences(ended: Ending, wanted: Ending, events_cut: bool) -> list[str]:
    """Return where a chain ended otherwise than the training that was never killed."""
    found = [
        f"the state's {name}"
        for name in wanted.state.keys() | ended.state.keys()
        if ended.state.get(name) != wanted.state.get(name)
    ]
    if ended.pictures != wanted.pictures:
        found.append("the class images")
    for step, (tensors,) in wanted.checkpoints.items():
        made = ended.checkpoints.get(step, [])
        if any(each != tensors for each in made) or not (made or events_cut):
            found.append(f"the checkpoint of step {step}")
    for step, numbers in wanted.steps.items():
        known = ended.steps.get(step, numbers if events_cut else None)
        if known != numbers:
            found.append(f"the report of step {step}: {known} instead of {numbers}")
    return found


def blows(base: Base, chance: random.Random) -> Iterator[Blow]:
    """Yield instants to be killed at, of every kind, without end."""
    while True:
        kinds = ["operation", "operation", "half", "power", "power", "step", "optimizer", "time"]
        chance.shuffle(kinds)
        for kind in kinds:
            operation = chance.randint(1, max(2, base.changes // SPACING))
            if kind == "operation":
                yield {"kind": kind, "operation": operation, "after": chance.random() < 0.5}
            elif kind == "half":
                yield {"kind": kind, "operation": operation, "half": True}
            elif kind == "power":
                ways: list[Blow] = [{"after": True}, {"after": False}, {"half": True}]
                yield {"kind": kind, "power": True, "operation": operation, **chance.choice(ways)}
            elif kind == "time":
                yield {"kind": kind, "seconds": chance.uniform(0.05, 0.5) * base.seconds}
            else:
                yield {"kind": kind, kind: chance.randint(1, 6)}


def chain(field: Field, base: Base, chance: random.Random, most: int) -> None:
    """Kill a training at instants drawn from `chance`, go on after each, and compare the end."""
    workspace, tally = field.workspace(), field.tally
    model = workspace.model("tiny")
    inspector = Inspector(workspace, model, KEEP_STATES)
    instants, run_ids, events_cut, killed = blows(base, chance), [], False, 0
    while True:
        blow = next(instants) if killed < most else None
        base.config.resume = latest_state(model) is not None
        job, note = field.run(workspace, "train", base.config, blow)
        run_ids.append(job.run_id)
        code = await_end(job, blow)
        if code == 0:
            break
        assert blow and code == -signal.SIGKILL, log_path(job.folder).read_text()[-2000:]
        killed += 1
        tally.kills[blow["kind"]] = tally.kills.get(blow["kind"], 0) + 1
        tally.inside_saves += was_saving(workspace, job.run_id)
        tally.before_first_state += not base.config.resume
        inspector.promises(job.run_id)
        if note is not None:
            events_cut = True
            tally.taken_by_power += power.fail(note, workspace.root, chance)
            shutil.rmtree(note)
        view = RunReader(job.folder).poll()
        assert view.state == "failed" and view.error == "WorkerDied"
        inspector.look()
        tally.losses += inspector.losses()
        if steps_done(model) == max(base.ending.steps):
            break  # killed on the way out: all is done, and there is nothing to go on with
    inspector.promises(run_ids[-1])
    inspector.look()
    tally.losses += inspector.losses()
    tally.files_read += inspector.checked
    tally.chains += 1
    ended = ending_of(workspace, run_ids)
    tally.differences += differences(ended, base.ending, events_cut)
    if not tally.differences and not tally.losses:
        shutil.rmtree(workspace.root)


def steps_done(model: ModelFolder) -> int:
    """Return how many steps the newest state has behind it."""
    state = latest_state(model)
    return state_progress(state).step if state else 0


def await_end(job: launcher.Job, blow: Blow | None) -> int:
    """Return how the worker ended; a blow by time falls meanwhile."""
    assert job.process is not None
    if blow and "seconds" in blow:
        time.sleep(float(blow["seconds"]))
        if job.process.poll() is None:
            os.killpg(job.process.pid, signal.SIGKILL)
    return job.process.wait()


def was_saving(workspace: Workspace, run_id: str) -> bool:
    """Whether the last that a run told is that it saves something."""
    told = [
        event
        for event in events_of(workspace, run_id)
        if isinstance(event, PhaseStarted | StepDone | StateSaved | CheckpointSaved | LoraSaved)
    ]
    return bool(told) and isinstance(told[-1], PhaseStarted) and "saving" in told[-1].phase


def run(
    folder: Path, kills: int, seed: int, variants: Sequence[str] = tuple(VARIANTS)
) -> tuple[Tally, float]:
    """Kill workers until there are that many kills, and return what came of it with the seconds."""
    began, chance = time.monotonic(), random.Random(seed)
    nursery = Nursery()
    try:
        assert nursery.ask(do="threads") == 1, "a process with threads cannot be forked safely"
        field = Field(folder, nursery)
        bases = [field.base(variant, seed) for variant in variants]
        while field.tally.killed < kills:
            for base in bases:
                left = kills - field.tally.killed
                if left > 0:
                    chain(field, base, chance, min(MOST_BLOWS, left))
        return field.tally, time.monotonic() - began
    finally:
        nursery.close()


def supported() -> bool:
    """Whether processes can be forked here and say when they began."""
    return sys.platform == "linux"
