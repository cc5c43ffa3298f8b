"""What other trainers call our settings, read off the tables that import theirs."""

from __future__ import annotations

from collections.abc import Iterable

from dreambooth_core.config.imports import d8ahazard_concepts, d8ahazard_rows, kohya_rows
from dreambooth_core.config.imports.mapping import Row

EXTENSION, KOHYA = "sd_dreambooth_extension", "kohya"


def training_names() -> dict[str, dict[str, list[str]]]:
    """Return, by path of a training setting and name of a trainer, what the setting is there."""
    tables = {
        EXTENSION: [*d8ahazard_rows.ROWS, *d8ahazard_concepts.RUN_ROWS],
        KOHYA: kohya_rows.ROWS,
    }
    return _names(tables.items())


def concept_names() -> dict[str, dict[str, list[str]]]:
    """Return the same for the settings of a concept."""
    return _names([(EXTENSION, d8ahazard_concepts.ROWS)])


def _names(tables: Iterable[tuple[str, Iterable[Row]]]) -> dict[str, dict[str, list[str]]]:
    names: dict[str, dict[str, list[str]]] = {}
    for trainer, rows in tables:
        for row in rows:
            known = names.setdefault(row.new, {}).setdefault(trainer, [])
            if row.old not in known:
                known.append(row.old)
    names.pop("", None)
    return names
