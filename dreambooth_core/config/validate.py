"""Checks of settings before any work starts: ranges, files, names and conflicts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreambooth_core.config.control import FieldSpec, field_specs, number_text
from dreambooth_core.config.pictures import picture_files
from dreambooth_core.config.rules.jobs import check_compare, check_create, check_sample, check_save
from dreambooth_core.config.rules.training import check_training
from dreambooth_core.config.rules.transfer import (
    check_bake_lora,
    check_extract_lora,
    check_merge,
)
from dreambooth_core.config.schema import (
    BakeLoraConfig,
    CompareConfig,
    Concept,
    CreateConfig,
    ExtractLoraConfig,
    JobConfig,
    MergeConfig,
    SampleConfig,
    SaveConfig,
    TrainConfig,
)
from dreambooth_core.errors import ConfigError, InputError, Problem
from dreambooth_core.job.workspace import Workspace, check_name

DEVICE = re.compile(r"auto|cpu|cuda|cuda:\d+")

_RULES: dict[type, Callable[[Any, Workspace | None], list[Problem]]] = {
    CreateConfig: check_create,
    TrainConfig: check_training,
    SampleConfig: check_sample,
    SaveConfig: check_save,
    CompareConfig: check_compare,
    ExtractLoraConfig: check_extract_lora,
    BakeLoraConfig: check_bake_lora,
    MergeConfig: check_merge,
}


def validate(config: JobConfig, workspace: Workspace | None, kind: str = "") -> list[Problem]:
    """Return everything wrong with a configuration; without a workspace, models are not looked up.

    `kind` "class-images" adds what matters only to a job that makes class images.
    """
    problems = check_fields(config)
    if isinstance(config, TrainConfig):
        for index, concept in enumerate(config.concepts):
            problems += check_fields(concept, f"concepts.{index}.")
        if kind == "class-images" and not any(_wants_class_images(c) for c in config.concepts):
            problems.append(
                Problem(
                    "concepts",
                    "ask for no class images.",
                    "Set class_images_per_instance_image to 1 or more.",
                )
            )
    return problems or _RULES[type(config)](config, workspace)


def check(config: JobConfig, workspace: Workspace | None, kind: str = "") -> None:
    """Raise ConfigError with everything that is wrong with a configuration."""
    problems = validate(config, workspace, kind)
    if problems:
        raise ConfigError(problems)


def check_fields(config: Any, prefix: str = "") -> list[Problem]:
    """Return the settings that are out of range, no choice or unusable paths, each by itself."""
    problems = []
    for spec in field_specs(type(config)):
        value = config
        for part in spec.path.split("."):
            value = getattr(value, part)
        values = value if isinstance(value, list) else [value]
        for item in values:
            problem = check_value(spec, item, prefix + spec.path)
            if problem:
                problems.append(problem)
    return problems


def check_value(spec: FieldSpec, value: Any, path: str) -> Problem | None:
    """Return what is wrong with one value of a setting, by itself; None if nothing is."""
    control = spec.control
    if control.choices and value not in control.choices:
        return Problem(path, f"is {value!r}.", f"Choose one of: {', '.join(control.choices)}.")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _check_range(spec, value, path)
    if spec.required and isinstance(value, str) and not value.strip():
        return Problem(path, "is empty.", control.help)
    check_kind = _KINDS.get(control.kind)
    return check_kind(path, value) if check_kind and value else None


def _check_range(spec: FieldSpec, value: float, path: str) -> Problem | None:
    low, high, unit = spec.control.minimum, spec.control.maximum, spec.control.unit
    if (low is None or value >= low) and (high is None or value <= high):
        return None
    allowed = []
    if low is not None:
        allowed.append(f"at least {number_text(low)}")
    if high is not None:
        allowed.append(f"at most {number_text(high)}")
    shown = f"{number_text(value)} {unit}".rstrip()
    return Problem(path, f"is {shown}.", f"It must be {' and '.join(allowed)}.")


def _check_device(path: str, value: str) -> Problem | None:
    if DEVICE.fullmatch(value):
        return None
    return Problem(path, f"is {value!r}.", "Choose auto, cpu, cuda or one GPU such as cuda:0.")


def _check_file_name(path: str, value: str) -> Problem | None:
    try:
        check_name(value, what=path.rpartition(".")[2])
    except InputError as error:
        return Problem(path, error.message, error.remedy)
    return None


def _check_picture_folder(path: str, value: str) -> Problem | None:
    folder = Path(value).expanduser()
    if not folder.exists():
        return Problem(path, f"the folder {folder} does not exist.", "Check the path.")
    if not folder.is_dir():
        return Problem(path, f"{folder} is a file.", "Give the folder that the pictures are in.")
    if not os.access(folder, os.R_OK | os.X_OK):
        return Problem(path, f"the folder {folder} cannot be read.", "Check its permissions.")
    return _check_pictures(path, folder)


def _check_pictures(path: str, folder: Path) -> Problem | None:
    try:
        files = picture_files(folder)
    except InputError as error:
        return Problem(path, error.message, error.remedy)
    if not files and not path.endswith("class_folder"):
        return Problem(path, f"the folder {folder} holds no pictures.", "Put .png or .jpg in it.")
    unreadable = next((file for file in files if not os.access(file, os.R_OK)), None)
    if unreadable:
        return Problem(path, f"the picture {unreadable} cannot be read.", "Check its permissions.")
    return None


def _check_new_folder(path: str, value: str) -> Problem | None:
    folder = Path(value).expanduser()
    if folder.exists() and not folder.is_dir():
        return Problem(path, f"{folder} is a file.", "Give a folder, which need not exist yet.")
    return None


_KINDS: dict[str, Callable[[str, str], Problem | None]] = {
    "device": _check_device,
    "model": _check_file_name,
    "new_model": _check_file_name,
    "run": _check_file_name,
    "file_name": _check_file_name,
    "folder": _check_picture_folder,
    "new_folder": _check_new_folder,
}


def _wants_class_images(concept: Concept) -> bool:
    return concept.class_images_per_instance_image > 0
