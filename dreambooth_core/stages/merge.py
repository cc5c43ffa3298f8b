"""Merging two or three checkpoint files into a new one, streamed weight by weight."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dreambooth_core.checkpoint.file import CheckpointReader
from dreambooth_core.checkpoint.header import Header, read_header
from dreambooth_core.checkpoint.merge import Recipe, left_out, merge_entries
from dreambooth_core.checkpoint.metadata import told_name
from dreambooth_core.config.control import number_text
from dreambooth_core.config.merge import DARE, OF_A_DIFFERENCE, MergeConfig
from dreambooth_core.job.checkpoint_files import checkpoint_path
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import CheckpointSaved, Notice
from dreambooth_core.stages.derived import (
    read_original,
    require_family,
    saved_dtype,
    tell_saved,
    until_stopped,
    write_derived,
)

PHASE = "merging"
LISTED_KEYS = 3


def run(config: MergeConfig, context: RunContext) -> dict[str, Any]:
    """Write the merged checkpoint; models of different families are refused before that."""
    headers = [read_header(path) for path in _sources(config, context)]
    first = read_original(headers[0].path)
    for header in headers[1:]:
        require_family(header, first)
    _tell_what_is_left_out(headers, context)

    def merge() -> dict[str, Any]:
        path = checkpoint_path(context.workspace.checkpoints_dir, config.name, 0, config.subfolder)
        told = recipe_metadata(config, headers)
        with ExitStack() as stack:
            readers = [stack.enter_context(CheckpointReader(each.path)) for each in headers]
            entries = merge_entries(
                readers, recipe_of(config), lambda info: saved_dtype(info, config.dtype)
            )
            written = write_derived(first, path, entries, told, PHASE, context)
        return tell_saved(CheckpointSaved, config.name, first, written, context)

    return until_stopped(config.name, merge)


def recipe_of(config: MergeConfig) -> Recipe:
    """Return how weights are merged."""
    return Recipe(
        multiplier=config.multiplier,
        exact=config.arithmetic == "fp32",
        keeps_vae=config.vae == "keep",
        density=config.density if config.method == DARE else 1.0,
        seed=config.seed,
    )


def recipe_metadata(config: MergeConfig, headers: Sequence[Header]) -> dict[str, str]:
    """Return what a merged checkpoint says about how it was made."""
    names = [told_name(header.path) for header in headers]
    letters = dict(zip(("a", "b", "c"), names, strict=False))
    chance = {
        "dreambooth.merge_density": number_text(config.density),
        "dreambooth.merge_seed": str(config.seed),
    }
    return {
        "modelspec.merged_from": ", ".join(names),
        "dreambooth.merge_method": config.method,
        "dreambooth.merge_multiplier": number_text(config.multiplier),
        "dreambooth.merge_arithmetic": config.arithmetic,
        "dreambooth.merge_vae": config.vae,
        **(chance if config.method == DARE else {}),
        **{f"dreambooth.merge_model_{letter}": name for letter, name in letters.items()},
    }


def _sources(config: MergeConfig, context: RunContext) -> list[Path]:
    names = [config.primary, config.secondary]
    if config.method in OF_A_DIFFERENCE:
        names.append(config.tertiary)
    return [context.workspace.find_checkpoint(name) for name in names]


def _tell_what_is_left_out(headers: Sequence[Header], context: RunContext) -> None:
    keys = left_out(headers)
    if keys:
        listed = ", ".join(keys[:LISTED_KEYS])
        more = f" and {len(keys) - LISTED_KEYS} more" if len(keys) > LISTED_KEYS else ""
        words = f"{headers[1].path.name} has weights that {headers[0].path.name} lacks"
        context.emit(Notice("warning", f"{words}; they are left out: {listed}{more}."))
