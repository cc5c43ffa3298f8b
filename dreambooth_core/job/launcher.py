"""Starting a job in a worker process of its own, following it, and finding it again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.config.schema import JobConfig
from dreambooth_core.config.serialize import with_absolute_paths
from dreambooth_core.config.validate import check
from dreambooth_core.errors import InputError
from dreambooth_core.job import lock
from dreambooth_core.job.commands import Command, send
from dreambooth_core.job.events import FINAL_EVENTS, Event, JobFailed, read_events
from dreambooth_core.job.process import end_process_tree, is_running, start_mark
from dreambooth_core.job.runs import (
    Run,
    create_run_folder,
    events_path,
    job_path,
    log_path,
    model_of,
    process_path,
    run_ids,
    write_run,
)
from dreambooth_core.job.storage import atomic_write_json
from dreambooth_core.job.workspace import Workspace

POLL_SECONDS = 0.1
STARTING_SECONDS = 30.0
ENDING_SECONDS = 20.0
LOG_TAIL_LINES = 5
WORKER_MODULE = "dreambooth_core.worker"
PACKAGE_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Job:
    """A job that runs or ran: read its events, send it commands, wait for it."""

    run_id: str
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    def events(self, poll_seconds: float = POLL_SECONDS) -> Iterator[Event]:
        """Yield everything that happened and happens, up to and including the final event.

        A worker that ended without a final event yields a JobFailed that says how it ended.
        """
        offset, gone = 0, False
        while True:
            events, offset = read_events(events_path(self.folder), offset)
            for event in events:
                yield event
                if isinstance(event, FINAL_EVENTS):
                    self._reap()
                    return
            if gone:
                yield self._death()
                return
            gone = not self.is_running()
            if not gone and not events:
                time.sleep(poll_seconds)

    def wait(self) -> Event:
        """Return the final event, once it is there."""
        final: Event = JobFailed("The run left no events.")
        for event in self.events():
            final = event
        return final

    def send(self, command: Command) -> None:
        """Ask the running job for something."""
        send(self.folder, command)

    def kill(self) -> None:
        """End the worker at once; nothing is saved."""
        pid, mark = self._pid_and_mark()
        if pid and is_running(pid, mark):
            end_process_tree(pid)

    def is_running(self) -> bool:
        """Whether the worker process is alive; one that is just being started counts."""
        if self.process is not None:
            return self.process.poll() is None
        pid, mark = self._pid_and_mark()
        if pid:
            return is_running(pid, mark)
        return time.time() - job_path(self.folder).stat().st_mtime < STARTING_SECONDS

    def _pid_and_mark(self) -> tuple[int, str]:
        try:
            values = json.loads(process_path(self.folder).read_text(encoding="utf-8"))
            return int(values["pid"]), str(values["mark"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0, ""

    def _reap(self) -> None:
        """Let an ended worker go, so that it does not stay as a zombie."""
        if self.process is not None:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(ENDING_SECONDS)

    def _death(self) -> JobFailed:
        code = self.process.poll() if self.process is not None else None
        log = log_path(self.folder)
        tail = _last_lines(log, LOG_TAIL_LINES)
        said = f" Its last words:\n{tail}" if tail else ""
        return JobFailed(
            message=f"The worker process {_how_it_ended(code)} without finishing.{said}",
            remedy=f"The log is {log}. A killed worker often means that memory ran out.",
            error="WorkerDied",
            exit_code=1,
        )


def launch(workspace: Workspace, kind: str, config: JobConfig, python: str = sys.executable) -> Job:
    """Check the settings and start the job; raises ConfigError or BusyError before that.

    Relative paths in the settings count from the current folder.
    """
    config = with_absolute_paths(config, Path.cwd())
    check(config, workspace, kind)
    model = model_of(config)
    lock_path = model_lock_path(workspace, model)
    ours = lock.Holder(os.getpid(), start_mark(os.getpid()), f"starting-{time.time_ns()}", kind)
    lock.acquire(lock_path, ours, model)
    try:
        folder = create_run_folder(workspace, kind)
        write_run(folder, Run(folder.name, kind, workspace.root, config))
        process = _start_worker(folder, python)
        mark = start_mark(process.pid)
        atomic_write_json(process_path(folder), {"pid": process.pid, "mark": mark})
        lock.hand_over(lock_path, lock.Holder(process.pid, mark, folder.name, kind))
    except BaseException:
        lock.release(lock_path, ours.run_id)
        raise
    return Job(folder.name, folder, process)


def attach(workspace: Workspace, run_id: str) -> Job:
    """Return a run that was started before, by any process; raises InputError if there is none."""
    folder = workspace.run_folder(run_id)
    if not job_path(folder).is_file():
        recent = run_ids(workspace)[-5:]
        raise InputError(
            f"There is no run {run_id!r} in {workspace.jobs_dir}.",
            remedy=f"The newest are: {', '.join(recent)}." if recent else "There are none yet.",
        )
    return Job(run_id, folder)


def running_jobs(workspace: Workspace) -> list[Job]:
    """Return the jobs whose worker is alive, oldest first."""
    jobs = [Job(run_id, workspace.run_folder(run_id)) for run_id in run_ids(workspace)]
    return [job for job in jobs if job.is_running()]


def model_lock_path(workspace: Workspace, model: str) -> Path:
    """Return the lock file of a model."""
    return workspace.jobs_dir / "locks" / f"{model}.lock"


def worker_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the worker's environment: our package first, nothing of the host's Python paths.

    One core is left to the rest of the machine: threads that wait for a busy core slow a step down
    several times over. `OMP_NUM_THREADS` is respected where it is set.
    """
    environment = {
        name: value
        for name, value in inherited.items()
        if name.upper() not in ("PYTHONPATH", "PYTHONHOME")
    }
    environment.update(
        PYTHONPATH=str(PACKAGE_ROOT),
        PYTHONNOUSERSITE="1",
        PYTHONUNBUFFERED="1",
        PYTHONUTF8="1",
        HF_HUB_OFFLINE="1",
    )
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) - 1)))
    return environment


def _start_worker(folder: Path, python: str) -> subprocess.Popen[bytes]:
    """Start the worker in a process group of its own, so that Ctrl-C here does not reach it."""
    options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        options = {"creationflags": flags}
    with log_path(folder).open("ab") as log:
        return subprocess.Popen(
            [python, "-m", WORKER_MODULE, str(folder)],
            # `-m` puts the current folder first on the path; the run folder holds no modules.
            cwd=folder,
            env=worker_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            **options,
        )


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return "ended"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"was killed by signal {-code}"


def _last_lines(path: Path, count: int) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.strip().splitlines()[-count:])
