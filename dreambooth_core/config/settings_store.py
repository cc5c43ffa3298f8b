"""The settings kept for each model, and what differs between two sets of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.config.concept import Concept
from dreambooth_core.config.control import FieldSpec, field_specs, number_text, section_specs
from dreambooth_core.config.renames import settings_format
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.serialize import load_json, to_kept
from dreambooth_core.job.lock import alone
from dreambooth_core.job.storage import atomic_write_json
from dreambooth_core.job.workspace import ModelFolder

NOTHING = "nothing"


@dataclass(frozen=True)
class Change:
    """One setting that differs: its path, its label and both values as a person writes them."""

    path: str
    label: str
    before: str
    after: str


def keep_settings(folder: ModelFolder, config: TrainConfig) -> None:
    """Keep a model's settings in its folder; raises ModelNotFoundError if there is no model.

    Settings that a newer version has kept there stay: NewerVersionError. Of several programs that
    do so at once, the last one's settings are kept whole.
    """
    with alone(folder.lock_path):
        _write(folder, config)


def change_settings(
    folder: ModelFolder, change: Callable[[TrainConfig | None], TrainConfig]
) -> TrainConfig:
    """Put what `change` makes of a model's kept settings in their place, and return it.

    Nobody else changes them meanwhile. Raises what reading, `change` and writing raise.
    """
    with alone(folder.lock_path):
        folder.require()
        config = change(kept_settings(folder))
        _write(folder, config)
    return config


def _write(folder: ModelFolder, config: TrainConfig) -> None:
    folder.require()
    settings_format().refuse_newer(folder.settings_path)
    atomic_write_json(folder.settings_path, to_kept(config))


def kept_settings(folder: ModelFolder) -> TrainConfig | None:
    """Return the settings kept for a model; None if there are none yet.

    Raises InputError naming the file, or ConfigError naming the setting, if they are not usable.
    """
    if not folder.settings_path.is_file():
        return None
    kept = load_json(folder.settings_path, TrainConfig)
    kept.model = folder.name
    return kept


def difference(before: TrainConfig, after: TrainConfig) -> list[Change]:
    """Return every setting that differs, concepts included, in the order of the schema."""
    pairs = [(spec.path, _label(spec, TrainConfig), spec) for spec in plain_specs(TrainConfig)]
    changes = _changes(pairs, before, after)
    for index in range(max(len(before.concepts), len(after.concepts))):
        changes += _concept_changes(index, before.concepts, after.concepts)
    return changes


def plain_specs(cls: type) -> list[FieldSpec]:
    """Return the settings that hold one value or a list of texts, so all but the concepts."""
    return [spec for spec in field_specs(cls) if spec.path != "concepts"]


def value_at(config: Any, path: str) -> Any:
    """Return the value of the setting at a dotted path."""
    for part in path.split("."):
        config = getattr(config, part)
    return config


def shown(value: Any) -> str:
    """Return a value as a person writes it: on, off, 0.5, a text, "a | b" or "nothing"."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int | float):
        return number_text(value)
    text = " | ".join(value) if isinstance(value, list) else str(value)
    return text or NOTHING


def _changes(pairs: Iterable[tuple[str, str, FieldSpec]], before: Any, after: Any) -> list[Change]:
    changes = []
    for path, label, spec in pairs:
        old, new = value_at(before, spec.path), value_at(after, spec.path)
        if old != new:
            changes.append(Change(path, label, shown(old), shown(new)))
    return changes


def _concept_changes(index: int, before: list[Concept], after: list[Concept]) -> list[Change]:
    path, name = f"concepts.{index}", f"Concept {index + 1}"
    if index >= len(before):
        return [Change(path, name, NOTHING, concept_title(after[index]))]
    if index >= len(after):
        return [Change(path, name, concept_title(before[index]), NOTHING)]
    pairs = [
        (f"{path}.{spec.path}", f"{name}: {spec.control.label}", spec)
        for spec in field_specs(Concept)
    ]
    return _changes(pairs, before[index], after[index])


def concept_title(concept: Concept) -> str:
    """Return what a concept is called in lists: its tokens, else its folder, else "empty"."""
    tokens = f"{concept.instance_token} {concept.class_token}".strip()
    return tokens or Path(concept.instance_folder.rstrip("/\\")).name or "empty"


def _label(spec: FieldSpec, cls: type) -> str:
    groups = {group.name: group.control.label for group in section_specs(cls)}
    group = groups.get(spec.section)
    return f"{group}: {spec.control.label}" if group else spec.control.label
