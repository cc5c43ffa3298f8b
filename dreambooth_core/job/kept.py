"""How far a run came, and what of it is kept, told from its events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreambooth_core.config.schema import JobConfig, TrainConfig
from dreambooth_core.job import disk
from dreambooth_core.job.events import (
    CheckpointSaved,
    Event,
    LoraSaved,
    PhaseProgress,
    PhaseStarted,
    Resumed,
    SampleSaved,
    StateSaved,
    StepDone,
    event_name,
    from_json,
)
from dreambooth_core.job.json_lines import objects

TRAINING, CLASS_IMAGES, LATENTS = "training", "class images", "caching latents"

_STEP = f'"event": "{event_name(StepDone)}"'.encode()


@dataclass
class Kept:
    """A run so far: where it is, and what it has written that lasts."""

    phase: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    step: int = 0
    total_steps: int = 0
    class_images: int = 0
    latents: int = 0
    resumed: str = ""
    resumed_step: int = 0
    state: str = ""
    state_step: int = 0
    files: dict[str, int] = field(default_factory=dict)
    """The checkpoints or LoRA files, and the step that each is of."""

    def take(self, event: Event) -> None:
        """Take in what happened next."""
        fold = _FOLDS.get(type(event))
        if fold is not None:
            fold(self, event)

    def where(self, doing: str = "") -> str:
        """Return where the run is in words: "in training step 13 of 200", "while caching latents".

        `doing` says more of it than events do, such as "while saving a checkpoint".
        """
        if (doing or self.phase) == TRAINING:
            of_total = f" of {self.total_steps}" if self.total_steps else ""
            return f"in training step {self.step + 1}{of_total}"
        after = f" after step {self.step} of {self.total_steps}" if self.step else ""
        if doing:
            return f"{doing}{after}"
        counted = f" ({self.done} of {self.total} {self.unit})" if self.total else ""
        link = "while" if self.phase.partition(" ")[0].endswith("ing") else "in"
        return f"{link} {self.phase}{counted}{after}" if self.phase else "before the work began"

    def lines(self, config: JobConfig | None = None) -> list[str]:
        """Return what is kept, one sentence each; `config` says whether latents are."""
        lines = []
        if self.class_images:
            lines.append(f"{self.class_images} class images of this run are kept.")
        cached = isinstance(config, TrainConfig) and config.images.cache_latents == "disk"
        if self.latents and cached:
            lines.append(f"The latents of {self.latents} pictures are kept.")
        if self.state:
            lines.append(
                f"The newest training state is of step {self.state_step}: {self.state}. Resume"
                " goes on from it."
            )
        elif self.resumed:
            lines.append(
                f"The state that the run went on from, of step {self.resumed_step} of the run"
                f" {self.resumed}, is the newest. Resume goes on from it."
            )
        if self.files:
            path, step = list(self.files.items())[-1]
            lines.append(f"The newest checkpoint or LoRA is of step {step}: {path}.")
        return lines


def read_kept(path: Path) -> Kept:
    """Return how far a run came by its file of events; of its steps only the last one is read."""
    kept = Kept()
    try:
        lines = disk.read(path).splitlines()
    except OSError:
        return kept
    steps = [number for number, line in enumerate(lines) if _STEP in line[:120]]
    skipped = set(steps[:-1])
    for values in objects(line for number, line in enumerate(lines) if number not in skipped):
        kept.take(from_json(values))
    return kept


def _begin(kept: Kept, event: PhaseStarted) -> None:
    kept.phase, kept.total, kept.unit, kept.done = event.phase, event.total, event.unit, 0
    if event.phase == TRAINING:
        kept.total_steps = event.total


def _move_on(kept: Kept, event: PhaseProgress) -> None:
    kept.phase, kept.done, kept.total = event.phase, event.done, event.total or kept.total
    if event.phase == LATENTS:
        kept.latents = event.done


def _resume(kept: Kept, event: Resumed) -> None:
    kept.resumed, kept.resumed_step = event.run_id, event.step


def _step(kept: Kept, event: StepDone) -> None:
    kept.phase, kept.total, kept.done = TRAINING, event.total_steps, event.step
    kept.step, kept.total_steps = event.step, event.total_steps


def _sample(kept: Kept, event: SampleSaved) -> None:
    kept.class_images += kept.phase == CLASS_IMAGES


def _state(kept: Kept, event: StateSaved) -> None:
    kept.state, kept.state_step = event.path, event.step


def _file(kept: Kept, event: CheckpointSaved | LoraSaved) -> None:
    kept.files.pop(event.path, None)
    kept.files[event.path] = event.step


_FOLDS: dict[type[Event], Callable[[Kept, Any], None]] = {
    PhaseStarted: _begin,
    PhaseProgress: _move_on,
    Resumed: _resume,
    StepDone: _step,
    SampleSaved: _sample,
    StateSaved: _state,
    CheckpointSaved: _file,
    LoraSaved: _file,
}
