"""Targets: what is read back of runs: events, commands, locks, training states."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from random import Random
from typing import Any

import torch

from dreambooth_core.checkpoint.file import write_checkpoint
from dreambooth_core.job import events as happened
from dreambooth_core.job.commands import COMMANDS_FILE, CommandReader
from dreambooth_core.job.launcher import Job, read_process
from dreambooth_core.job.lock import read_holder
from dreambooth_core.job.log import log_tail
from dreambooth_core.job.run_view import RunReader, RunView
from dreambooth_core.job.runs import events_path, log_path, process_path
from dreambooth_core.job.workspace import ModelInfo, Workspace
from dreambooth_core.stages.optimizer_file import read_memory, write_memory
from dreambooth_core.stages.saved_states import damage, latest_state, state_progress
from dreambooth_core.ui.run_html import curves_html, log_html, progress_html, summary_html
from tests.fuzz import mutate

USUAL: dict[str, Any] = {
    "str": "words",
    "int": 3,
    "float": 0.5,
    "bool": True,
    "list[str]": ["a"],
    "dict[str, float]": {"unet": 1e-6},
    "dict[str, Any]": {"paths": ["a"]},
    "float | None": None,
    "list[PlannedImage]": [
        {"file": "a", "kind": "instance", "concept": 1, "prompt": "p", "bucket": "b", "repeats": 1}
    ],
    "list[PlannedFile]": [{"path": "a", "bytes": 1, "when": "x"}],
    "list[Finding]": [{"level": "error", "message": "m"}],
    "list[PhaseMemory]": [{"phase": "p", "gpu_bytes": 1, "ram_bytes": 1}],
}


def events(chance: Random, folder: Path) -> None:
    """Lines of `events.jsonl`, read and shown as the panel and the API do."""
    lines = [_line(chance) for _ in range(chance.randrange(1, 12))]
    data = b"\n".join(lines) + b"\n"
    events_path(folder).write_bytes(mutate.raw(chance, data) if chance.random() < 0.2 else data)
    log_path(folder).write_bytes(mutate.encoded(chance, mutate.text(chance, 200)))
    found, offset = happened.read_events(events_path(folder))
    if offset > events_path(folder).stat().st_size:
        raise AssertionError("more was read than there is")
    view = RunView()
    view.update(found)
    json.dumps(view.as_dict(), default=str).encode("utf-8")
    _shown(view, log_tail(folder, 100))
    _shown(RunReader(folder, Job("r", folder)).poll(), [])


def commands(chance: Random, folder: Path) -> None:
    """Lines of `commands.jsonl`, a lock and the file that names a process."""
    usual = {"command": "stop", "arguments": {"a": 1}}
    lines = [_json(chance, mutate.tree(chance, usual, chance.randrange(4))) for _ in range(4)]
    (folder / COMMANDS_FILE).write_bytes(b"\n".join(lines) + b"\n")
    for command in CommandReader(folder / COMMANDS_FILE).poll():
        if not isinstance(command.arguments, dict):
            raise AssertionError(f"the arguments are {command.arguments!r}")
    named = {"pid": 1, "mark": "x", "preparing": False}
    process_path(folder).write_bytes(_json(chance, mutate.tree(chance, named)))
    read_process(folder)
    Job("r", folder).is_running()
    held = {"pid": 1, "mark": "x", "run_id": "r", "kind": "train"}
    (folder / "lock").write_bytes(_json(chance, mutate.tree(chance, held)))
    read_holder(folder / "lock")


def states(chance: Random, folder: Path) -> None:
    """A training state's `progress.json`, and the file of its optimizer."""
    workspace = Workspace(folder)
    model = workspace.model("ada")
    model.write_info(ModelInfo("ada", "sd1", ""))
    state = model.states_dir / "run" / "step_00000003"
    state.mkdir(parents=True)
    write_checkpoint(state / "unet.safetensors", [])
    progress = {
        **{"version": 1, "step": 3, "epoch": 0, "position": 3, "saved_at": 5.0, "config": {}},
        "files": {"unet.safetensors": (state / "unet.safetensors").stat().st_size},
    }
    (state / "progress.json").write_bytes(_json(chance, mutate.tree(chance, progress)))
    damage(state)
    latest = latest_state(model)
    if latest is not None:
        state_progress(latest)
    memory = {"state": {"0": {"step": torch.ones(1), "n": 3}}, "param_groups": [{"lr": 1e-6}]}
    path = folder / "optimizer.safetensors"
    write_memory(path, memory)
    path.write_bytes(mutate.raw(chance, path.read_bytes()))
    read_memory(path)


def _shown(view: RunView, lines: list[str]) -> None:
    progress = progress_html(view, preparing="", problem=None, log=lines[-3:])
    for page in (progress, summary_html(view), curves_html(view), log_html(lines, "x")):
        if "<script" in page:
            raise AssertionError("a text was not escaped")


def _line(chance: Random) -> bytes:
    cls = chance.choice(happened.EVENT_TYPES)
    values: dict[str, Any] = {"event": happened.event_name(cls), "time": 1.5}
    for field in dataclasses.fields(cls):
        if field.name != "time":
            values[field.name] = USUAL.get(str(field.type), 1)
    return _json(chance, mutate.tree(chance, values, chance.randrange(4)))


def _json(chance: Random, values: Any) -> bytes:
    if chance.random() < 0.02:
        return mutate.deep(chance).encode()
    return json.dumps(values).encode()
