"""A job in a terminal: a bar per phase, the step's numbers beside it, paths and notes above."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from dreambooth_core.cli.views import View, count_of, lines_of
from dreambooth_core.job.events import FINAL_EVENTS, Event, PhaseProgress, PhaseStarted, StepDone
from dreambooth_core.job.kept import TRAINING
from dreambooth_core.job.run_view import duration


class TerminalView(View):
    """Bars with step, speed, time left and loss; everything else is printed above them."""

    def __init__(self, console: Console | None = None) -> None:
        """Draw on this console, or on the standard output."""
        self.console = console or Console()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._units: dict[str, str] = {}

    def __enter__(self) -> TerminalView:
        """Begin to draw."""
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the bars as they are and end."""
        self.progress.stop()

    def show(self, event: Event) -> None:
        """Draw one event."""
        if isinstance(event, PhaseStarted) and event.total:
            self._units[event.phase] = event.unit
            self._draw(event.phase, 0, event.total, "")
        elif isinstance(event, PhaseProgress):
            self._draw(event.phase, event.done, event.total, "")
        elif isinstance(event, StepDone):
            self._draw(TRAINING, event.step, event.total_steps, step_numbers(event))
        else:
            if isinstance(event, FINAL_EVENTS):
                self.progress.stop()
            for line in lines_of(event):
                self.say(line)

    def say(self, text: str) -> None:
        """Print a line above the bars, as it is and whole, so that paths can be copied."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _draw(self, name: str, done: int, total: int, numbers: str) -> None:
        count = count_of(done, total, self._units.get(name, ""))
        if name not in self._tasks:
            self._tasks[name] = self.progress.add_task(name, total=None, count="", numbers="")
        self.progress.update(
            self._tasks[name], completed=done, total=total or None, count=count, numbers=numbers
        )


def step_numbers(event: StepDone) -> str:
    """Return what stands beside the training bar."""
    return (
        f"{event.steps_per_second:.2f} it/s, {duration(event.eta_seconds)} left,"
        f" loss {event.loss:.4f}"
    )
