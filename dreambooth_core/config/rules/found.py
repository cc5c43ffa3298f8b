"""What must be there already: models, their states and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from dreambooth_core.checkpoint.header import read_header
from dreambooth_core.errors import InputError, Problem
from dreambooth_core.job.workspace import Workspace


def check_model(name: str, workspace: Workspace | None) -> list[Problem]:
    """Return that there is no such model, if so; without a workspace nothing is looked up."""
    if workspace is None:
        return []
    try:
        workspace.model(name).require()
    except InputError as error:
        return [Problem("model", error.message, error.remedy)]
    return []


def check_checkpoints(field: str, names: Iterable[str], workspace: Workspace) -> list[Problem]:
    """Return the names of which there is no readable checkpoint."""
    return check_files(field, names, workspace.find_checkpoint)


def check_files(field: str, names: Iterable[str], find: Callable[[str], Path]) -> list[Problem]:
    """Return the names of which `find` finds no file, or none that can be read."""
    problems = []
    for name in names:
        try:
            read_header(find(name))
        except InputError as error:
            problems.append(Problem(field, error.message, error.remedy))
    return problems


def saved_states(workspace: Workspace, model: str) -> list[Path]:
    """Return the folders of a model's training states, oldest run and step first."""
    found = workspace.model(model).states_dir.glob("*/step_*/progress.json")
    return sorted(path.parent for path in found if path.parent.suffix != ".tmp")
