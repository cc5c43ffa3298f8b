"""kohya's settings: the files of sd-scripts, of the page kohya_ss, and the folders of pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth_core.config.imports.kohya_dataset import (
    read_dataset_folder,
    read_datasets,
)
from dreambooth_core.config.imports.kohya_rows import ROWS
from dreambooth_core.config.imports.mapping import Old, as_flag, go_through
from dreambooth_core.config.imports.paths_there import found_folder
from dreambooth_core.config.imports.report import CHANGED, LEFT, TRANSLATED, UNUSABLE, Import

SETTINGS = "settings of kohya's trainer"
DATASET = "data of kohya's trainer"
OF_THE_PAGE = ("max_resolution", "epoch", "LoRA_type", "lr_warmup")
OTHER_FAMILIES = re.compile(
    r"(anima|hunyuan|lumina|flux1?|sd3|t5xxl|txt|img|single|double)_.*"
    r"|(clip_[gl]|pos_emb).*|t5xxl|train_(t5xxl|blocks|double_.*|single_.*)|save_(clip|t5xxl)"
    r"|(single_|double_)?blocks_to_swap|blockwise_fused_optimizers|show_timesteps.*|in_dims|ae"
    r"|apply_t5_attn_mask|weighting_scheme|logit_(mean|std)|mode_scale|discrete_flow_shift"
    r"|model_prediction_type|timestep_sampling|guidance_scale|split_mode"
)
CHOSEN_FAMILY = re.compile(r"(anima|hunyuan_image|lumina|flux1|sd3)_checkbox")
OTHER_WORDS = "They belong to families of models that cannot be trained here."
KNOWN = frozenset(row.old for row in ROWS)


def is_settings(values: Mapping[str, Any]) -> int:
    """Return how many of a file's settings kohya's trainer has."""
    flat = flattened(values)
    return sum(name in KNOWN or bool(OTHER_FAMILIES.fullmatch(name)) for name in flat)


def read_settings(
    values: Mapping[str, Any], name: str, behaviour: str, base: Path | None = None
) -> Import:
    """Return what a file of settings or of folders says; `base` is the folder that it lies in."""
    has_data = "datasets" in values
    found = Import(DATASET if has_data else SETTINGS, name)
    flat = flattened(values)
    if has_data:
        flat = {**flat, **read_datasets(values, found, base)}
    flat = _of_our_families(flat, found)
    facts = {"page": any(name in flat for name in OF_THE_PAGE)}
    found.settings.update(go_through(ROWS, Old(flat, behaviour, facts), found))
    if not found.concepts:
        _folders_of(flat, found, base)
    return found


def read_folder(folder: Path) -> Import:
    """Return the concepts that the folders in a folder are by their names."""
    found = Import(DATASET, folder.name)
    read_dataset_folder(folder, found)
    return found


def _of_our_families(values: Mapping[str, Any], found: Import) -> dict[str, Any]:
    """Return the settings without those of families that cannot be trained here."""
    others = [name for name in values if OTHER_FAMILIES.fullmatch(name)]
    for name in others:
        if CHOSEN_FAMILY.fullmatch(name) and as_flag(values[name]):
            found.add(name, values[name], UNUSABLE, "Such a model cannot be trained here.")
    if others:
        count = f"({len(others)} settings, such as {others[0]})"
        found.add(count, "", LEFT, OTHER_WORDS)
    return {name: value for name, value in values.items() if name not in others}


def flattened(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without the tables that they stand in, whose names mean nothing there."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and name not in KNOWN:
            flat.update(value)
        else:
            flat[name] = value
    return flat


def _folders_of(values: Mapping[str, Any], found: Import, base: Path | None) -> None:
    """Make one concept of the folder of pictures that the settings name, if they name one."""
    folder = values.get("train_data_dir")
    if not isinstance(folder, str) or not folder.strip():
        return
    path, words = found_folder(folder, base)
    concept: dict[str, Any] = {
        "instance_folder": path,
        "instance_prompt": "[filewords]",
        "folder_names": True,
    }
    note = "Its folders' names say repeats and tokens. Import the folder itself for a concept each."
    verdict = CHANGED if words else TRANSLATED
    new = "concepts.0.instance_folder"
    found.add("train_data_dir", folder, verdict, f"{note} {words}".strip(), new, path)
    classes = values.get("reg_data_dir")
    if isinstance(classes, str) and classes.strip():
        path, words = found_folder(classes, base)
        concept["class_folder"], concept["class_images_source"] = path, "own"
        concept["class_images_per_instance_image"] = 1
        concept["class_prompt"] = "[filewords]"
        note = "Its pictures are the class images, as they are."
        verdict = CHANGED if words else TRANSLATED
        new = "concepts.0.class_folder"
        found.add("reg_data_dir", classes, verdict, f"{note} {words}".strip(), new, path)
    found.concepts.append(concept)
