"""kohya's data: folders whose names say how they are used, and the lists of folders in TOML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.config.imports.mapping import as_flag, as_number
from dreambooth_core.config.imports.paths_there import found_folder, last_part
from dreambooth_core.config.imports.report import (
    CHANGED,
    KEPT,
    LEFT,
    TRANSLATED,
    UNUSABLE,
    YOURS,
    Import,
)
from dreambooth_core.config.pictures import picture_files
from dreambooth_core.errors import InputError

MOST_FOLDERS = 200
MOST_REPEATS = 1000
PICTURES, CLASS_PICTURES = "img", "reg"
"""What kohya's page calls the two folders that it prepares."""
OF_A_FOLDER = ("image_dir", "num_repeats", "class_tokens", "is_reg", "metadata_file")
_NAME = re.compile(r"(\d+)_(.*)")


@dataclass(frozen=True)
class Subset:
    """A folder of pictures: how often an epoch shows them and what they show."""

    folder: str
    repeats: int
    tokens: str
    is_class: bool
    words: str = ""
    """What there is to say of the folder."""


def named(name: str) -> tuple[int, str] | None:
    """Return the repeats and the tokens that a folder's name says; None if it says none."""
    match = _NAME.fullmatch(name)
    return (int(match[1][:9]), match[2].strip()) if match else None


def is_dataset_folder(folder: Path) -> bool:
    """Return whether a folder holds folders whose names say how they are used."""
    return bool(_named_folders(folder) or _named_folders(folder / PICTURES))


def read_dataset_folder(folder: Path, found: Import) -> None:
    """Put the folders in a folder into what was found, as concepts."""
    has_both = not _named_folders(folder)
    subsets = _subsets(folder / PICTURES if has_both else folder, is_class=False)
    subsets += _subsets(folder / CLASS_PICTURES, is_class=True)
    add_concepts(subsets, found)
    for concept in found.concepts:
        files = picture_files(Path(concept["instance_folder"]))
        concept["folder_names"] = not all(_has_caption(file) for file in files)


def _has_caption(file: Path) -> bool:
    return any(file.with_suffix(suffix).is_file() for suffix in (".txt", ".caption"))


def _named_folders(folder: Path) -> list[Path]:
    try:
        inside = sorted(folder.iterdir())
    except (OSError, ValueError):
        return []
    return [path for path in inside if named(path.name) and path.is_dir()]


def _subsets(folder: Path, *, is_class: bool) -> list[Subset]:
    found = []
    for path in _named_folders(folder):
        repeats, tokens = named(path.name) or (1, "")
        found.append(Subset(str(path.absolute()), repeats, tokens, is_class))
    return found


def read_datasets(values: Mapping[str, Any], found: Import, base: Path | None) -> dict[str, Any]:
    """Put the folders of a list into what was found; return what is said for all of them."""
    general = _table(values.get("general", {}), "general")
    subsets: list[Subset] = []
    shared: dict[str, Any] = {}
    for number, dataset in enumerate(_tables(values["datasets"], "datasets")):
        of_all = {**general, **{k: v for k, v in dataset.items() if k != "subsets"}}
        _share(shared, of_all, f"datasets[{number}]", found)
        for place, subset in enumerate(_tables(dataset.get("subsets", []), "subsets")):
            where = f"datasets[{number}].subsets[{place}]"
            _share(shared, {k: subset[k] for k in subset if k not in OF_A_FOLDER}, where, found)
            made = _subset({**of_all, **subset}, where, found, base)
            subsets += [made] if made else []
    if len(subsets) > MOST_FOLDERS:
        raise InputError(
            f"{found.name} names {len(subsets)} folders.", remedy=f"At most {MOST_FOLDERS} go."
        )
    add_concepts(subsets, found)
    for name in OF_A_FOLDER:
        shared.pop(name, None)
    if "batch_size" in shared:
        shared["train_batch_size"] = shared.pop("batch_size")
    return shared


def _share(shared: dict[str, Any], own: Mapping[str, Any], where: str, found: Import) -> None:
    """Take what is said of one folder for all of them; where they differ, the first one counts."""
    for name, value in own.items():
        if name in shared and shared[name] != value:
            words = "Here it is one for all, and an earlier one is taken."
            found.add(f"{where}.{name}", value, UNUSABLE, words)
        else:
            shared[name] = value


def _subset(
    values: Mapping[str, Any], where: str, found: Import, base: Path | None
) -> Subset | None:
    if values.get("metadata_file"):
        words = "Captions in a list of their own are not read: write them beside the pictures."
        found.add(f"{where}.metadata_file", values["metadata_file"], YOURS, words)
    folder = values.get("image_dir")
    if not isinstance(folder, str) or not folder.strip():
        found.add(where, "", UNUSABLE, "It names no folder of pictures.")
        return None
    path, words = found_folder(folder, base)
    repeats = as_number(values.get("num_repeats", 1))
    tokens = values.get("class_tokens")
    return Subset(
        path,
        1 if repeats is None else int(repeats),
        tokens.strip() if isinstance(tokens, str) else "",
        bool(as_flag(values.get("is_reg", False))),
        words,
    )


def add_concepts(subsets: list[Subset], found: Import) -> None:
    """Make a concept of each folder of instance images, with the class images that belong to it."""
    classes = [subset for subset in subsets if subset.is_class]
    used = set()
    for subset in (subset for subset in subsets if not subset.is_class):
        concept = _concept(subset, found)
        belonging = _class_of(concept, classes)
        if belonging:
            used.add(belonging.folder)
            _add_class(concept, belonging, found)
        found.concepts.append(concept)
    for subset in classes:
        if subset.folder not in used:
            words = "No instance images are of its class: choose it on the Concepts tab."
            found.add(last_part(subset.folder), subset.folder, YOURS, words)


def _concept(subset: Subset, found: Import) -> dict[str, Any]:
    path = f"concepts.{len(found.concepts)}."
    first, _, rest = subset.tokens.partition(" ")
    name = last_part(subset.folder)
    concept: dict[str, Any] = {"instance_folder": subset.folder, "instance_prompt": "[filewords]"}
    verdict = CHANGED if subset.words else KEPT
    found.add(name, subset.folder, verdict, subset.words, f"{path}instance_folder", subset.folder)
    if 1 <= subset.repeats <= MOST_REPEATS:
        concept["repeats"] = subset.repeats
        found.add(f"{name}: repeats", subset.repeats, KEPT, "", f"{path}repeats", subset.repeats)
    else:
        words = f"Repeats are 1 to {MOST_REPEATS} here."
        found.add(f"{name}: repeats", subset.repeats, UNUSABLE, words)
    if not first:
        return concept
    concept["instance_token"], concept["class_token"] = first, rest.strip()
    words = "The first word is the instance token, the rest the class token. Tokens are put into"
    words = f"{words} captions that lack them; a picture without a caption gets its file's name."
    taken = f"{first} + {rest.strip()}" if rest.strip() else first
    found.add(f"{name}: tokens", subset.tokens, TRANSLATED, words, f"{path}instance_token", taken)
    return concept


def _class_of(concept: Mapping[str, Any], classes: list[Subset]) -> Subset | None:
    """Return the class images that show a concept's class; if there is but one folder, that."""
    token = concept.get("class_token", "")
    fitting = [subset for subset in classes if token and subset.tokens == token]
    return fitting[0] if fitting else classes[0] if len(classes) == 1 else None


def _add_class(concept: dict[str, Any], subset: Subset, found: Import) -> None:
    concept["class_folder"] = subset.folder
    concept["class_images_source"] = "own"
    concept["class_images_per_instance_image"] = 1
    concept["class_prompt"] = subset.tokens or concept.get("class_token", "") or "[filewords]"
    words = "Its pictures are the class images, as they are; one comes with each instance image."
    path = f"concepts.{len(found.concepts)}.class_folder"
    verdict = CHANGED if subset.words else TRANSLATED
    words = f"{words} {subset.words}".strip()
    found.add(last_part(subset.folder), subset.folder, verdict, words, path, subset.folder)
    if subset.repeats != 1:
        found.add(
            f"{last_part(subset.folder)}: repeats",
            subset.repeats,
            LEFT,
            "Class images are shown as often as they are needed.",
        )


def _tables(value: Any, name: str) -> list[Mapping[str, Any]]:
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return value
    raise InputError(f"{name} is no list of tables.", remedy=f"Write it as [[{name}]].")


def _table(value: Any, name: str) -> Mapping[str, Any]:
    if isinstance(value, dict):
        return value
    raise InputError(f"{name} is no table.", remedy=f"Write it as [{name}].")
