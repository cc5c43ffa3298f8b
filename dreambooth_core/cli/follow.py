"""Following a job to its end; Ctrl-C asks it to stop, and a second one kills it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from dreambooth_core.cli.views import View
from dreambooth_core.errors import DreamboothError
from dreambooth_core.job.commands import Command
from dreambooth_core.job.events import Event, JobFailed, JobFinished, JobStopped
from dreambooth_core.job.launcher import Job

STOPPED = 130
"""The exit code of a job that ended early because it was told to."""


class Detached(Exception):
    """Ctrl-C while watching: the run goes on without us."""


class Interrupter:
    """Turns Ctrl-C into a command: the first press stops the job, the second kills it."""

    def __init__(self, view: View) -> None:
        """Tell through `view` what a press does; the job comes when it is started."""
        self.view = view
        self.presses = 0
        self.job: Job | None = None

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Act on one press."""
        self.presses += 1
        self._act()

    def attach(self, job: Job) -> None:
        """Take the started job, and do now what was pressed while it was being started."""
        self.job = job
        if self.presses:
            self._act()

    def _act(self) -> None:
        if self.job is None:
            return
        if self.presses == 1:
            try:
                self.job.send(Command("stop"))
            except DreamboothError as error:  # a full disk, say
                self.view.say(f"{error} Ctrl-C again kills the job now.")
                return
            self.view.say("Stopping after this step, then saving. Ctrl-C again kills the job now.")
        else:
            self.view.say("Killing the job; nothing more is saved.")
            self.job.kill()


def follow(start: Callable[[], Job], view: View) -> int:
    """Start a job and show it until it ends; return its exit code."""
    interrupter = Interrupter(view)
    with _on_sigint(interrupter):
        job = start()
        interrupter.attach(job)
        with view:
            return _show(job, view)


def watch(job: Job, view: View) -> int:
    """Show the job until it ends or Ctrl-C is pressed, which leaves it going."""

    def detach(signum: int, frame: FrameType | None) -> None:
        raise Detached

    try:
        with _on_sigint(detach), view:
            return _show(job, view)
    except Detached:
        view.say(f"The run goes on. Stop it with: stop {job.run_id}")
        return STOPPED


def exit_code(final: Event) -> int:
    """Return the exit code that a final event means."""
    if isinstance(final, JobFinished):
        return 0
    if isinstance(final, JobStopped):
        return STOPPED
    return final.exit_code if isinstance(final, JobFailed) else 1


def _show(job: Job, view: View) -> int:
    final: Event = JobFailed("The run left no events.")
    for event in job.events():
        view.show(event)
        final = event
    return exit_code(final)


@contextmanager
def _on_sigint(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
