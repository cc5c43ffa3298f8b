"""When memory runs out: what is rescued, and which settings would fit.

An error of memory is told by `job.memory_errors`; nothing here starts anything again by itself.
"""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

from dreambooth_core.config.memory_savers import Changes, change, in_words, savers_of
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.errors import DreamboothError, FullDiskError
from dreambooth_core.job.commands import CommandReader
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import WARNING, Notice, PhaseMemory
from dreambooth_core.job.full_disk import is_full
from dreambooth_core.job.kept import TRAINING, Kept
from dreambooth_core.job.memory_errors import (
    GPU,
    Shortage,
    mark,
    place_of,
    shortage_of,
    size_words,
)
from dreambooth_core.job.runs import Run
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.stages.plan import ConceptPictures, foresee, look_at_concepts
from dreambooth_core.stages.preflight.machine import Machine, find_machine
from dreambooth_core.stages.preflight.memory import Estimate
from dreambooth_core.stages.preflight.memory_checks import USABLE_SHARE, remedies

if TYPE_CHECKING:
    from dreambooth_core.stages.training_setup import Trainer

SAVING_FILE = "while saving a checkpoint"
SAVING_STATE = "while saving a training state"

CLOSE_OTHERS = "Close other programs that take memory."
REMEDIES = {
    "sample": "Lower the batch size, or the width and height.",
    "compare": "Lower the resolution of the model's training, or compare on the cpu.",
}
"""What a job needs less memory with, by its kind."""

SMALLER = 0.9
"""What ran out although it seemed to fit has to become at least so much smaller."""

WORTH = 0.99
"""A change counts if it leaves at most so much of what was needed before, or what is there."""


@dataclass(frozen=True)
class Fitting:
    """Settings that need less: `needed` bytes by the estimate, of `there`; whether that fits."""

    changes: Changes
    needed: int
    there: int

    @property
    def fits(self) -> bool:
        """Whether there is as much as is needed."""
        return self.needed <= self.there


@contextmanager
def finished_steps_kept(trainer: Trainer, write_state: Callable[[], Any]) -> Iterator[None]:
    """Where memory or room on the disk runs out in the block, write the last finished step's state.

    That is right as long as no weight was being changed: gradients are dropped, and the weights
    are those that the last step left. Else nothing is written.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError, FullDiskError) as error:
        short = shortage_of(error) is not None
        if not (short or is_full(error)) or place_of(error).changes_weights:
            raise
        if short:
            mark(error, TRAINING)  # as events go on to tell of the state
            free_memory(error)
            trainer.optimizer.zero_grad(set_to_none=True)
        with _as_far_as_possible():
            write_state()
        raise


@contextmanager
def left_out_if_short(trainer: Trainer, phase: str) -> Iterator[None]:
    """Go on where memory runs out in the block, and say so; not if weights were being changed."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        shortage = shortage_of(error)
        if shortage is None or place_of(error).changes_weights:
            raise
        free_memory(error)
        step, on_gpu = trainer.progress.step, shortage.device == GPU
        help_ = " ".join(remedies(trainer.config, phase, on_gpu=on_gpu))
        words = f"{phase.capitalize()} of step {step} are left out, as memory ran out"
        trainer.context.emit(Notice(WARNING, f"{words} ({str(shortage) or error}). {help_}"))


@contextmanager
def _as_far_as_possible() -> Iterator[None]:
    """Pass over a second shortage, of memory or of the disk: the first one is told."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError, FullDiskError) as error:
        if shortage_of(error) is None and not is_full(error):
            raise


def free_memory(error: BaseException) -> None:
    """Let go of what the failed work held: the variables of its functions, and torch's reserve."""
    traceback.clear_frames(error.__traceback__)
    release_memory()


def release_memory() -> None:
    """Give back what nothing holds any more, on the GPU too."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def remedy_of(shortage: Shortage, run: Run, kept: Kept, doing: str) -> tuple[str, Changes]:
    """Return what to do so that a job fits, in words and as changes of a training's settings.

    `doing` is what it was doing if events do not tell, such as SAVING_STATE.
    """
    if not isinstance(run.config, TrainConfig):
        return REMEDIES.get(run.kind, CLOSE_OTHERS), {}
    phase = doing or kept.phase
    if phase in (SAVING_FILE, SAVING_STATE) or phase.startswith("saving"):
        phase = "saving"
    on_gpu = shortage.device == GPU
    try:
        fitting = what_fits(shortage, run.config, run.workspace, phase)
    except (DreamboothError, OSError):  # what is looked at may be what is wrong
        fitting = None
    if fitting is None or not fitting.changes:
        return " ".join(remedies(run.config, phase, on_gpu=on_gpu)), {}
    amounts = f"about {size_words(fitting.needed)} of {size_words(fitting.there)}"
    words = in_words(fitting.changes)
    if fitting.fits:
        return f"By the estimate this fits ({amounts}): {words}.", fitting.changes
    return f"This needs least, but may still be too much ({amounts}): {words}.", fitting.changes


def what_fits(
    shortage: Shortage, config: TrainConfig, workspace: Workspace, phase: str
) -> Fitting | None:
    """Return the fewest changes, in order, by which a part of a training fits into the memory.

    None where that part is not one that is estimated.
    """
    machine = find_machine(config.precision.device)
    nowhere = workspace.jobs_dir / "nobody"
    quiet = RunContext(workspace, "", nowhere, lambda event: None, CommandReader(nowhere))
    concepts = list(look_at_concepts(config, quiet))

    def needed(changed: TrainConfig) -> int:
        looked = concepts if _same_sizes(config, changed) else [*look_at_concepts(changed, quiet)]
        return _needed(shortage, _memory(changed, quiet, looked, machine), phase)

    first = needed(config)
    known = _there(shortage, machine)
    there = known if 0 < known < first else round(SMALLER * first)
    return _shrink(config, needed, first, there, phase, on_gpu=machine.is_gpu) if first else None


def _shrink(
    config: TrainConfig,
    needed_by: Callable[[TrainConfig], int],
    needed: int,
    there: int,
    phase: str,
    *,
    on_gpu: bool,
) -> Fitting:
    """Make one change after the other that is of use, until what is needed is there."""
    changes: Changes = {}
    for saver in savers_of(phase):
        while needed > there and (step := change(saver, config, on_gpu=on_gpu)):
            after = needed_by(step[1])
            if after > max(there, WORTH * needed):
                break
            changes, config, needed = changes | step[0], step[1], after
    return Fitting(changes, needed, there)


def _memory(
    config: TrainConfig,
    context: RunContext,
    concepts: Sequence[ConceptPictures],
    machine: Machine,
) -> list[PhaseMemory]:
    return Estimate(foresee(config, context, concepts), machine).phases()


def _needed(shortage: Shortage, memory: Sequence[PhaseMemory], phase: str) -> int:
    """Return what a part takes; the largest of all where the part is not estimated by itself."""
    named = [part for part in memory if part.phase == phase] or memory
    sizes = [part.gpu_bytes if shortage.device == GPU else part.ram_bytes for part in named]
    return max(sizes, default=0)


def _there(shortage: Shortage, machine: Machine) -> int:
    """Return how much this process could have; 0 if that is not known."""
    if shortage.there:
        return shortage.there
    if shortage.device == GPU:
        return round(USABLE_SHARE * machine.vram_bytes)
    return machine.ram_bytes + int(psutil.Process().memory_info().rss)


def _same_sizes(first: TrainConfig, second: TrainConfig) -> bool:
    return first.images.resolution == second.images.resolution
