"""Presets: named sets of training settings, to load, save and pass on as files.

A preset names the settings that it sets and leaves all others as they are. It never holds what
belongs to one model, one subject or one machine; what it says of class images counts for all
concepts alike.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.config.renames import paths_of_today, settings_format
from dreambooth_core.config.schema import Concept, TrainConfig
from dreambooth_core.config.serialize import from_dict, put_value, read_json_object, to_dict
from dreambooth_core.config.settings_store import Change, difference, plain_specs, value_at
from dreambooth_core.config.validate import check_fields
from dreambooth_core.errors import ConfigError, InputError, Problem, UsageError
from dreambooth_core.job import disk
from dreambooth_core.job.formats import KEY, PRESET
from dreambooth_core.job.lock import alone
from dreambooth_core.job.storage import atomic_write_json
from dreambooth_core.job.workspace import Workspace, check_name

FORMAT = "dreambooth preset"
SETTINGS_KEY = "settings_version"
FOLDER = Path(__file__).parent / "presets"
MAX_FILE_BYTES = 1_000_000
MAX_DESCRIPTION = 500
PERSONAL = (
    "model",
    "concepts",
    "resume",
    "precision.device",
    "saving.name",
    "saving.subfolder",
    "previews.prompts",
    "lora.start_from",
)
"""Settings of one model, one subject or one machine; no preset holds them."""
OF_CONCEPTS = "concepts."
FOR_CONCEPTS = (
    "class_images_per_instance_image",
    "class_images_source",
    "class_cfg_scale",
    "class_steps",
    "class_sampler",
    "instance_prompt",
    "class_prompt",
)
"""Settings that a preset may hold for all concepts, as "concepts.class_steps"."""
DEFAULTS = "Defaults"


@dataclass(frozen=True)
class Preset:
    """Some settings by their dotted paths, under a name."""

    name: str
    description: str
    settings: Mapping[str, Any]
    built_in: bool = False


def built_in_presets() -> list[Preset]:
    """Return the presets that come with the product: the defaults, then by their files' names."""
    files = [read_preset(path, built_in=True) for path in sorted(FOLDER.glob("*.json"))]
    return [_defaults(), *files]


def _defaults() -> Preset:
    words = "Every setting as it is when a model is new."
    return dataclasses.replace(preset_of(TrainConfig(model=""), DEFAULTS, words), built_in=True)


def own_presets(workspace: Workspace) -> tuple[list[Preset], list[UsageError]]:
    """Return the person's presets by name, and what is wrong with those that cannot be read."""
    found, problems = [], []
    for path in sorted(workspace.presets_dir.glob("*.json")):
        try:
            found.append(read_preset(path))
        except UsageError as error:
            problems.append(error)
    return found, problems


def find_preset(workspace: Workspace, name: str) -> Preset:
    """Return a preset by its name; raises InputError naming those there are."""
    own, _ = own_presets(workspace)
    known = {preset.name: preset for preset in [*own, *built_in_presets()]}
    if name not in known:
        raise InputError(
            f"There is no preset {name!r}.", remedy=f"There are: {', '.join(sorted(known))}."
        )
    return known[name]


def apply_preset(preset: Preset, config: TrainConfig) -> TrainConfig:
    """Return the settings with those of the preset put in.

    What it says of concepts goes into each; where there is none yet, into a first one.
    """
    data = to_dict(config)
    for path, value in preset.settings.items():
        name = path.removeprefix(OF_CONCEPTS)
        if name == path:
            put_value(data, TrainConfig, path, value)
            continue
        data["concepts"] = data["concepts"] or [to_dict(Concept(instance_folder=""))]
        for concept in data["concepts"]:
            put_value(concept, Concept, name, value)
    return from_dict(TrainConfig, data)


def differences(preset: Preset, config: TrainConfig) -> list[Change]:
    """Return the settings that differ from those that a preset names."""
    return difference(apply_preset(preset, config), config)


def preset_of(config: TrainConfig, name: str, description: str = "") -> Preset:
    """Return a preset that holds every setting but the personal ones."""
    settings = {
        spec.path: value_at(config, spec.path)
        for spec in plain_specs(TrainConfig)
        if spec.path not in PERSONAL
    }
    return Preset(name, description, settings)


def save_preset(workspace: Workspace, preset: Preset) -> Path:
    """Write one of the person's own presets, in place of an own one of that name.

    Raises InputError for a name that cannot be a file's or belongs to a built-in preset, and
    ConfigError for settings that cannot be used.
    """
    path = _own_path(workspace, preset.name)
    with alone(path):
        PRESET.refuse_newer(path)
        _write(path, preset)
    return path


def _own_path(workspace: Workspace, name: str) -> Path:
    check_name(name, what="preset")
    if name.lower() in {known.name.lower() for known in built_in_presets()}:
        raise InputError(f"The preset {name!r} is a built-in one.", remedy="Choose another name.")
    return workspace.presets_dir / f"{name}.json"


def import_preset(workspace: Workspace, path: Path) -> Preset:
    """Take in a preset's file that somebody passed on; raises InputError if its name is taken."""
    preset = read_preset(path)
    target = _own_path(workspace, preset.name)
    with alone(target):
        own, _ = own_presets(workspace)
        if preset.name.lower() in {known.name.lower() for known in own}:
            raise InputError(
                f"You have a preset named {preset.name!r} already.",
                remedy='Change its "name" in the file, or delete yours first.',
            )
        PRESET.refuse_newer(target)
        _write(target, preset)
    return preset


def export_preset(preset: Preset, folder: Path) -> Path:
    """Write the preset into a folder, to be passed on, and return the file."""
    check_name(preset.name, what="preset")
    path = folder / f"{preset.name}.json"
    _write(path, preset)
    return path


def delete_preset(workspace: Workspace, name: str) -> None:
    """Delete one of the person's own presets; raises InputError if it is none."""
    check_name(name, what="preset")
    path = workspace.presets_dir / f"{name}.json"
    if not path.is_file():
        raise InputError(
            f"{name!r} is none of your own presets.", remedy="Built-in ones cannot be deleted."
        )
    with alone(path):
        disk.remove(path)


def read_preset(path: Path, built_in: bool = False) -> Preset:
    """Return the preset in a file; raises InputError or ConfigError if it is none."""
    if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{path.name} is too large to be a preset.", remedy="Check the file.")
    values = read_json_object(path)
    if values.get("format") != FORMAT or not isinstance(values.get("settings"), dict):
        raise InputError(
            f"{path.name} is not a preset.", remedy=f'Its "format" must be "{FORMAT}".'
        )
    values = PRESET.read(values, path)
    name, description = values.get("name"), values.get("description", "")
    if not isinstance(name, str) or not isinstance(description, str) or not name.strip():
        raise InputError(f"The preset {path.name} has no name.", remedy='Give it a "name".')
    version = settings_format().version_of({KEY: values.get(SETTINGS_KEY, 0)}, path)
    settings = paths_of_today(values["settings"], version, TrainConfig.__name__)
    return Preset(name, description[:MAX_DESCRIPTION], _checked(settings), built_in)


def _checked(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings with their values as the schema has them, each by itself in range."""
    _refuse_personal(settings)
    config = apply_preset(Preset("", "", settings), TrainConfig(model=""))
    known = {spec.path for spec in plain_specs(TrainConfig)}
    known |= {OF_CONCEPTS + name for name in FOR_CONCEPTS}
    groups = [Problem(path, "is a group of settings.") for path in settings if path not in known]
    found = check_fields(config)
    for concept in config.concepts:
        found += check_fields(concept, OF_CONCEPTS)
    problems = groups + [problem for problem in found if problem.field in settings]
    if problems:
        raise ConfigError(problems)
    return {path: _value_in(config, path) for path in settings}


def _value_in(config: TrainConfig, path: str) -> Any:
    name = path.removeprefix(OF_CONCEPTS)
    return value_at(config, path) if name == path else value_at(config.concepts[0], name)


def _refuse_personal(settings: Iterable[str]) -> None:
    for_concepts = {OF_CONCEPTS + name for name in FOR_CONCEPTS}
    personal = [
        path
        for path in settings
        if path not in for_concepts and (path in PERSONAL or path.partition(".")[0] == "concepts")
    ]
    if personal:
        raise ConfigError([Problem(path, "does not belong in a preset.") for path in personal])


def _write(path: Path, preset: Preset) -> None:
    settings = dict(_checked(preset.settings))
    atomic_write_json(
        path,
        {
            "format": FORMAT,
            **PRESET.stamped({}),
            SETTINGS_KEY: settings_format().version,
            "name": preset.name,
            "description": preset.description[:MAX_DESCRIPTION],
            "settings": json.loads(json.dumps(settings, allow_nan=False)),
        },
    )
