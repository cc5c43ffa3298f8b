"""The plan of a training, asked for on two tabs: a quick job that looks and writes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.errors import DreamboothError, JobFailedError
from dreambooth_core.host.conductor import conductor
from dreambooth_core.job.launcher import Job
from dreambooth_core.job.run_view import RunReader, RunView
from dreambooth_core.ui.gradio_compat import listen
from dreambooth_core.ui.messages import explain, note
from dreambooth_core.ui.tabs.concepts import (
    ConceptsTab,
    show_summary,
    show_table,
    show_thumbnails,
)
from dreambooth_core.ui.tabs.saving import SavingTab, show_files
from dreambooth_core.ui.training_form import Updates, Values

POLL_SECONDS = 0.3
PATIENCE_SECONDS = 300.0
LOOKING = "Looking at the pictures ..."
UNUSABLE = "Some pictures or captions cannot be read: the Concepts tab says which."


class PlanView:
    """The places on two tabs where a plan is shown."""

    def __init__(self, concepts: ConceptsTab, saving: SavingTab) -> None:
        """Show plans on the two tabs."""
        self.concepts, self.saving = concepts, saving

    def wire(self, inputs: set[Any], read: Callable[[Values], TrainConfig]) -> None:
        """Let both buttons make the plan; `read` returns the settings on the page."""

        def make_plan(values: Values) -> Iterator[Updates]:
            yield {self.concepts.summary: note(LOOKING), self.saving.files: note(LOOKING)}
            try:
                view = followed(conductor().start("plan", read(values)))
            except DreamboothError as error:
                yield self._show_error(error)
            else:
                yield self._show(view)

        places = [
            self.concepts.summary,
            self.concepts.thumbnails,
            self.concepts.table,
            self.saving.files,
        ]
        for button in (self.concepts.button, self.saving.button):
            listen(button.click, make_plan, inputs, places)

    def _show(self, view: RunView) -> Updates:
        pictures = show_thumbnails(view.planned_images)
        return {
            self.concepts.summary: show_summary(view),
            self.concepts.thumbnails: gr.update(value=pictures, visible=bool(pictures)),
            self.concepts.table: show_table(view.planned_images),
            self.saving.files: show_files(view.planned_files)
            if view.planned_files
            else note(UNUSABLE, "error"),
        }

    def _show_error(self, error: DreamboothError) -> Updates:
        return {
            self.concepts.summary: explain(error),
            self.concepts.thumbnails: gr.update(visible=False),
            self.concepts.table: "",
            self.saving.files: explain(error),
        }


def followed(job: Job) -> RunView:
    """Return a plan's run at its end; raises JobFailedError if it failed or takes too long."""
    reader = RunReader(job.folder)
    end = time.monotonic() + PATIENCE_SECONDS
    while not (view := reader.poll()).ended:
        if time.monotonic() > end:
            job.kill()
            raise JobFailedError("Looking at the pictures takes too long.", remedy="Try again.")
        time.sleep(POLL_SECONDS)
    if view.state == "failed":
        raise JobFailedError(view.message, remedy=view.remedy, field=view.field)
    return view
