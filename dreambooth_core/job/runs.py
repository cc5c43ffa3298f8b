"""The folder of one run: its files, and finding the runs there have been."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.config.renames import of_today
from dreambooth_core.config.schema import (
    JOB_CONFIGS,
    BakeLoraConfig,
    ExtractLoraConfig,
    JobConfig,
    MergeConfig,
)
from dreambooth_core.config.serialize import from_dict, to_kept
from dreambooth_core.errors import InputError
from dreambooth_core.job import disk, plain_json
from dreambooth_core.job.formats import RUN
from dreambooth_core.job.storage import atomic_write_json
from dreambooth_core.job.workspace import Workspace

FILE_CONFIGS = (MergeConfig, ExtractLoraConfig, BakeLoraConfig)
"""What makes a file of other files, without a model."""
FILE_KINDS = ("merge", "extract-lora", "bake-lora")
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
    def works_on(self) -> str:
        """The name of the model that the run works on; "" if it makes a file of other files."""
        return "" if isinstance(self.config, FILE_CONFIGS) else self.model


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


def create_run_folder(workspace: Workspace, kind: str) -> Path:
    """Make and return a new run's folder, named by the time and the kind of job."""
    disk.make_folder(workspace.jobs_dir)
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{kind}"
    for number in range(1, 1000):
        folder = workspace.jobs_dir / (stem if number == 1 else f"{stem}-{number}")
        try:
            disk.make_folder(folder, new=True)
        except FileExistsError:
            continue
        return folder
    raise InputError(f"There are too many runs named {stem} in {workspace.jobs_dir}.")


def write_run(folder: Path, run: Run) -> None:
    """Write `job.json`; a folder that is below the root as usual is not named in it."""
    folders = {name: getattr(run, name) for name in ELSEWHERE}
    values = {
        "run_id": run.run_id,
        "kind": run.kind,
        "root": str(run.root),
        **{name: str(path) for name, path in folders.items() if path},
        "config": to_kept(run.config),
    }
    atomic_write_json(job_path(folder), RUN.stamped(values))


def read_run(folder: Path) -> Run:
    """Read `job.json`; raises InputError naming the file, or ConfigError naming a setting.

    Of a run that a newer version wrote that is a NewerVersionError.
    """
    path = job_path(folder)
    try:
        values = RUN.read(plain_json.parse(disk.read(path)), path)
        kind, config_class = values["kind"], JOB_CONFIGS[values["kind"]]
        root, run_id = Path(values["root"]), str(values["run_id"])
        settings = of_today(values["config"], config_class.__name__, path)
        folders = {name: Path(values[name]) for name in ELSEWHERE if values.get(name)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
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
        run = read_run_of(workspace.run_folder(run_id), model)
        if run is not None and run.kind == kind:
            return run
    return None


def read_run_of(folder: Path, model: str) -> Run | None:
    """Return a run if it is of a model; raises InputError or ConfigError if it cannot be read."""
    return read_run(folder) if told_model(folder) == model else None


def told_model(folder: Path) -> str:
    """Return the model that a run names, even one of a newer version; "" for none.

    All versions name it at the same place.
    """
    values = told(folder)
    return "" if values.get("kind") in FILE_KINDS else told_name(values)


def told_name(values: Mapping[str, Any]) -> str:
    """Return the model, or the file, that the values of a `job.json` name; "" for none."""
    config = values.get("config")
    return str(config.get("model") or config.get("name") or "") if isinstance(config, dict) else ""


def told_kind(folder: Path) -> str:
    """Return the kind of job that an unreadable run names."""
    return str(told(folder).get("kind") or "")


def told(folder: Path) -> dict[str, Any]:
    """Return what is written in `job.json`, as it is; {} if that cannot be read."""
    try:
        values = plain_json.parse(disk.read(job_path(folder)))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
