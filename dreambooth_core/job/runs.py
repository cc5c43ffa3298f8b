"""The folder of one run: its files, and finding the runs there have been."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.config.schema import (
    JOB_CONFIGS,
    BakeLoraConfig,
    ExtractLoraConfig,
    JobConfig,
    MergeConfig,
)
from dreambooth_core.config.serialize import from_dict, to_dict
from dreambooth_core.errors import InputError
from dreambooth_core.job.storage import atomic_write_json
from dreambooth_core.job.workspace import Workspace

ELSEWHERE = ("models_elsewhere", "checkpoints_elsewhere", "loras_elsewhere")


@dataclass(frozen=True)
class Run:
    """What a run was asked to do."""

    run_id: str
    kind: str
    root: Path
    config: JobConfig
    models_elsewhere: Path | None = None
    checkpoints_elsewhere: Path | None = None
    loras_elsewhere: Path | None = None

    @property
    def workspace(self) -> Workspace:
        """Where the run's models, checkpoints and LoRA files lie."""
        return Workspace(self.root, **{name: getattr(self, name) for name in ELSEWHERE})

    @property
    def model(self) -> str:
        """The name of the model that the run works on, or of the file that it makes."""
        return model_of(self.config)

    @property
    def lock_name(self) -> str:
        """What no other run may work on meanwhile."""
        return lock_name_of(self.config)


def job_path(folder: Path) -> Path:
    """The file with what to do."""
    return folder / "job.json"


def events_path(folder: Path) -> Path:
    """The file with what happened."""
    return folder / "events.jsonl"


def log_path(folder: Path) -> Path:
    """The file with whatever the worker and its libraries printed."""
    return folder / "log.txt"


def process_path(folder: Path) -> Path:
    """The file that names the worker process."""
    return folder / "process.json"


def model_of(config: JobConfig) -> str:
    """Return the name of the model that a job works on, or of the file that it makes."""
    return str(getattr(config, "model", "") or getattr(config, "name", ""))


def lock_name_of(config: JobConfig) -> str:
    """Return what is locked for a job: its model, or a file, whose name no model can have."""
    makes_a_file = isinstance(config, MergeConfig | ExtractLoraConfig | BakeLoraConfig)
    return f".file {model_of(config)}" if makes_a_file else model_of(config)


def create_run_folder(workspace: Workspace, kind: str) -> Path:
    """Make and return a new run's folder, named by the time and the kind of job."""
    workspace.jobs_dir.mkdir(parents=True, exist_ok=True)
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{kind}"
    for number in range(1, 1000):
        folder = workspace.jobs_dir / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise InputError(f"There are too many runs named {stem} in {workspace.jobs_dir}.")


def write_run(folder: Path, run: Run) -> None:
    """Write `job.json`; a folder that is below the root as usual is not named in it."""
    folders = {name: getattr(run, name) for name in ELSEWHERE}
    atomic_write_json(
        job_path(folder),
        {
            "run_id": run.run_id,
            "kind": run.kind,
            "root": str(run.root),
            **{name: str(path) for name, path in folders.items() if path},
            "config": to_dict(run.config),
        },
    )


def read_run(folder: Path) -> Run:
    """Read `job.json`; raises InputError naming the file, or ConfigError naming a setting."""
    path = job_path(folder)
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind, config_class = values["kind"], JOB_CONFIGS[values["kind"]]
        root, run_id, settings = Path(values["root"]), str(values["run_id"]), values["config"]
        folders = {name: Path(values[name]) for name in ELSEWHERE if values.get(name)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"The run file {path} cannot be read: {error!r}.") from error
    return Run(run_id, kind, root, from_dict(config_class, settings), **folders)


def run_ids(workspace: Workspace) -> list[str]:
    """Return the ids of all runs, oldest first; one that is deleted meanwhile is left out."""
    found = []
    for path in workspace.jobs_dir.glob("*/job.json"):
        with suppress(FileNotFoundError):
            found.append((path.stat().st_mtime_ns, path.parent.name))
    return [run_id for _, run_id in sorted(found)]


def last_run(workspace: Workspace, model: str, kind: str) -> Run | None:
    """Return the newest run of a kind on a model; None if there was none."""
    for run_id in reversed(run_ids(workspace)):
        if kind not in run_id:
            continue
        run = read_run(workspace.run_folder(run_id))
        if run.kind == kind and run.model == model:
            return run
    return None
