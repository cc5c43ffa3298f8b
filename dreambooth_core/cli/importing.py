"""The verb `import`: another trainer's settings, concepts and models."""

from __future__ import annotations

import argparse
import dataclasses
import json
from functools import partial
from pathlib import Path

from dreambooth_core.config.imports import apply_import, read_import
from dreambooth_core.config.imports.creating import creation
from dreambooth_core.config.imports.report import (
    AS_IT_WAS,
    AS_LABELLED,
    Import,
    Line,
    in_order,
    summary,
)
from dreambooth_core.config.schema import CreateConfig, TrainConfig
from dreambooth_core.config.serialize import to_kept
from dreambooth_core.config.settings_store import change_settings
from dreambooth_core.errors import InputError
from dreambooth_core.job.storage import atomic_write_json
from dreambooth_core.job.workspace import Workspace


def add_import_flags(verb: argparse.ArgumentParser) -> None:
    """Add what the verb takes."""
    verb.add_argument("path", metavar="PATH", help="the file or the folder to import")
    verb.add_argument(
        "--as-it-was",
        action="store_true",
        help="where a control did something else there than its label says, set what it did",
    )
    verb.add_argument("--model", metavar="NAME", default="", help="keep the settings for a model")
    verb.add_argument(
        "--output", metavar="FILE", default="", help="write the settings, to be given to --config"
    )
    verb.add_argument(
        "--create", metavar="NAME", default="", help="make a new model of the folder's weights"
    )
    verb.add_argument(
        "--snapshot",
        metavar="NAME",
        default="",
        help="which of the folder's snapshots to make it of, as the report lists them [default:"
        " the newest weights]",
    )
    verb.add_argument(
        "--extract-ema", action="store_true", help="take the folder's EMA weights for it"
    )


def read(options: argparse.Namespace) -> Import:
    """Read what is to be imported."""
    return read_import(options.path, AS_IT_WAS if options.as_it_was else AS_LABELLED)


def keep(found: Import, options: argparse.Namespace, workspace: Workspace) -> list[str]:
    """Keep the settings where the flags say; return what was done, in words."""
    done = []
    for name in dict.fromkeys(name for name in (options.model, options.create) if name):
        change_settings(workspace.model(name), partial(_put_over, found, name))
        done.append(f"The settings are kept for the model {name}.")
    if options.output:
        path = Path(options.output)
        if path.exists():
            raise InputError(f"{path} exists already.", remedy="Give the name of a new file.")
        name = options.model or options.create or (found.model.name if found.model else "")
        atomic_write_json(path, to_kept(apply_import(found, TrainConfig(model=name))))
        done.append(f"Written to {path}: train --config {path} --model NAME")
    return done


def _put_over(found: Import, model: str, kept: TrainConfig | None) -> TrainConfig:
    return apply_import(found, kept or TrainConfig(model=model))


def creation_of(
    found: Import, options: argparse.Namespace, workspace: Workspace
) -> CreateConfig | None:
    """Return the model that the flags ask for; None if they ask for none."""
    if not options.create:
        return None
    source = f"Snapshot {options.snapshot}" if options.snapshot else ""
    return creation(found, workspace, name=options.create, source=source, ema=options.extract_ema)


def report(found: Import) -> list[str]:
    """Return the report for people: what asks most of them first."""
    lines = [summary(found)]
    verdict = ""
    for line in in_order(found.lines):
        if line.verdict != verdict:
            verdict = line.verdict
            lines += ["", f"{verdict[0].upper()}{verdict[1:]}:"]
        lines.append(f"  {_said(line)}")
    return lines


def json_line(found: Import) -> str:
    """Return what was found as one line of JSON."""
    return json.dumps(dataclasses.asdict(found), ensure_ascii=False)


def _said(line: Line) -> str:
    value = f" = {line.old_value}" if line.old_value else ""
    here = f" -> {line.new} = {line.new_value}" if line.new else ""
    words = f" ({line.words})" if line.words else ""
    return f"{line.old}{value}{here}{words}"
