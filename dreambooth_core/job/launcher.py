"""Starting a job in a worker process of its own, following it, and finding it again."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreambooth_core.config.schema import JobConfig
from dreambooth_core.config.serialize import with_absolute_paths
from dreambooth_core.config.validate import check
from dreambooth_core.errors import InputError
from dreambooth_core.job import claims, disk, plain_json
from dreambooth_core.job.claims import claims_of
from dreambooth_core.job.commands import Command, send
from dreambooth_core.job.ended import Traces, how_it_ended
from dreambooth_core.job.events import (
    FINAL_EVENTS,
    Event,
    EventWriter,
    JobFailed,
    read_events,
    spare_path,
)
from dreambooth_core.job.formats import PROCESS
from dreambooth_core.job.full_disk import told_if_full
from dreambooth_core.job.heartbeat import VOID_SECONDS, heart, seconds_since
from dreambooth_core.job.interpreter import WorkerPython, module_command, worker_environment
from dreambooth_core.job.lock import STARTING, Holder
from dreambooth_core.job.oom_kills import note_kills
from dreambooth_core.job.overlay import note_use
from dreambooth_core.job.process import (
    end_process_tree,
    is_here,
    is_running,
    start_mark,
    this_machine,
)
from dreambooth_core.job.runs import (
    ELSEWHERE,
    Run,
    create_run_folder,
    events_path,
    job_path,
    log_path,
    process_path,
    read_run,
    run_ids,
    write_run,
)
from dreambooth_core.job.storage import atomic_write_json
from dreambooth_core.job.workspace import Workspace

POLL_SECONDS = 0.1
STARTING_SECONDS = 30.0
ENDING_SECONDS = 20.0
WORKER_MODULE = "dreambooth_core.worker"
NO_PROCESS = 0
"""Named as the process of a run that ended before it had one."""


@dataclass(frozen=True)
class NamedProcess:
    """The process of a run: its worker, or the one that is preparing to start it."""

    pid: int
    mark: str
    preparing: bool = False
    kills: dict[str, int] = field(default_factory=dict)
    """The kernel's counters of processes ended for memory, when it started: see `oom_kills`."""
    machine: str = field(default_factory=this_machine)

    @property
    def is_here(self) -> bool:
        """Whether it is one of this machine's, so that it can be looked at and ended."""
        return is_here(self.machine)


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
                yield self.death()
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
        worker = read_process(self.folder)
        if worker is None or worker.preparing or not worker.is_here:
            return
        if is_running(worker.pid, worker.mark):
            end_process_tree(worker.pid)

    def is_running(self) -> bool:
        """Whether the worker process is alive; one that is just being started counts.

        One on another machine is, while it keeps the run fresh. A run whose folder was deleted does
        not run.
        """
        if self.process is not None:
            return self.process.poll() is None
        worker = read_process(self.folder)
        if worker:
            return worker.pid != NO_PROCESS and _is_alive(self.folder, worker)
        try:
            asked = job_path(self.folder).stat().st_mtime
        except FileNotFoundError:
            return False
        return time.time() - asked < STARTING_SECONDS

    def _reap(self) -> None:
        """Let an ended worker go, so that it does not stay as a zombie."""
        if self.process is not None:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(ENDING_SECONDS)

    def death(self) -> JobFailed:
        """Return how a worker ended that is gone without a final event; its spare room is freed."""
        with suppress(OSError):
            disk.remove(spare_path(events_path(self.folder)))
        code = self.process.poll() if self.process is not None else None
        worker = read_process(self.folder)
        if worker is None or worker.preparing:
            return how_it_ended(self.folder, Traces(code=code))
        return how_it_ended(self.folder, Traces(worker.mark, worker.kills, code))


def launch(
    workspace: Workspace, kind: str, config: JobConfig, worker: WorkerPython | None = None
) -> Job:
    """Check the settings and start the job; raises ConfigError or BusyError before that.

    Relative paths in the settings count from the current folder. Without `worker` it runs in the
    Python that runs this.
    """
    job = reserve(workspace, kind, config)
    try:
        return begin(workspace, job, worker)
    except BaseException as error:
        abandon(workspace, job, JobFailed(f"The worker could not be started: {error}"))
        raise


@told_if_full("The job")
def reserve(workspace: Workspace, kind: str, config: JobConfig) -> Job:
    """Check the settings and make the run, whose worker `begin` starts later.

    Until then the run counts as going on, and has the model, as long as this process lives. Raises
    ConfigError or BusyError.
    """
    config = with_absolute_paths(config, Path.cwd())
    check(config, workspace, kind)
    wanted, starting = claims_of(workspace, kind, config), f"{STARTING}{time.time_ns()}"
    ours = claims.ours(starting, kind)
    claims.take(wanted, ours)
    try:
        folder = create_run_folder(workspace, kind)
        ours = dataclasses.replace(ours, run_id=folder.name)
        claims.hand_over(wanted, ours, starting)
        _name_process(folder, ours.pid, ours.mark, preparing=True)
        elsewhere = {name: getattr(workspace, name) for name in ELSEWHERE}
        write_run(folder, Run(folder.name, kind, workspace.root, config, **elsewhere))
    except BaseException:
        for run_id in (starting, ours.run_id):
            claims.give_back(wanted, run_id)
        raise
    return Job(folder.name, folder)


@told_if_full("The job")
def begin(workspace: Workspace, job: Job, worker: WorkerPython | None = None) -> Job:
    """Start the worker of a reserved run; after an error the run is still to be abandoned."""
    worker = worker or WorkerPython()
    run = read_run(job.folder)
    process = _start_worker(job.folder, worker)
    try:
        mark = start_mark(process.pid)
        note_use(worker.paths, process.pid, mark)
        _name_process(job.folder, process.pid, mark)
        holder = Holder(process.pid, mark, job.run_id, run.kind)
        claims.hand_over(claims_of(workspace, run.kind, run.config), holder)
    except BaseException:
        end_process_tree(process.pid)  # nobody could find it again
        process.wait(ENDING_SECONDS)
        raise
    return Job(job.run_id, job.folder, process)


def abandon(workspace: Workspace, job: Job, final: Event) -> None:
    """End a reserved run without a worker: `final` says why."""
    run = read_run(job.folder)
    claims.give_back(claims_of(workspace, run.kind, run.config), job.run_id)
    EventWriter(events_path(job.folder)).emit(final)
    try:
        _name_process(job.folder, NO_PROCESS, "")
    except OSError:  # on a full disk: without the file it soon counts as ended too
        disk.remove(process_path(job.folder))


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
    """Return the jobs whose worker is alive on this machine, oldest first."""
    jobs = [Job(run_id, workspace.run_folder(run_id)) for run_id in run_ids(workspace)]
    return [job for job in jobs if job.is_running() and _is_of_this_machine(job)]


def model_lock_path(workspace: Workspace, model: str) -> Path:
    """Return the lock file of a model."""
    return workspace.model(model).lock_path


def read_process(folder: Path) -> NamedProcess | None:
    """Return the process of a run; None if none was named yet."""
    try:
        values = PROCESS.known(plain_json.parse(disk.read(process_path(folder))))
        kills = {str(path): int(count) for path, count in (values.get("kills") or {}).items()}
        preparing = bool(values.get("preparing"))
        pid, mark, machine = int(values["pid"]), str(values["mark"]), str(values["machine"])
        return NamedProcess(pid, mark, preparing, kills, machine)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _name_process(folder: Path, pid: int, mark: str, preparing: bool = False) -> None:
    named = NamedProcess(pid, mark, preparing, {} if preparing else note_kills(pid))
    atomic_write_json(process_path(folder), PROCESS.stamped(dataclasses.asdict(named)))
    if preparing:
        heart().keep(process_path(folder))
    else:
        heart().forget(process_path(folder))


def _is_alive(folder: Path, named: NamedProcess) -> bool:
    if named.is_here:
        return is_running(named.pid, named.mark)
    with suppress(FileNotFoundError):
        return seconds_since(process_path(folder)) < VOID_SECONDS
    return False


def _is_of_this_machine(job: Job) -> bool:
    named = read_process(job.folder)
    return named is None or named.is_here


def _start_worker(folder: Path, worker: WorkerPython) -> subprocess.Popen[bytes]:
    """Start the worker in a process group of its own, so that Ctrl-C here does not reach it."""
    options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        options = {"creationflags": flags}
    with log_path(folder).open("ab") as log:
        return subprocess.Popen(
            module_command(worker.python, WORKER_MODULE, str(folder)),
            cwd=folder,
            env=worker_environment(os.environ, worker.paths, worker.device_id),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            **options,
        )
