"""What training settings do, measured on the built-in subjects and written as a table.

    python -m benchmarks.training_effects [--subjects bob mia rex] [--runs NAME ...] [--workers 2]

Every training goes through the product's own stages. Each result is one file below --results; a
table that was interrupted goes on with what is missing, and results of other settings or of another
built-in checkpoint do not count. The document at --report is written from the files at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks._effect_report import report
from benchmarks._effect_runs import CLASS_IMAGES, RUNS, EffectRun, config_of, run_settings
from dreambooth_core.config.schema import CreateConfig
from dreambooth_core.demo import CHECKPOINT
from dreambooth_core.job.storage import atomic_write_bytes, atomic_write_json
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.world.subjects import SUBJECTS

MODEL = "effects"
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "training-effects"
REPORT = ROOT / "docs" / "training-effects.md"
BASE = EffectRun("base", "the model as created", class_images=0, steps=(0,))
Task = tuple[str, str]
"""A subject and a run."""


def result_path(results: Path, task: Task) -> Path:
    """Return the file of a result."""
    return results / task[0] / f"{task[1]}.json"


def read_result(results: Path, task: Task, checkpoint_hash: str) -> dict[str, Any] | None:
    """Return a stored result if it is of today's settings and checkpoint."""
    try:
        result: dict[str, Any] = json.loads(result_path(results, task).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    today = {"settings": run_settings(_run_of(task)), "checkpoint": checkpoint_hash}
    return result if {key: result.get(key) for key in today} == today else None


def _run_of(task: Task) -> EffectRun:
    return BASE if task[1] == "base" else RUNS[task[1]]


def _prepared(results: Path, subject: str) -> Path:
    return results / "work" / f"{subject}-prepared"


def use_one_thread() -> None:
    """Keep a worker process to one core: two that take turns on two cores are far slower."""
    import torch

    torch.set_num_threads(1)


def _context(workspace: Workspace, kind: str) -> Any:
    from dreambooth_core.job.commands import COMMANDS_FILE, CommandReader
    from dreambooth_core.job.context import RunContext
    from dreambooth_core.job.events import EventWriter
    from dreambooth_core.job.runs import create_run_folder, events_path

    folder = create_run_folder(workspace, kind)
    emit = EventWriter(events_path(folder)).emit
    return RunContext(workspace, folder.name, folder, emit, CommandReader(folder / COMMANDS_FILE))


def prepare(results: Path, subject: str) -> str:
    """Create a subject's model and the class images that its runs share."""
    from dreambooth_core.stages import class_images, create

    root = _prepared(results, subject)
    done = root / "prepared"
    if not done.exists():
        shutil.rmtree(root, ignore_errors=True)
        workspace = Workspace(root)
        created = CreateConfig(name=MODEL, source=str(CHECKPOINT))
        create.run(created, _context(workspace, "create"))
        for run in (RUNS["reference"], RUNS["no-captions"]):
            config = config_of(run, SUBJECTS[subject], MODEL)
            class_images.run(config, _context(workspace, "class-images"))
        atomic_write_bytes(done, b"")
    return f"{subject}: model and {2 * CLASS_IMAGES} class images for each picture"


def perform(results: Path, task: Task, checkpoint_hash: str) -> str:
    """Train one run, measure its checkpoints and store the result."""
    from benchmarks._effect_measures import evaluate
    from dreambooth_core.families import load_checkpoint, load_components
    from dreambooth_core.stages import train

    began = time.monotonic()
    subject, run = SUBJECTS[task[0]], _run_of(task)
    root = results / "work" / f"{task[0]}-{task[1]}"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(_prepared(results, subject.name), root)
    workspace = Workspace(root)
    folder = workspace.model(MODEL)
    rows = []
    if run is BASE:
        rows.append({"step": 0, **evaluate(load_components(folder), subject)})
    else:
        train.run(config_of(run, subject, MODEL), _context(workspace, "train"))
        for step in run.steps:
            path = workspace.checkpoints_dir / f"{MODEL}_{step}.safetensors"
            rows.append({"step": step, **evaluate(load_checkpoint(path, folder), subject)})
    result = {
        "subject": subject.name,
        "run": run.name,
        "settings": run_settings(run),
        "checkpoint": checkpoint_hash,
        "seconds": time.monotonic() - began,
        "rows": rows,
    }
    atomic_write_json(result_path(results, task), result)
    shutil.rmtree(root, ignore_errors=True)
    return describe(result)


def describe(result: dict[str, Any]) -> str:
    """Return a result in one line."""
    last = result["rows"][-1]
    return (
        f"{result['subject']} {result['run']}: step {last['step']}, S {last['subject']:.2f},"
        f" leak {last['leak']:.2f}, unseen backgrounds {last['background_unseen']:.2f},"
        f" {result['seconds']:.0f} s"
    )


def in_parallel(work: Callable[..., str], calls: Sequence[tuple[Any, ...]], workers: int) -> None:
    """Do the calls in worker processes and print what each returns."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=use_one_thread) as pool:
        waiting = [pool.submit(work, *call) for call in calls]
        for number, done in enumerate(as_completed(waiting), start=1):
            print(f"[{number}/{len(calls)}] {done.result()}", flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--subjects", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--runs", nargs="+", choices=["base", *RUNS], default=["base", *RUNS])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", type=Path, default=REPORT)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Fill the table and write the document."""
    options = parse(arguments)
    results: Path = options.results
    checkpoint_hash = hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()
    tasks = [(subject, run) for run in options.runs for subject in options.subjects]
    missing = [task for task in tasks if read_result(results, task, checkpoint_hash) is None]
    print(f"{len(tasks)} results, {len(missing)} to make", flush=True)
    if missing:
        subjects = list(dict.fromkeys(subject for subject, _ in missing))
        in_parallel(prepare, [(results, subject) for subject in subjects], options.workers)
        calls = [(results, task, checkpoint_hash) for task in missing]
        in_parallel(perform, calls, options.workers)
        shutil.rmtree(results / "work", ignore_errors=True)
    found = [read_result(results, task, checkpoint_hash) for task in tasks]
    command = " ".join(["python -m benchmarks.training_effects", *arguments])
    machine = f"{platform.machine()}, {options.workers} processes of one thread"
    document = report([result for result in found if result], command, machine)
    atomic_write_bytes(options.report, document.encode("utf-8"))
    print(f"wrote {options.report}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
