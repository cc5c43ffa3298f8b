"""Settings, concepts and models of other trainers, taken over with a report of every line.

`read_import` says what a file, a folder or a text holds; `apply_import` puts it into settings.
Nothing that is named in a file is opened: folders are only asked whether they are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth_core.config.imports import d8ahazard, kohya
from dreambooth_core.config.imports.d8ahazard_folder import is_model_folder, read_model_folder
from dreambooth_core.config.imports.kohya_dataset import is_dataset_folder
from dreambooth_core.config.imports.paths_there import is_folder
from dreambooth_core.config.imports.reading import MAX_BYTES, decoded, parse, read_text
from dreambooth_core.config.imports.report import AS_LABELLED, BEHAVIOURS, Import
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.serialize import from_dict, put_value, to_dict
from dreambooth_core.errors import InputError

FEWEST_KNOWN = 3
LEAST_SHARE = 0.5
"""A file with fewer settings that are known, or a smaller share of such, is something else."""
WHAT_GOES = (
    "There can be imported: db_config.json, concepts_list.json or a model's folder of"
    " sd_dreambooth_extension; and .json, .toml or the folders of pictures of kohya's trainer."
)


def read_import(source: str, behaviour: str = AS_LABELLED) -> Import:
    """Return what a file, a folder or a text holds; raises InputError if that is not known."""
    check_behaviour(behaviour)
    source = source.strip()
    if not source:
        raise InputError("There is nothing to import.", remedy=WHAT_GOES)
    if is_text(source):
        return read_settings_text(source, "text", behaviour)
    path = Path(source)
    try:
        path = path.expanduser()
    except RuntimeError:
        pass  # a name of nobody's home: then it is a name
    if is_folder(path):
        return _read_folder(path.absolute(), behaviour)
    return read_settings_text(read_text(path), path.name, behaviour, path.absolute().parent)


def check_behaviour(behaviour: str) -> None:
    """Raise InputError unless it is known what settings are to act like."""
    if behaviour not in BEHAVIOURS:
        known = " or ".join(map(repr, BEHAVIOURS))
        raise InputError(f"The behaviour {behaviour!r} is not known.", remedy=f"Use {known}.")


def is_text(source: str) -> bool:
    """Return whether settings themselves were given, and not where they are."""
    return source.lstrip()[:1] in ("{", "[") or "\n" in source.strip()


def read_settings_text(
    text: str, name: str, behaviour: str = AS_LABELLED, base: Path | None = None
) -> Import:
    """Return what the text of a file says; `base` is the folder that the file lies in."""
    check_behaviour(behaviour)
    decoded(text[: MAX_BYTES + 1].encode("utf-8", "replace"), name)
    value = parse(text, name)
    if isinstance(value, list):
        return d8ahazard.read_concepts_list(value, name, behaviour, base)
    if not isinstance(value, dict):
        raise InputError(f"{name} holds no settings.", remedy=WHAT_GOES)
    return _read_object(value, name, behaviour, base)


def apply_import(found: Import, config: TrainConfig) -> TrainConfig:
    """Return the settings with what was found put in; its concepts take the place of theirs."""
    data = to_dict(config)
    for path, value in found.settings.items():
        put_value(data, TrainConfig, path, value)
    if found.concepts:
        data["concepts"] = found.concepts
    return from_dict(TrainConfig, data)


def _read_object(values: Mapping[str, Any], name: str, behaviour: str, base: Path | None) -> Import:
    if "datasets" in values:
        return kohya.read_settings(values, name, behaviour, base)
    theirs, kohyas = d8ahazard.is_settings(values), kohya.is_settings(values)
    known, listed = max(theirs, kohyas), isinstance(values.get("concepts_list"), list)
    if not listed and (known < FEWEST_KNOWN or known < LEAST_SHARE * len(values)):
        raise InputError(f"{name} holds no settings that are known here.", remedy=WHAT_GOES)
    read = kohya.read_settings if kohyas > theirs else d8ahazard.read_settings
    return read(values, name, behaviour, base)


def _read_folder(folder: Path, behaviour: str) -> Import:
    if is_model_folder(folder):
        return read_model_folder(folder, behaviour)
    if is_dataset_folder(folder):
        return kohya.read_folder(folder)
    raise InputError(f"The folder {folder} holds nothing that can be imported.", remedy=WHAT_GOES)
