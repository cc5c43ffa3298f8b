"""A model made of another trainer's folder begins with the settings that are kept there."""

from __future__ import annotations

from pathlib import Path

from dreambooth_core.config.imports import apply_import
from dreambooth_core.config.imports.d8ahazard_folder import read_model_folder, settings_file
from dreambooth_core.config.imports.report import AS_LABELLED, summary
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.settings_store import keep_settings
from dreambooth_core.errors import UsageError
from dreambooth_core.job.checkpoint_files import PEER_WEIGHTS
from dreambooth_core.job.workspace import ModelFolder


def begin_with_settings_of(source: Path, folder: ModelFolder) -> str:
    """Keep the settings that lie beside a source for the model made of it; return what was done.

    They do what their labels say. Where they cannot be read the model is none the worse, and the
    words say why.
    """
    if source.name != PEER_WEIGHTS or settings_file(source.parent) is None:
        return ""
    try:
        found = read_model_folder(source.parent, AS_LABELLED)
        keep_settings(folder, apply_import(found, TrainConfig(model=folder.name)))
    except UsageError as error:
        return str(error)
    return summary(found)
