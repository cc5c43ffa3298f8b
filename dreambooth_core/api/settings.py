"""The training settings that are kept for a model, as the tabs show them."""

from __future__ import annotations

from typing import Any

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.serialize import from_dict
from dreambooth_core.config.settings_store import keep_settings, kept_settings
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
    problems = check_fields(config)
    for index, concept in enumerate(config.concepts):
        problems += check_fields(concept, f"concepts.{index}.")
    if problems:
        raise ConfigError(problems)
    keep_settings(folder, config)


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
