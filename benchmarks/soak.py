"""Thousands of jobs and events through what a WebUI keeps open for weeks: does anything pile up?

Every job is started by the launcher as a process of its own, with a worker that needs no torch,
and followed to its final event. Most finish; some are stopped or killed, some fail in every way
that there is. A tenth as many more go through the conductor, in a folder of their own, while the
panel looks on. Then a run of many steps is written as a worker would, and the panel follows it.

Counted before and after: open files, threads, child processes, locks that are held, memory. Memory
is what Python allocated (tracemalloc), after a tenth of the work and at its end, and the
resident size of the process, as its slope per 1,000 jobs.

    python -m benchmarks.soak [--jobs 2000] [--events 20000] [--json FILE]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from dreambooth_core.config.schema import SampleConfig
from dreambooth_core.host.conductor import Conductor
from dreambooth_core.host.standalone import StandaloneHost
from dreambooth_core.job import launcher
from dreambooth_core.job.commands import Command
from dreambooth_core.job.events import (
    Event,
    EventWriter,
    JobFailed,
    JobFinished,
    JobStarted,
    Notice,
    PhaseProgress,
    SampleSaved,
    StepDone,
)
from dreambooth_core.job.launcher import Job, launch, model_lock_path, running_jobs
from dreambooth_core.job.lock import read_holder
from dreambooth_core.job.process import is_running, start_mark
from dreambooth_core.job.run_view import RunReader
from dreambooth_core.job.runs import Run, create_run_folder, events_path, process_path, write_run
from dreambooth_core.job.storage import atomic_write_json
from dreambooth_core.job.workspace import ModelInfo, Workspace

WORKER = "tests.fake_worker"
MODEL = "ada"
PATIENCE_SECONDS = 120.0
LOOK_EVERY = 100
"""Events between two looks of the panel; a page looks once a second."""
TIMED = 100
"""Jobs at the start and at the end over which the launcher's own time is averaged."""

# (what the job is told, what is done to it from outside, how it must end)
KINDS = (
    *[("finish", "", "JobFinished")] * 12,
    *[("wait", "stop", "JobStopped")] * 3,
    ("wait", "kill", "JobFailed"),
    ("die", "", "JobFailed"),
    ("exit", "", "JobFailed"),
    ("usage", "", "JobFailed"),
    ("raise", "", "JobFailed"),
)


def soak(root: Path, jobs: int, events: int) -> dict[str, Any]:
    """Do it all in an empty folder and return the figures."""
    workspace = _with_model(root)
    with _quick_worker():
        panel = _Panel(StandaloneHost(workspace))
        return {
            "launcher": through_the_launcher(workspace, jobs),
            "conductor": through_the_conductor(_another(workspace), max(1, jobs // 10), panel),
            "events": through_the_panel(workspace, events, panel),
        }


def through_the_launcher(workspace: Workspace, jobs: int) -> dict[str, Any]:
    """Start jobs one after the other and follow each to its end."""
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    starts: list[float] = []
    with Watch(jobs) as watch:
        for number in range(jobs):
            order, deed, expected = KINDS[number % len(KINDS)]
            began = time.process_time()
            final = _one_job(workspace, order, deed)
            starts.append(time.process_time() - began)
            outcomes[f"{order} {deed}".strip()] += 1
            if type(final).__name__ != expected:
                wrong.append(f"job {number} ({order} {deed}): {final}"[:300])
            watch.step(number + 1)
    began = time.process_time()
    still_running = len(running_jobs(workspace))
    return {
        "jobs": jobs,
        "asked": dict(outcomes),
        "ended_otherwise": wrong,
        "still_running": still_running,
        "ms_to_look_for_running_ones": _mean_ms([time.process_time() - began]),
        "locks_held": _held_locks(workspace),
        "own_cpu_ms_per_job": {
            "first": _mean_ms(starts[:TIMED]),
            "last": _mean_ms(starts[-TIMED:]),
        },
        "jobs_folder": _size_of(workspace.jobs_dir),
        **watch.figures,
    }


def through_the_conductor(workspace: Workspace, jobs: int, panel: _Panel) -> dict[str, Any]:
    """Start jobs as the page does; the panel looks at each while it goes on and at its end."""
    wrong: list[str] = []
    conductor = Conductor(StandaloneHost(workspace))
    panel.ask(conductor)
    seen: dict[str, Any] = {}
    with Watch(jobs) as watch:
        for number in range(jobs):
            order, deed, expected = KINDS[number * 7 % len(KINDS)]
            job = conductor.start("sample", SampleConfig(model=MODEL, prompts=[order]))
            final = _followed(job, deed, lambda: panel.look(seen))
            if not conductor.wait(PATIENCE_SECONDS) or type(final).__name__ != expected:
                wrong.append(f"job {number} ({order} {deed}): {final}"[:300])
            panel.look(seen)
            watch.step(number + 1)
    return {
        "jobs": jobs,
        "ended_otherwise": wrong,
        "still_running": len(running_jobs(workspace)),
        "locks_held": _held_locks(workspace),
        **watch.figures,
    }


def through_the_panel(workspace: Workspace, steps: int, panel: _Panel) -> dict[str, Any]:
    """Write a long training as its worker would, while the panel and a second reader follow it."""
    folder = create_run_folder(workspace, "train")
    config = SampleConfig(model=MODEL, prompts=["a long training"])
    write_run(folder, Run(folder.name, "sample", workspace.root, config))
    us = {"pid": os.getpid(), "mark": start_mark(os.getpid())}
    atomic_write_json(process_path(folder), us)
    panel.ask(_Showing(Job(folder.name, folder)))
    writer, reader = EventWriter(events_path(folder)), RunReader(folder)
    seen: dict[str, Any] = {}
    writer.emit(JobStarted("train", MODEL, folder.name, os.getpid(), "soak"))
    written = 1
    with Watch(steps) as watch:
        for step in range(1, steps + 1):
            for event in _of_a_step(step, steps):
                writer.emit(event)
                written += 1
            if step % LOOK_EVERY == 0 or step == steps:
                view = reader.poll()
                panel.look(seen)
            watch.step(step)
    writer.emit(JobFinished({}))
    panel.look(seen)
    view = reader.poll()
    points = max(len(line) for line in view.curves.values())
    return {
        "events": written + 1,
        "steps": view.step,
        "state": view.state,
        "kept": {"points_of_a_curve": points, "samples": len(view.samples)},
        "events_file_bytes": events_path(folder).stat().st_size,
        **watch.figures,
    }


def _with_model(root: Path) -> Workspace:
    workspace = Workspace(root)
    workspace.model(MODEL).write_info(ModelInfo(MODEL, "sd1", ""))
    return workspace


def _another(workspace: Workspace) -> Workspace:
    """Return a workspace without runs, as looking through thousands takes longer than a job."""
    return _with_model(workspace.root / "another")


class Watch:
    """What the process holds, before and after some work and on the way."""

    def __init__(self, total: int) -> None:
        """Look at `total` pieces of work; the first tenth is warming up."""
        self.total = total
        self.warm = max(1, total // 10)
        self.every = max(1, total // 40)
        self.figures: dict[str, Any] = {}
        self._resident: list[tuple[int, float]] = []
        self._traced = 0

    def __enter__(self) -> Watch:
        """Begin."""
        self._before, self._began = _holdings(), time.monotonic()
        tracemalloc.start()
        return self

    def step(self, done: int) -> None:
        """Note that a piece of work is done."""
        if done == self.warm:
            self._traced = _traced_bytes()
        if done >= self.warm and (done % self.every == 0 or done == self.total):
            self._resident.append((done, psutil.Process().memory_info().rss / 2**20))

    def __exit__(self, *error: object) -> None:
        """Work out the figures."""
        grown = _traced_bytes() - self._traced
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        self.figures = {
            "seconds": round(time.monotonic() - self._began, 1),
            "before": self._before,
            "after": _holdings(),
            "python_kb_grown_after_warming_up": round(grown / 1024, 1),
            "python_kb_peak": round(peak / 1024, 1),
            "resident_mb_per_1000": round(1000 * _slope(self._resident), 3),
        }


class _Showing:
    """In the conductor's place: shows one job."""

    problem = None

    def __init__(self, job: Job) -> None:
        self._job = job

    def start(self, kind: str, config: Any) -> Job:
        raise NotImplementedError

    def job(self) -> Job:
        return self._job

    def preparing(self) -> str:
        return ""


class _Panel:
    """The run panel in a page that nobody serves."""

    def __init__(self, host: Any) -> None:
        import gradio

        from dreambooth_core.ui.run import build_run_panel

        self._starter: Any = None
        with gradio.Blocks():
            self.panel = build_run_panel(host, lambda: self._starter)

    def ask(self, starter: Any) -> None:
        """Show what this conductor does."""
        self._starter = starter

    def look(self, seen: dict[str, Any]) -> None:
        """Do what an open page does each second."""
        seen.setdefault("gallery", [])
        self.panel.refresh(seen)


def _one_job(workspace: Workspace, order: str, deed: str) -> Event:
    job = launch(workspace, "sample", SampleConfig(model=MODEL, prompts=[order]))
    return _followed(job, deed)


def _followed(job: Job, deed: str, look: Callable[[], None] = lambda: None) -> Event:
    """Follow a job to its end; once it works, do to it what was said. Returns the final event."""
    final: Event = JobFailed("nothing was told")
    for event in job.events(0.02):
        final = event
        if isinstance(event, PhaseProgress) and event.phase == "working":
            look()
            if deed == "stop":
                job.send(Command("stop"))
            if deed == "kill":
                job.kill()
    return final


def _of_a_step(step: int, steps: int) -> Iterator[Event]:
    rates = {"unet": 2e-6, "text_encoder": 1e-6}
    yield StepDone(step, steps, step // 100, 0.5, 0.4 + step % 7 / 100, 0.6, rates, 1.0, 2.0, 9.0)
    if step % 50 == 0:
        yield SampleSaved(f"/nowhere/step_{step}.png", f"a photo of dog {step}", step, step)
    if step % 200 == 0:
        yield Notice("info", f"a note at step {step}")


@contextmanager
def _quick_worker() -> Iterator[None]:
    usual = launcher.WORKER_MODULE
    launcher.WORKER_MODULE = WORKER
    try:
        yield
    finally:
        launcher.WORKER_MODULE = usual


def _holdings() -> dict[str, int]:
    """Return what the process has open now."""
    gc.collect()
    process = psutil.Process()
    files = process.num_handles() if sys.platform == "win32" else process.num_fds()
    return {
        "open_files": int(files),
        "threads": threading.active_count(),
        "children": len(process.children(recursive=True)),
        "resident_mb": round(process.memory_info().rss / 2**20),
    }


def _traced_bytes() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def _slope(points: list[tuple[int, float]]) -> float:
    """Return the slope of the straight line that fits points best."""
    if len(points) < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def _mean_ms(seconds: list[float]) -> float:
    return round(1000 * sum(seconds) / max(1, len(seconds)), 2)


def _held_locks(workspace: Workspace) -> list[str]:
    """Return the locks whose process lives; that of a worker that was killed is void."""
    holder = read_holder(model_lock_path(workspace, MODEL))
    return [holder.run_id] if holder and is_running(holder.pid, holder.mark) else []


def _size_of(folder: Path) -> dict[str, int]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        "runs": sum(path.is_dir() for path in folder.iterdir()) - 1,  # one holds the locks
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
    }


def main() -> None:
    """Read the command line, soak and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--events", type=int, default=20000)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = soak(Path(folder), options.jobs, options.events)
    text = json.dumps(figures, indent=2) + "\n"
    print(text)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
