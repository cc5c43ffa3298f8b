"""The run panel, on every tab: start, stop, save and sample, and see how the job stands.

The panel keeps nothing of a job: each look asks the conductor which job there is and reads what is
new in its folder, so that a page that was closed, or a host that was restarted, finds it again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import gradio as gr

from dreambooth_core.config.schema import JobConfig
from dreambooth_core.errors import DreamboothError
from dreambooth_core.host.base import Host
from dreambooth_core.host.conductor import conductor
from dreambooth_core.job.commands import Command
from dreambooth_core.job.launcher import Job
from dreambooth_core.job.log import log_tail
from dreambooth_core.job.run_view import RunReader, RunView
from dreambooth_core.ui import gradio_compat
from dreambooth_core.ui.messages import explain, note
from dreambooth_core.ui.run_html import (
    caption,
    curves_html,
    log_html,
    progress_html,
    summary_html,
)

POLL_SECONDS = 1.0
READS_PER_LOOK = 4
"""So much of a long run is read at a look; the next look goes on with it."""
PICTURES = 24
PICTURE_PIXELS = 384
LOG_LINES = 100
LINES_BESIDE_PROGRESS = 3
COMPARE = "compare"
STARTERS = ("train", "dry_run", "class_images", "checkpoint", "compare")
STOP, END_AT_ONCE = "Stop now", "End at once (saves nothing)"

LABELS = {
    "train": "Train",
    "stop": STOP,
    "stop_after_epoch": "Stop after this epoch",
    "save": "Save now",
    "sample": "Sample now",
    "dry_run": "Try one step",
    "class_images": "Generate class images",
    "checkpoint": "Generate checkpoint",
    "compare": "Compare checkpoints",
}
ANSWERS = {
    "stop": "The job stops after the step it is in.",
    "stop_after_epoch": "The job stops at the end of this epoch.",
    "save": "A checkpoint is written after the step that is going on.",
    "sample": "Pictures are made after the step that is going on.",
}

Values = Mapping[Any, Any]
MakeConfig = Callable[[Values], JobConfig]
Updates = dict[Any, Any]


class Starter(Protocol):
    """What the panel needs of the conductor."""

    problem: DreamboothError | None

    def start(self, kind: str, config: Any) -> Job:
        """Start a job."""

    def job(self) -> Job | None:
        """Return the job to show."""

    def preparing(self) -> str:
        """Return what is done before the worker starts."""


def build_run_panel(host: Host, ask: Callable[[], Starter] = conductor) -> RunPanel:
    """Place the panel in the present Blocks; it shows the jobs of the process's conductor."""
    panel = RunPanel(ask, host)
    panel.place()
    return panel


def buttons_enabled(view: RunView | None, preparing: str) -> dict[str, bool]:
    """Return which buttons can be pressed as the run stands."""
    going_on = view is not None and not view.ended
    trains = going_on and view is not None and view.kind == "train" and not preparing
    listens = trains and view is not None and view.state != "stopping"
    return {
        **dict.fromkeys(STARTERS, not (going_on or preparing)),
        "stop": going_on or bool(preparing),
        **dict.fromkeys(("stop_after_epoch", "save", "sample"), listens),
    }


class RunPanel:
    """The buttons and displays of the run panel."""

    def __init__(self, ask: Callable[[], Starter], host: Host) -> None:
        """Show what the conductor that `ask` returns does for a host."""
        self.host = host
        self._ask = ask
        self._reader: RunReader | None = None
        self._reading = threading.RLock()
        self._after_comparing: list[Any] = []
        self._show_comparison: Callable[[str], Updates] = lambda model: {}
        self.buttons: dict[str, Any] = {}

    @property
    def train_button(self) -> Any:
        """The button that starts a training."""
        return self.buttons["train"]

    def place(self) -> None:
        """Make the components, and let them follow the job while the page is open."""
        make = gradio_compat.make
        self.seen = gr.State({})
        with gr.Column(elem_id="dreambooth_run_panel"):
            with gr.Row():
                for name, label in LABELS.items():
                    look = {"train": "primary", "stop": "stop"}.get(name, "secondary")
                    self.buttons[name] = make(
                        gr.Button,
                        value=label,
                        variant=look,
                        interactive=name in STARTERS,
                        elem_id=f"dreambooth_run_{name}",
                        size="sm",
                        min_width=110,
                    )
            self.answer = make(gr.HTML, value="", elem_id="dreambooth_run_answer")
            self.progress = make(gr.HTML, value="", elem_id="dreambooth_run_progress")
            self.summary = make(gr.HTML, value="", elem_id="dreambooth_run_summary")
        self.outcome = make(
            gr.Accordion,
            label="Curves and pictures",
            open=True,
            visible=gradio_compat.visibility(False),
            elem_id="dreambooth_run_outcome",
        )
        with self.outcome:
            self.curves = make(gr.HTML, value="", elem_id="dreambooth_run_curves")
            self.gallery = gradio_compat.gallery(
                label="Pictures, newest first",
                columns=5,
                elem_id="dreambooth_run_gallery",
                elem_classes=["dreambooth-pictures"],
            )
        with gr.Accordion("Log", open=False, elem_id="dreambooth_run_log_box"):
            self.log = make(gr.HTML, value="", elem_id="dreambooth_run_log")

    @property
    def displays(self) -> list[Any]:
        """Return every component that following a job changes."""
        shown = [self.progress, self.summary, self.curves, self.gallery, self.log]
        return [*self.buttons.values(), *shown, self.outcome, self.seen, *self._after_comparing]

    def follow(self, show_comparison: Callable[[str], Updates], shown: list[Any]) -> None:
        """Let the panel follow the job; `show_comparison` of a model changes `shown` at its end."""
        self._show_comparison, self._after_comparing = show_comparison, shown
        outputs = [self.answer, *self.displays]
        for name in ANSWERS:
            button, press = self.buttons[name], partial(self.press, name)
            gradio_compat.listen(button.click, press, [self.seen], outputs)
        gradio_compat.on_load(self.refresh, [self.seen], outputs)
        gradio_compat.poll(self.refresh, POLL_SECONDS, [self.seen], outputs)

    def bind_train(self, inputs: set[Any], make_config: MakeConfig) -> None:
        """Let Train start a training with the settings that `make_config` reads from `inputs`."""
        self._bind_start("train", "train", inputs, make_config)

    def bind_dry_run(self, inputs: set[Any], make_config: MakeConfig) -> None:
        """Let Try one step do so with the settings that `make_config` reads from `inputs`."""
        self._bind_start("dry_run", "dry-run", inputs, make_config)

    def bind_class_images(self, inputs: set[Any], make_config: MakeConfig) -> None:
        """Let Generate class images do so with the settings read from `inputs`."""
        self._bind_start("class_images", "class-images", inputs, make_config)

    def bind_save(self, inputs: set[Any], make_config: MakeConfig) -> None:
        """Let Generate checkpoint write one with the settings read from `inputs`."""
        self._bind_start("checkpoint", "save", inputs, make_config)

    def bind_compare(self, inputs: set[Any], make_config: MakeConfig) -> None:
        """Let Compare checkpoints draw the grid with the settings read from `inputs`."""
        self._bind_start("compare", "compare", inputs, make_config)

    def look(self) -> tuple[RunView | None, Path | None]:
        """Return how the present or last job stands, and its folder; None before the first."""
        job = self._ask().job()
        if job is None:
            return None, None
        with self._reading:
            if self._reader is None or self._reader.folder != job.folder:
                self._reader = RunReader(job.folder, job)
            self._reader.job = job
            return self._reader.poll(READS_PER_LOOK), job.folder

    def refresh(self, seen: dict[str, Any]) -> Updates:
        """Return what changed since this page was last told; `seen` remembers what it was told."""
        try:
            with self._reading:
                return self._show(seen)
        except OSError as error:
            return {self.answer: note(f"The job's folder cannot be read: {error}", "error")}

    def press(self, name: str, seen: dict[str, Any]) -> Updates:
        """Ask the job that is going on for something."""
        answer = self._send(name)
        return {**self.refresh(seen), self.answer: answer}

    def start(self, kind: str, make_config: MakeConfig, values: Values) -> Updates:
        """Start a job with the settings on the page, or say why that cannot be."""
        try:
            self._ask().start(kind, make_config(values))
            answer = ""
        except DreamboothError as error:
            answer = explain(error)
        except OSError as error:
            answer = note(f"The job could not be started: {error}", "error")
        return {**self.refresh(values[self.seen]), self.answer: answer}

    def _show(self, seen: dict[str, Any]) -> Updates:
        view, folder = self.look()
        starter = self._ask()
        preparing = starter.preparing()
        lines = log_tail(folder, LOG_LINES) if folder else []
        texts = {
            "progress": progress_html(
                view,
                preparing=preparing,
                problem=starter.problem,
                log=lines[-LINES_BESIDE_PROGRESS:],
            ),
            "summary": summary_html(view),
            "curves": curves_html(view),
            "log": log_html(lines, view.log_path if view else ""),
        }
        updates: Updates = {
            getattr(self, name): _if_new(seen, name, text, text) for name, text in texts.items()
        }
        updates[self.gallery] = self._pictures(view, seen)
        updates |= self._outcome(view, bool(texts["curves"] or seen["gallery"]), seen)
        updates[self.answer] = _if_over(seen, view)
        return {**updates, **self._buttons(view, preparing, seen), self.seen: seen}

    def _bind_start(self, name: str, kind: str, inputs: set[Any], make_config: MakeConfig) -> None:
        start = partial(self.start, kind, make_config)
        outputs = [self.answer, *self.displays]
        click = self.buttons[name].click
        gradio_compat.listen(click, start, {*inputs, self.seen}, outputs, waiting=True)

    def _send(self, name: str) -> str:
        view, _ = self.look()
        job = self._ask().job()
        if job is None or view is None or view.ended:
            return note("No job is going on.", "warning")
        if name == "stop" and view.stop_asked == "stop":
            job.kill()
            return note("The job was ended at once; nothing more is saved.", "warning")
        try:
            job.send(Command(name))
        except (OSError, DreamboothError) as error:
            return note(f"The job could not be told: {error}", "error")
        return note(ANSWERS[name])

    def _buttons(self, view: RunView | None, preparing: str, seen: dict[str, Any]) -> Updates:
        stopping = view is not None and not view.ended and view.stop_asked == "stop"
        updates: Updates = {}
        for name, enabled in buttons_enabled(view, preparing).items():
            label = END_AT_ONCE if name == "stop" and stopping else LABELS[name]
            change = {"value": label, "interactive": enabled}
            updates[self.buttons[name]] = _if_new(seen, f"button {name}", change, change)
        return updates

    def _outcome(self, view: RunView | None, any_shown: bool, seen: dict[str, Any]) -> Updates:
        """Show curves and pictures once there are some, and tell of a comparison at its end."""
        updates = {}
        look = {"visible": gradio_compat.visibility(any_shown)}
        updates[self.outcome] = _if_new(seen, "outcome", look, look)
        if view is None or view.kind != COMPARE or not view.ended:
            return updates
        is_told = seen.get("compared") == view.run_id
        seen["compared"] = view.run_id
        return updates if is_told else {**updates, **self._show_comparison(view.model)}

    def _pictures(self, view: RunView | None, seen: dict[str, Any]) -> Any:
        """Return the update with new pictures; the sheet of a comparison has a tab of its own."""
        samples = view.samples[:PICTURES] if view and view.kind != COMPARE else []
        paths = [sample.path for sample in samples]
        if seen.get("gallery") == paths:
            return gr.update()
        seen["gallery"] = paths
        found = (
            (_picture(s.path, PICTURE_PIXELS), caption(s.prompt, s.step, s.seed)) for s in samples
        )
        return gr.update(value=[pair for pair in found if pair[0] is not None])


def _if_new(seen: dict[str, Any], name: str, mark: Any, value: Any) -> Any:
    """Return an update to `value` unless the page was told the same before."""
    if name in seen and seen[name] == mark:
        return gr.update()
    seen[name] = mark
    return gr.update(**value) if isinstance(value, dict) else gr.update(value=value)


def _if_over(seen: dict[str, Any], view: RunView | None) -> Any:
    """Return an update that takes an answer away once the job has moved on from it."""
    now = (view.run_id, view.state) if view else None
    before = seen.get("standing", now)
    seen["standing"] = now
    return gr.update() if before == now else gr.update(value="")


@lru_cache(maxsize=2 * PICTURES)
def _picture(path: str, pixels: int) -> Any:
    """Return a copy of a picture of at most so many pixels a side; None if it is gone."""
    try:
        return gradio_compat.thumbnail(Path(path), pixels)
    except OSError:
        return None
