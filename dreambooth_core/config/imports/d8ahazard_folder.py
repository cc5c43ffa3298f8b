"""The abandoned extension's folder of a model: what a new model can be made from.

Nothing in it is ever changed: the new model gets a folder of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth_core.config.imports.d8ahazard import read_settings
from dreambooth_core.config.imports.mapping import as_number
from dreambooth_core.config.imports.paths_there import last_part
from dreambooth_core.config.imports.reading import parse_json, read_text
from dreambooth_core.config.imports.report import (
    ABOUT,
    LEFT,
    TRANSLATED,
    YOURS,
    FoundModel,
    Import,
    Snapshot,
)
from dreambooth_core.errors import InputError
from dreambooth_core.job.checkpoint_files import (
    EMA_FOLDER,
    PEER_SETTINGS,
    PEER_SNAPSHOTS,
    PEER_WEIGHTS,
    is_pipeline_folder,
    is_weights_snapshot,
)

FOLDER = "model folder of sd_dreambooth_extension"
BACKUPS = "backups"
CLASSIFIERS = "classifiers_"
STAYS = (
    ("samples", "Its pictures stay where they are."),
    ("logging", "Its graphs stay where they are."),
    ("cache", "Latents are made anew: there they did not follow changes of the pictures."),
    ("token_counts.json", "Captions are counted anew."),
    ("bucket_counts.json", "Buckets are made anew."),
)
_NUMBER = re.compile(r"(\d+)$")


def is_model_folder(folder: Path) -> bool:
    """Return whether a folder is one of the abandoned extension's models."""
    return (folder / PEER_SETTINGS).is_file() or is_pipeline_folder(folder / PEER_WEIGHTS)


def read_model_folder(folder: Path, behaviour: str) -> Import:
    """Return the settings of a model and what a new one can be made from; nothing is changed."""
    path = settings_file(folder)
    values: Mapping[str, Any] = {}
    found = Import(FOLDER, folder.name)
    if path is None:
        found.add(PEER_SETTINGS, "", YOURS, "There are no settings in it: set them in the tabs.")
    else:
        values = _settings(path)
        found = read_settings(values, folder.name, behaviour, folder)
        found.origin = FOLDER
    if path is not None and path.name != PEER_SETTINGS:
        found.add(PEER_SETTINGS, "", TRANSLATED, f"It is missing; {path.name} was read.")
    _use_own_class_images(folder, found)
    found.model = _model(folder, values, found)
    for name, words in STAYS:
        if (folder / name).exists():
            found.add(name, "", LEFT, words)
    return found


def settings_file(folder: Path) -> Path | None:
    """Return a model's settings, or else its newest backup of them; None if there are none."""
    path = folder / PEER_SETTINGS
    if path.is_file():
        return path
    backups = sorted((folder / BACKUPS).glob("db_config_*.json"), key=_number)
    return backups[-1] if backups else None


def _settings(path: Path) -> Mapping[str, Any]:
    value = parse_json(read_text(path), path.name)
    if isinstance(value, dict):
        return value
    raise InputError(f"{path} holds no settings.", remedy="Check the file.")


def _use_own_class_images(folder: Path, found: Import) -> None:
    """Let concepts use the class images that were made for them in this folder."""
    for index, concept in enumerate(found.concepts):
        made = folder / f"{CLASSIFIERS}{index}"
        named = str(concept.get("class_folder", ""))
        if not made.is_dir() or not concept.get("class_images_per_instance_image"):
            continue
        if named and last_part(named) != made.name:
            continue
        concept["class_folder"] = str(made.absolute())
        words = "Its class images are used as they are, and none is written there."
        path = f"concepts.{index}.class_folder"
        found.add(f"{made.name}/", "", TRANSLATED, words, path, concept["class_folder"])


def _model(folder: Path, values: Mapping[str, Any], found: Import) -> FoundModel | None:
    weights = folder / PEER_WEIGHTS
    if not is_pipeline_folder(weights):
        words = "It holds no complete model: make one from a checkpoint on the Create tab."
        found.add(f"{PEER_WEIGHTS}/", "", YOURS, words)
        return None
    sources = [Snapshot("The newest weights", str(weights.absolute()))]
    found.add(f"{PEER_WEIGHTS}/", "", TRANSLATED, "A new model can be made from its weights.")
    for path in snapshots(folder):
        sources.append(Snapshot(f"Snapshot {path.name}", str(path.absolute())))
        words = (
            "A new model can be made from its weights. The optimizer's memory is not taken over."
        )
        found.add(f"{PEER_SNAPSHOTS}/{path.name}", "", TRANSLATED, words)
    has_ema = (weights / EMA_FOLDER).is_dir()
    if has_ema:
        words = 'They are taken if "Extract EMA weights" is on as the model is made.'
        found.add(f"{PEER_WEIGHTS}/{EMA_FOLDER}/", "", ABOUT, words)
    seen, epochs = (int(as_number(values.get(name)) or 0) for name in ("revision", "epoch"))
    name = folder.name
    return FoundModel(name, str(folder.absolute()), tuple(sources), has_ema, seen, epochs)


def snapshots(folder: Path) -> list[Path]:
    """Return the snapshots of a model that hold weights, the newest first."""
    found = [path for path in (folder / PEER_SNAPSHOTS).glob("*") if is_weights_snapshot(path)]
    return sorted(found, key=_number, reverse=True)


def _number(path: Path) -> tuple[int, str]:
    match = _NUMBER.search(path.stem)
    return (int(match[1]) if match else -1), path.name
