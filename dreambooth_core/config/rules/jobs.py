"""Rules of the jobs besides training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dreambooth_core.checkpoint.header import read_header
from dreambooth_core.config.rules.found import (
    check_checkpoints,
    check_files,
    check_model,
    saved_states,
)
from dreambooth_core.config.schema import CompareConfig, CreateConfig, SampleConfig, SaveConfig
from dreambooth_core.errors import InputError, Problem
from dreambooth_core.job.checkpoint_files import find_vae, is_diffusers_model
from dreambooth_core.job.workspace import Workspace

SMALLEST_PICTURE = 32


def check_create(config: CreateConfig, workspace: Workspace | None) -> list[Problem]:
    """Return what stands in the way of making a model: its name is taken, its source unusable."""
    if workspace is None:
        return []
    problems = []
    if workspace.model(config.name).exists():
        problems.append(
            Problem(
                "name",
                f"there is a model {config.name!r} already.",
                f"Choose another name, or delete {workspace.model(config.name).path}.",
            )
        )
    problems += _check_vae(config.vae, workspace)
    if is_diffusers_model(Path(config.source).expanduser()):
        return problems
    return problems + check_checkpoints("source", [config.source], workspace)


def _check_vae(name: str, workspace: Workspace) -> list[Problem]:
    try:
        if name.strip():
            read_header(find_vae(name, workspace))
    except InputError as error:
        return [Problem("vae", error.message, error.remedy)]
    return []


def check_sample(config: SampleConfig, workspace: Workspace | None) -> list[Problem]:
    """Return what stands in the way of making pictures."""
    problems = check_model(config.model, workspace)
    if not any(prompt.strip() for prompt in config.prompts):
        problems.append(Problem("prompts", "are empty.", "Say what to draw."))
    for name, size in (("width", config.width), ("height", config.height)):
        if 0 < size < SMALLEST_PICTURE:
            problems.append(
                Problem(name, f"is {size} pixels.", f"Use 0 or at least {SMALLEST_PICTURE}.")
            )
    if workspace and config.checkpoint:
        problems += check_checkpoints("checkpoint", [config.checkpoint], workspace)
    return problems


def check_save(config: SaveConfig, workspace: Workspace | None) -> list[Problem]:
    """Return what stands in the way of writing a checkpoint: there must be a state to write."""
    problems = check_model(config.model, workspace)
    if problems or workspace is None:
        return problems
    states = saved_states(workspace, config.model)
    if not states:
        return [Problem("model", f"{config.model!r} has no training state yet.", "Train it first.")]
    return _check_state(config, states)


def _check_state(config: SaveConfig, states: Sequence[Path]) -> list[Problem]:
    """Return whether the run and step that were named are among the states, newest run last."""
    runs = sorted({state.parent.name for state in states})
    if config.run and config.run not in runs:
        return [
            Problem("run", f"there is no run {config.run!r}.", f"There are: {', '.join(runs)}.")
        ]
    run = config.run or runs[-1]
    steps = sorted(_step_of(state) for state in states if state.parent.name == run)
    if config.step and config.step not in steps:
        kept = ", ".join(map(str, steps))
        return [Problem("step", f"{run} has no state of step {config.step}.", f"Kept: {kept}.")]
    return []


def check_compare(config: CompareConfig, workspace: Workspace | None) -> list[Problem]:
    """Return what stands in the way of a comparison."""
    problems = check_model(config.model, workspace)
    if workspace:
        problems += check_files("checkpoints", config.checkpoints, workspace.find_saved)
    return problems


def _step_of(state: Path) -> int:
    return int(state.name.rpartition("_")[2])
