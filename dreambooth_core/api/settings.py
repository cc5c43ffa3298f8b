"""The training settings that are kept for a model, as the tabs show them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.serialize import from_dict, to_dict
from dreambooth_core.config.settings_store import change_settings, keep_settings, kept_settings
from dreambooth_core.config.validate import check_fields
from dreambooth_core.errors import ConfigError
from dreambooth_core.job.workspace import Workspace


def read_settings(workspace: Workspace, model: str) -> TrainConfig:
    """Return a model's settings, or the defaults if none were kept; the model must exist."""
    folder = workspace.model(model)
    folder.require()
    return kept_settings(folder) or TrainConfig(model=model)


def write_settings(workspace: Workspace, config: TrainConfig) -> None:
    """Keep settings for their model, which must exist; raises ConfigError for unusable values."""
    folder = workspace.model(config.model)
    folder.require()
    keep_settings(folder, _checked(config))


def edit_settings(
    workspace: Workspace, model: str, edit: Callable[[dict[str, Any]], dict[str, Any]]
) -> TrainConfig:
    """Keep what `edit` makes of a model's settings, and return it; nobody else changes them then.

    Raises ConfigError for unusable values.
    """

    def change(kept: TrainConfig | None) -> TrainConfig:
        return _checked(settings_from(model, edit(to_dict(kept or TrainConfig(model=model)))))

    return change_settings(workspace.model(model), change)


def _checked(config: TrainConfig) -> TrainConfig:
    problems = check_fields(config)
    for index, concept in enumerate(config.concepts):
        problems += check_fields(concept, f"concepts.{index}.")
    if problems:
        raise ConfigError(problems)
    return config


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return settings with those of `new` put over them, group by group; lists are replaced."""
    result = dict(old)
    for name, value in new.items():
        both = isinstance(value, dict) and isinstance(old.get(name), dict)
        result[name] = merged(old[name], value) if both else value
    return result


def settings_from(model: str, data: dict[str, Any]) -> TrainConfig:
    """Return the settings of a model from a JSON object, in which the model need not be named."""
    return from_dict(TrainConfig, {**data, "model": model})
