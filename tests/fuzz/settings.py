"""Targets: settings files of ours, and those of other trainers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from dreambooth_core.config.control import field_specs
from dreambooth_core.config.imports import apply_import, read_import
from dreambooth_core.config.imports.d8ahazard_concepts import NAMES
from dreambooth_core.config.imports.d8ahazard_rows import ROWS as D8AHAZARD
from dreambooth_core.config.imports.kohya_rows import ROWS as KOHYA
from dreambooth_core.config.imports.report import AS_IT_WAS, AS_LABELLED
from dreambooth_core.config.presets import apply_preset, import_preset, own_presets, preset_of
from dreambooth_core.config.schema import JOB_CONFIGS, Concept, TrainConfig
from dreambooth_core.config.serialize import from_dict, load_json, set_value, to_dict
from dreambooth_core.config.settings_store import kept_settings
from dreambooth_core.config.validate import validate
from dreambooth_core.errors import ConfigError, UsageError
from dreambooth_core.job.runs import read_run
from dreambooth_core.job.workspace import ModelInfo, Workspace
from tests.fuzz import mutate

BEHAVIOURS = (AS_LABELLED, AS_IT_WAS)


def configs(chance: Random, folder: Path) -> None:
    """The settings of every kind of job as a file, as `job.json`, and as single assignments."""
    kind = chance.choice(sorted(JOB_CONFIGS))
    cls, workspace = JOB_CONFIGS[kind], Workspace(folder)
    text = _json(chance, mutate.tree(chance, _settings_of(kind)))
    path = folder / "settings.json"
    path.write_bytes(text)
    _attempt(lambda: _valid(load_json(path, cls), workspace, kind))
    run = {"kind": kind, "run_id": "r", "root": str(folder), "config": _settings_of(kind)}
    run_folder = folder / "run"
    run_folder.mkdir()
    (run_folder / "job.json").write_bytes(_json(chance, mutate.tree(chance, run)))
    _attempt(lambda: read_run(run_folder))
    data: dict[str, Any] = to_dict(TrainConfig(model="m"))
    name = mutate.pick(chance, [spec.path for spec in field_specs(TrainConfig)])
    assignment = f"{name}={chance.choice([*mutate.WORDS, '1', '[', '1e-6', 'on'])}"
    _attempt(lambda: set_value(data, TrainConfig, assignment))
    _attempt(lambda: _valid(from_dict(TrainConfig, data), workspace, "train"))
    info = workspace.model("ada")
    info.write_info(ModelInfo("ada", "sd1", ""))
    info.settings_path.write_bytes(text)
    _attempt(lambda: kept_settings(info))
    info.info_path.write_bytes(_json(chance, mutate.tree(chance, {"name": "a", "family": "sd1"})))
    _attempt(info.read_info)


def presets(chance: Random, folder: Path) -> None:
    """A preset that somebody passed on: taken in, found again, applied."""
    workspace = Workspace(folder / "workspace")
    made = preset_of(TrainConfig(model="m"), "theirs", "words")
    settings = dict(chance.sample(sorted(made.settings.items()), 5))
    values = {"format": "dreambooth preset", "version": 1, "name": "theirs", "description": "x"}
    values["settings"] = mutate.tree(chance, settings) if chance.random() < 0.7 else settings
    if chance.random() < 0.5:
        values = mutate.tree(chance, values)
    path = folder / "theirs.json"
    path.write_bytes(_json(chance, values))
    preset = import_preset(workspace, path)
    own, problems = own_presets(workspace)
    if problems or [known.name for known in own] != [preset.name]:
        raise AssertionError(f"{preset.name!r} was taken in and is not found: {problems}")
    apply_preset(preset, TrainConfig(model="m"))


def kohya(chance: Random, folder: Path) -> None:
    """Settings of kohya's trainer, as TOML and JSON."""
    names = [row.old for row in KOHYA]
    values = {name: _theirs(chance) for name in chance.sample(names, 8)}
    if chance.random() < 0.5:
        subsets = [{"image_dir": "a", "num_repeats": 3, "class_tokens": "ohwx dog"}]
        values["datasets"] = [{"resolution": 512, "subsets": subsets}]
    if chance.random() < 0.6:
        values = mutate.tree(chance, values)
    if isinstance(values, dict) and chance.random() < 0.6:
        path = folder / "k.toml"
        path.write_bytes(mutate.encoded(chance, _toml(values)))
    else:
        path = folder / "k.json"
        path.write_bytes(_json(chance, values))
    _imported(chance, path)


def d8ahazard(chance: Random, folder: Path) -> None:
    """`db_config.json` and `concepts_list.json` of sd_dreambooth_extension."""
    names = [row.old for row in D8AHAZARD]
    values: Any = {name: _theirs(chance) for name in chance.sample(names, 12)}
    listed = [{name: _theirs(chance) for name in chance.sample(sorted(NAMES), 4)}]
    values["concepts_list"] = listed * chance.randrange(3)
    if chance.random() < 0.2:
        values = listed
    if chance.random() < 0.7:
        values = mutate.tree(chance, values)
    model = folder / "ada"
    model.mkdir()
    path = model / "db_config.json"
    path.write_bytes(_json(chance, values))
    _imported(chance, model if chance.random() < 0.3 else path)


def _imported(chance: Random, path: Path) -> None:
    found = read_import(str(path), chance.choice(BEHAVIOURS))
    config = apply_import(found, TrainConfig(model="m"))
    json.dumps(to_dict(config), allow_nan=False).encode("utf-8")
    json.dumps([line.__dict__ for line in found.lines], ensure_ascii=False).encode("utf-8")


def _valid(config: Any, workspace: Workspace, kind: str) -> None:
    """Check settings that could be read; every problem names its field."""
    json.dumps(to_dict(config), allow_nan=False, ensure_ascii=False).encode("utf-8")
    for problem in validate(config, workspace, kind):
        if not problem.message:
            raise AssertionError(f"a problem of {problem.field!r} says nothing")


def _attempt(step: Any) -> None:
    """Do something that may be refused in words, and go on."""
    try:
        step()
    except ConfigError as error:
        if not all(problem.message for problem in error.problems):
            raise AssertionError("a problem says nothing") from error
    except UsageError as error:
        if not error.message:
            raise AssertionError("an error says nothing") from error


@cache
def _settings_of(kind: str) -> dict[str, Any]:
    cls = JOB_CONFIGS[kind]
    required = {spec.path: "ada" for spec in field_specs(cls) if spec.required}
    if cls is TrainConfig:
        concept = Concept(instance_folder="/nowhere", sample_prompts=["a"])
        return to_dict(TrainConfig(model="ada", concepts=[concept, concept]))
    try:
        return to_dict(from_dict(cls, required))
    except ConfigError:
        return {name: ["ada"] for name in required}


def _theirs(chance: Random) -> Any:
    usual = (True, False, 1, 0, 1e-6, 0.5, "adamw8bit", "fp16", "512,512", "a", "constant", [1], "")
    return chance.choice(usual) if chance.random() < 0.6 else mutate.value(chance)


def _json(chance: Random, values: Any) -> bytes:
    if chance.random() < 0.03:
        return mutate.deep(chance).encode()
    text = json.dumps(values, ensure_ascii=chance.random() < 0.5)
    data = text.encode("utf-8", "surrogatepass")
    return mutate.raw(chance, data) if chance.random() < 0.15 else data


def _toml(values: dict[str, Any]) -> str:
    lines, tables = [], []
    for name, value in values.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            tables.append(f"[[{name}]]\n" + "".join(_toml(item) for item in value))
        else:
            lines.append(f"{name} = {json.dumps(value)}")
    return "\n".join([*lines, *tables]) + "\n"
