"""The Saving tab: what a training writes and when, and the list of the files it will write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gradio as gr

from dreambooth_core.job.events import FilesPlanned, PlannedFile
from dreambooth_core.ui.controls import side_button
from dreambooth_core.ui.gradio_compat import make
from dreambooth_core.ui.messages import heading, note, size_text, table
from dreambooth_core.ui.training_form import TrainingForm

WHEN = (
    "saving.save_every_epochs",
    "saving.save_every_steps",
    "saving.save_at_end",
    "saving.save_on_stop",
)
WHAT = ("saving.name", "saving.subfolder", "saving.dtype", "saving.use_ema")
STATES = ("saving.state_every_epochs", "saving.keep_states")
PREVIEWS = ("previews.every_epochs", "previews.every_steps")
EMPTY = "Press the button to see which files this training would write, and how large they are."


class SavingTab:
    """The settings of what is written, and the list of files."""

    def __init__(self, form: TrainingForm) -> None:
        """Place everything inside the current tab."""
        with make(gr.Row):
            with make(gr.Column, min_width=340):
                gr.HTML(heading("When", "Checkpoints that the WebUI loads."))
                form.train.place(*WHEN)
            with make(gr.Column, min_width=340):
                gr.HTML(heading("What", "The checkpoint files themselves."))
                form.train.place(*WHAT)
        gr.HTML(heading("States and previews", "To go on from later, and to look at."))
        with make(gr.Row, elem_classes=["dreambooth-fields", "dreambooth-framed"]):
            form.train.place(*STATES, *PREVIEWS)
            form.train.place(*other_outputs(form))
        with make(gr.Row, elem_classes=["dreambooth-title"]):
            gr.HTML(heading("Files of this run", "What training would write, with its size."))
            self.button = side_button("List the files", "files_button", min_width=200)
        self.files = gr.HTML(note(EMPTY), elem_id="dreambooth_files")


def other_outputs(form: TrainingForm) -> list[str]:
    """Return the settings of the section that no column names: those that came later."""
    named = {*WHEN, *WHAT, *STATES}
    return [path for path in form.train.paths("saving") if path not in named]


def show_files(planned: FilesPlanned | None) -> str:
    """Return the planned files as HTML, with their sum and the room on the disk."""
    if planned is None:
        return note(EMPTY)
    rows = [(_name(row), _size(row), row.when) for row in planned.rows]
    total = size_text(planned.needed_bytes)
    free = size_text(planned.free_bytes)
    fits = planned.needed_bytes <= planned.free_bytes
    words = f"Needs up to {total}; {free} are free on the disk."
    verdict = note(words if fits else f"{words} That is not enough.", "good" if fits else "error")
    folders = _folders(planned.rows)
    return verdict + table(("File", "Size", "When"), rows, "Nothing is written.") + folders


def _name(row: PlannedFile) -> str:
    """Return a file's name; a folder's, which has no ending, with that of the folder it is in."""
    path, kept = Path(row.path), "" if row.kept else " (deleted again by this run)"
    return f"{path.name if path.suffix else '/'.join(path.parts[-2:])}{kept}"


def _size(row: PlannedFile) -> str:
    return f"about {size_text(row.bytes)}" if row.estimated else size_text(row.bytes)


def _folders(rows: Sequence[PlannedFile]) -> str:
    folders = sorted({str(Path(row.path).parent) for row in rows})
    return table(("Written into",), [(folder,) for folder in folders])
