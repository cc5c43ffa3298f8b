"""The one place of a process that starts jobs, makes room for them and follows them to their end.

It lives as long as the process: a WebUI's "Reload UI" leaves it, and jobs outlive the process too.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cache, partial
from pathlib import Path

from dreambooth_core.config.schema import JobConfig
from dreambooth_core.errors import BusyError, DreamboothError, JobFailedError, OverlayError
from dreambooth_core.host.base import Host, current_host
from dreambooth_core.job import disk
from dreambooth_core.job.claims import LOOKING_KINDS
from dreambooth_core.job.commands import COMMANDS_FILE, CommandReader
from dreambooth_core.job.eight_bit import wants_eight_bit, with_eight_bit
from dreambooth_core.job.events import (
    FINAL_EVENTS,
    CheckpointSaved,
    Event,
    EventWriter,
    JobFailed,
    JobStopped,
    Notice,
    PhaseProgress,
    PhaseStarted,
    read_events,
)
from dreambooth_core.job.interpreter import WorkerPython
from dreambooth_core.job.launcher import (
    Job,
    abandon,
    attach,
    begin,
    read_process,
    reserve,
    running_jobs,
)
from dreambooth_core.job.pip_install import Report
from dreambooth_core.job.runs import events_path, read_run, run_ids
from dreambooth_core.job.workspace import Workspace

HEAVY_KINDS = ("train", "dry-run", "class-images", "sample", "compare")
"""Jobs that compute with the whole model: they get the memory that the host's model takes. Those
that only look (LOOKING_KINDS) take none and install nothing, and make way for any other."""

LOOKS_KEPT = 3
"""Runs that only looked are of no use later; the newest may still be read by an open page."""
_RUN_ID = re.compile(r"\d{8}-\d{6}-(?P<kind>[a-z-]+?)(-\d+)?")

ENDING_SECONDS = 10.0
KILLING_SECONDS = 0.2
INSTALLING = "Installing the trainer"
STARTING = "Starting the trainer"
WAITING = "Waiting for the WebUI to finish its pictures"
HELD = "Pictures in the WebUI wait in its queue until this job ends. Its settings can allow them."
STOP_COMMANDS = ("stop", "stop_after_epoch")


class _StoppedEarly(Exception):
    """Somebody stopped the job before its worker was started."""


class Conductor:
    """Starts one job at a time; each is followed by a thread of its own."""

    def __init__(self, host: Host) -> None:
        """Work for a host; nothing is started or looked at yet."""
        self.host = host
        self.problem: DreamboothError | None = None
        """Why the last job that was started got no worker."""
        self._starting = threading.Lock()
        self._active: dict[str, Job] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._refreshes: list[threading.Thread] = []
        self._doing = ""

    def start(self, kind: str, config: JobConfig) -> Job:
        """Start a job and return at once; packages are installed and memory is freed meanwhile.

        Raises ConfigError, BusyError, or OverlayError where the trainer cannot work here at all.
        """
        workspace = self.host.workspace()
        with self._starting:
            self._refuse_if_busy(workspace, kind)
            self._refuse_if_impossible(kind)
            job = reserve(workspace, kind, config)
            _forget_old_looks(workspace)
            self.problem = None
            self._spawn(job, partial(self._conduct, workspace, job, kind))
        return job

    def adopt(self) -> list[Job]:
        """Follow all jobs that run and are not followed yet; return those that are followed."""
        workspace = self.host.workspace()
        with self._starting:
            for job in running_jobs(workspace):
                if job.run_id not in self._active and not _is_ours(job):
                    self._spawn(job, partial(self._take_over, job))
            return list(self._active.values())

    def job(self) -> Job | None:
        """Return the job that runs, else the newest that ran; quiet ones do not count."""
        running = [job for job in list(self._active.values()) if not _is_quiet(job.run_id)]
        if running:
            return running[-1]
        workspace = self.host.workspace()
        ids = [run_id for run_id in run_ids(workspace) if not _is_quiet(run_id)]
        return attach(workspace, ids[-1]) if ids else None

    def preparing(self) -> str:
        """Return what is done before the worker starts; "" when there is nothing to wait for."""
        return self._doing

    def wait(self, seconds: float) -> bool:
        """Wait until no job is followed any more; return whether that came true in time."""
        end = time.monotonic() + seconds
        while self._threads or self._refreshes:
            for thread in [*self._threads.values(), *self._refreshes]:
                thread.join(max(0.0, end - time.monotonic()))
                if thread.is_alive():
                    return False
            self._forget_ended_threads()
        return True

    def _refuse_if_busy(self, workspace: Workspace, kind: str) -> None:
        for run_id, job in list(self._active.items()):
            if _is_quiet(run_id):
                self._end(job, self._threads[run_id])
            elif not _goes_on(job):
                self._threads[run_id].join(ENDING_SECONDS)
        if kind in LOOKING_KINDS:
            return
        others = [job for job in running_jobs(workspace) if not _is_ours(job)]
        known = {job.run_id: job for job in [*self._active.values(), *others]}
        loud = [job for job in known.values() if not _is_quiet(job.run_id) and _goes_on(job)]
        if loud:
            raise BusyError(
                f"The job {loud[0].run_id} is still going on.",
                remedy="Wait for its end, or stop it first.",
            )

    def _end(self, job: Job, thread: threading.Thread) -> None:
        """Kill a job and wait; asked again, as its worker may run before we know its process."""
        end = time.monotonic() + ENDING_SECONDS
        while thread.is_alive() and time.monotonic() < end:
            job.kill()
            thread.join(KILLING_SECONDS)

    def _refuse_if_impossible(self, kind: str) -> None:
        overlay = self.host.overlay()
        if overlay is None or kind in LOOKING_KINDS:
            return
        state = overlay.state()
        if state.kind == "unsupported_torch":
            raise OverlayError(state.message, remedy=state.remedy)

    def _spawn(self, job: Job, work: Callable[[], None]) -> None:
        self._active[job.run_id] = job
        thread = threading.Thread(target=work, name=f"dreambooth {job.run_id}", daemon=True)
        thread.start()
        self._forget_ended_threads()
        self._threads[job.run_id] = thread

    def _forget_ended_threads(self) -> None:
        self._threads = {name: t for name, t in self._threads.items() if t.is_alive()}
        self._refreshes = [t for t in self._refreshes if t.is_alive()]

    def _conduct(self, workspace: Workspace, job: Job, kind: str) -> None:
        """Prepare, start the worker and follow it; what goes wrong before it runs ends the job."""
        with ExitStack() as room:
            room.callback(self._active.pop, job.run_id, None)
            try:
                worker = self._prepare(job, kind, room)
                _tell(job, PhaseStarted(STARTING))
                begun = begin(workspace, job, worker)
            except _StoppedEarly:
                self._end_early(workspace, job, JobStopped(0, {"stopped": True, "step": 0}))
                return
            except DreamboothError as error:
                self._give_up(workspace, job, error)
                return
            except BaseException as error:
                what = f"The job could not be started: {type(error).__name__}: {error}"
                remedy = "The console that the WebUI was started from says where."
                self._give_up(workspace, job, JobFailedError(what, remedy=remedy))
                raise
            finally:
                self._say("")
            self._active[job.run_id] = begun
            self._follow(begun)

    def _take_over(self, job: Job) -> None:
        """Follow a job that somebody else started, such as this host before it was restarted."""
        with ExitStack() as room:
            room.callback(self._active.pop, job.run_id, None)
            self._make_room(read_run(job.folder).kind, room, job.run_id)
            self._follow(job)

    def _prepare(self, job: Job, kind: str, room: ExitStack) -> WorkerPython:
        worker = self.host.worker()
        if kind not in LOOKING_KINDS:
            self._make_overlay(job)
            if wants_eight_bit(kind, read_run(job.folder).config):
                worker = with_eight_bit(worker, self._installing(job))
        if kind in HEAVY_KINDS:
            self._say(WAITING)
            _tell(job, PhaseStarted(WAITING))
        self._make_room(kind, room, job.run_id)
        if kind in HEAVY_KINDS and not self.host.generation_allowed():
            _tell(job, Notice("info", HELD))
        _refuse_if_stopped(job)
        return worker

    def _make_overlay(self, job: Job) -> None:
        overlay = self.host.overlay()
        if overlay is None or overlay.state().ready:
            return
        overlay.make(self._installing(job))

    def _installing(self, job: Job) -> Report:
        """Return what tells of an installation and how far it is, and ends it if that is wished."""
        totals: list[int] = []

        def report(text: str, done: int, total: int) -> None:
            _refuse_if_stopped(job)
            doing = f"{INSTALLING}: {done} of {total} ({text})"
            if doing == self._doing:
                return
            self._say(doing)
            if totals != [total]:
                totals[:] = [total]
                _tell(job, PhaseStarted(INSTALLING, total, "steps"))
            _tell(job, PhaseProgress(INSTALLING, done, total))

        return report

    def _make_room(self, kind: str, room: ExitStack, run_id: str) -> None:
        """Free the host's memory until `room` is closed, and let it generate only if that is so."""
        if kind not in HEAVY_KINDS:
            return
        if not self.host.generation_allowed():
            room.enter_context(self.host.hold_generation())
        room.callback(self._reclaim, run_id)
        self.host.release_memory()

    def _reclaim(self, run_id: str) -> None:
        if set(self._active) <= {run_id}:
            self.host.reclaim_memory()

    def _follow(self, job: Job) -> None:
        """Read what the worker reports, until its end, which is written down if it could not."""
        event: Event | None = None
        for event in job.events():
            if isinstance(event, CheckpointSaved):
                self._refresh(Path(event.path), event.sha256)
        if isinstance(event, JobFailed) and event.error == "WorkerDied":
            _tell(job, event)

    def _refresh(self, path: Path, sha256: str) -> None:
        """Tell the host of a new file, in a thread, as reading its list of files takes a while."""
        told = (path, sha256)
        thread = threading.Thread(target=self.host.checkpoint_saved, args=told, daemon=True)
        thread.start()
        self._refreshes.append(thread)

    def _give_up(self, workspace: Workspace, job: Job, error: DreamboothError) -> None:
        self.problem = error
        name = type(error).__name__
        final = JobFailed(error.message, error.remedy, error.field, name, error.exit_code)
        self._end_early(workspace, job, final)

    def _end_early(self, workspace: Workspace, job: Job, final: JobFailed | JobStopped) -> None:
        """End a job before its worker starts; nothing is prepared any more once that is told."""
        self._say("")
        abandon(workspace, job, final)

    def _say(self, doing: str) -> None:
        self._doing = doing


@cache
def conductor() -> Conductor:
    """Return the conductor of this process."""
    return Conductor(current_host())


def _tell(job: Job, event: Event) -> None:
    """Report in the worker's place, while there is none."""
    EventWriter(events_path(job.folder)).emit(event)


def _is_quiet(run_id: str) -> bool:
    """Whether a run only looks; its id ends in its kind, and a number where there were several."""
    named = _RUN_ID.fullmatch(run_id)
    return named is not None and named["kind"] in LOOKING_KINDS


def _forget_old_looks(workspace: Workspace) -> None:
    """Delete the folders of runs that only looked, but for the newest and those that go on."""
    looks = [run_id for run_id in run_ids(workspace) if _is_quiet(run_id)]
    for run_id in looks[:-LOOKS_KEPT]:
        job = Job(run_id, workspace.run_folder(run_id))
        if not job.is_running():
            with suppress(OSError):
                disk.remove_folder(job.folder)


def _goes_on(job: Job) -> bool:
    """Whether a job has not come to its end; its process may need a moment more to go away."""
    events, _ = read_events(events_path(job.folder))
    return job.is_running() and not any(isinstance(event, FINAL_EVENTS) for event in events)


def _is_ours(job: Job) -> bool:
    """Whether this process only prepares the run, which it then follows or has given up."""
    named = read_process(job.folder)
    if named is None or not named.preparing:
        return False
    return named.is_here and named.pid == os.getpid()


def _refuse_if_stopped(job: Job) -> None:
    commands = CommandReader(job.folder / COMMANDS_FILE).poll()
    if any(command.name in STOP_COMMANDS for command in commands):
        raise _StoppedEarly
