"""A new model of ours from another trainer's."""

from __future__ import annotations

import itertools

from dreambooth_core.config.imports.report import FoundModel, Import
from dreambooth_core.config.schema import CreateConfig
from dreambooth_core.errors import InputError
from dreambooth_core.job.workspace import Workspace, check_name


def creation(
    found: Import, workspace: Workspace, *, name: str = "", source: str = "", ema: bool = False
) -> CreateConfig:
    """Return how to make a model of what was found, under a free name if none is given.

    `source` is the label of a snapshot; "" takes the newest weights. Raises InputError if there is
    no model to make one of, or no such snapshot.
    """
    model = found.model
    if model is None:
        raise InputError(
            f"{found.name} holds no weights that a model could be made from.",
            remedy="Give the folder of a model, or make one from a checkpoint with create.",
        )
    labels = {snapshot.label: snapshot.source for snapshot in model.sources}
    wanted = source or model.sources[0].label
    if wanted not in labels:
        raise InputError(
            f"{found.name} has no {wanted!r}.", remedy=f"There are: {', '.join(labels)}."
        )
    name = name.strip() or free_name(workspace, model)
    check_name(name)
    return CreateConfig(name=name, source=labels[wanted], extract_ema=ema)


def free_name(workspace: Workspace, model: FoundModel) -> str:
    """Return the model's name, or that with a number if it is taken; its own folder stays."""
    numbered = (f"{model.name}-{number}" for number in itertools.count(2))
    names = itertools.chain([model.name], numbered)
    return next(name for name in names if not workspace.model(name).path.exists())
