"""The abandoned extension's settings: `db_config.json` of any year, and lists of concepts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth_core.config.imports.d8ahazard_concepts import (
    NAMES,
    concept_items,
    read_concepts,
    split_off,
)
from dreambooth_core.config.imports.d8ahazard_rows import ROWS
from dreambooth_core.config.imports.mapping import AS_THERE, Old, go_through
from dreambooth_core.config.imports.reading import parse_json
from dreambooth_core.config.imports.report import AS_IT_WAS, CHANGED, YOURS, Import

SETTINGS = "settings of sd_dreambooth_extension"
CONCEPTS = "concepts of sd_dreambooth_extension"
KNOWN = frozenset(row.old for row in ROWS) | NAMES
PREFIX = "db_"
PROMPT_RULES = "captions.extension_rules"
PROMPTS_CHANGED = (
    "There the class token was lost where captions name it, and backslashes were removed. Here it"
    ' stays. The setting "Token rules of sd_dreambooth_extension" brings the old prompts back.'
)


EPOCHS_CHANGED = (
    "There pictures were drawn by chance, so that an epoch left out about a third of them. Here it"
    " shows each exactly as often as its repeats say."
)


def is_settings(values: Mapping[str, Any]) -> int:
    """Return how many of a file's settings the abandoned extension had."""
    return sum(_plain(name) in KNOWN for name in values)


def read_settings(
    values: Mapping[str, Any], name: str, behaviour: str, base: Path | None = None
) -> Import:
    """Return what a `db_config.json` says; `base` is the folder that it lies in."""
    found = Import(SETTINGS, name)
    plain = {_plain(key): value for key, value in values.items()}
    rest, concepts = split_off(plain)
    concepts = _listed(rest, name, found) or concepts
    facts = {"class_images": any(_wants_class_images(concept) for concept in concepts)}
    run = Old(rest, behaviour, facts)
    found.settings.update(go_through(ROWS, run, found))
    _prompt_rules(found, behaviour)
    found.add("(what an epoch is)", "", CHANGED, EPOCHS_CHANGED)
    read_concepts(concepts, found, behaviour, run, base)
    return found


def read_concepts_list(value: Any, name: str, behaviour: str, base: Path | None = None) -> Import:
    """Return what a list of concepts says; raises InputError if it is none."""
    found = Import(CONCEPTS, name)
    items = concept_items(value, name)
    read_concepts(items, found, behaviour, Old({}, behaviour), base)
    return found


def _plain(name: str) -> str:
    """Return a setting's name without what the page put before some of them."""
    return name.removeprefix(PREFIX)


def _listed(values: Mapping[str, Any], name: str, found: Import) -> list[dict[str, Any]]:
    """Return the concepts of the list in a settings file, or of the list that it names."""
    listed = values.get("concepts_list")
    named = values.get("concepts_path")
    for text in (listed, named):
        if isinstance(text, str) and text.lstrip().startswith("["):
            return concept_items(parse_json(text, f"The list of concepts in {name}"), name)
    if isinstance(listed, str) and listed.strip():
        named = listed
    if isinstance(named, str) and named.strip():
        words = "The concepts stand in another file. Import that one too."
        found.add("concepts_path", named, YOURS, words)
    return concept_items(listed, name) if isinstance(listed, list) else []


def _wants_class_images(concept: Mapping[str, Any]) -> bool:
    old = Old(concept, "")
    return max(old.number("num_class_images_per", 0), old.number("num_class_images", 0)) > 0


def _prompt_rules(found: Import, behaviour: str) -> None:
    as_before = behaviour == AS_IT_WAS
    found.settings[PROMPT_RULES] = as_before
    words = AS_THERE if as_before else PROMPTS_CHANGED
    found.add("(how prompts are made)", "", CHANGED, words, PROMPT_RULES, as_before)
