"""What one session of a training keeps while trainers are dropped and begun anew."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.errors import CheckpointError
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.stages.retreats import Retreats
from dreambooth_core.stages.saved_states import Tell
from dreambooth_core.stages.training_plan import TrainingPlan
from dreambooth_core.stages.training_state import TrainingState, load_newest, load_state


@dataclass
class Session:
    """A run from its first step to its last, however often it goes back in between.

    `states` and `checkpoints` are what it has written, by step; `left_behind` are checkpoints of
    steps that were then made anew. `told` has a sentence for each time that it went back, and
    `step` is where it went back to last, and `next_state` what the next trainer begins with.
    """

    retreats: Retreats = field(default_factory=Retreats)
    states: dict[int, Path] = field(default_factory=dict)
    checkpoints: dict[int, Path] = field(default_factory=dict)
    left_behind: list[Path] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    began: float = 0.0
    plan: TrainingPlan | None = None
    step: int = 0
    next_state: TrainingState | None = None

    @property
    def went_back(self) -> bool:
        """Whether the trainer of now is not the first."""
        return bool(self.told)

    @property
    def first_step(self) -> int:
        """How many steps were done before the session."""
        return self.plan.start.step if self.plan else 0

    def last_good(
        self, config: TrainConfig, model: ModelFolder, tell: Tell
    ) -> tuple[Path, TrainingState] | None:
        """Load the session's newest intact state, or what it began from; None for nothing.

        The model is locked, so what it began from is still the newest that others have written.
        `tell` gets a sentence about each state that is damaged and passed over.
        """
        for step in sorted(self.states, reverse=True):
            try:
                return self.states[step], load_state(self.states[step])
            except CheckpointError as error:
                tell(f"{error.message} The run goes back to the one before, if there is one.")
        return load_newest(model, tell) if config.resume else None

    def start_clock(self) -> None:
        """Count the time from here, unless it is counted already."""
        self.began = self.began or time.monotonic()

    def take_state(self) -> TrainingState | None:
        """Return the state that was gone back to, once; None for the beginning."""
        state, self.next_state = self.next_state, None
        return state

    def begin(self, plan: TrainingPlan) -> TrainingPlan:
        """Return the plan of a trainer: it ends where that of the session's first one does."""
        if self.plan is None:
            self.plan = plan
        return replace(plan, last_step=self.plan.last_step)

    def go_back(self, state: TrainingState | None, retreats: Retreats, told: str) -> None:
        """Go on from a state, or from the beginning; forget what was written after it."""
        step = state.progress.step if state else 0
        self.retreats, self.step, self.next_state = retreats, step, state
        self.told.append(told)
        self.states = {n: path for n, path in self.states.items() if n <= step}
        self.left_behind += [path for n, path in self.checkpoints.items() if n > step]
        self.checkpoints = {n: path for n, path in self.checkpoints.items() if n <= step}
