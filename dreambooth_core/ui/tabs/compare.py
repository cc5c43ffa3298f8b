"""The Compare tab: the newest comparison of the model's checkpoints, and which one to keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from dreambooth_core.config.concept import Concept
from dreambooth_core.config.schema import CompareConfig
from dreambooth_core.demo import known_subject
from dreambooth_core.errors import DreamboothError
from dreambooth_core.job.comparison import Comparison, last_comparison, measure_text
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.ui.controls import Fields
from dreambooth_core.ui.gradio_compat import make, picture_display, thumbnail, visibility
from dreambooth_core.ui.messages import explain, heading, hint, note, table
from dreambooth_core.ui.training_form import Updates

HINT = "The same prompts and seeds with the model as created and with each saved checkpoint."
EMPTY = "There is no comparison of this model yet: press Compare checkpoints, in the run panel."
PROMPTS = ("prompts", "negative_prompt", "checkpoints")
DRAWING = ("seeds_per_prompt", "seed", "steps", "cfg_scale", "sampler")
GRID_PIXELS = 2400
SURE = 0.5
"""Subject fidelity from which the judge rather sees the subject than not."""

FAINT = "hardly shows the subject: train on, or compare with other prompts and settings (below)."
MEASURES = {
    "checkpoint": "Checkpoint",
    "subject_fidelity": "Subject fidelity\u00a0\u2191",
    "prompt_fidelity": "Prompt fidelity\u00a0\u2191",
    "class_leak": "Class leak\u00a0\u2193",
    "diversity": "Diversity\u00a0\u2191",
    "drift": "Drift\u00a0\u2193",
    "score": "Score\u00a0\u2191",
    "keep": "",
}
LEGEND = "\u2191 more is better, \u2193 less is better. The first row is the model as created."


class CompareTab:
    """What a comparison draws, and what the newest one found."""

    def __init__(self) -> None:
        """Place everything inside the current tab."""
        self.fields = Fields(CompareConfig, "compare")
        gr.HTML(heading("Which checkpoint to keep", HINT))
        self.verdict = gr.HTML(note(EMPTY), elem_id="dreambooth_compare_verdict")
        self.table = gr.HTML("", elem_id="dreambooth_compare_table")
        self.grid = picture_display(label="Comparison", elem_id="dreambooth_compare_grid")
        self.about = gr.HTML("", elem_id="dreambooth_compare_about")
        with make(gr.Accordion, label="What the next comparison draws", open=False):
            with make(gr.Row, elem_classes=["dreambooth-fields"]):
                self.fields.place(*PROMPTS)
            with make(gr.Row, elem_classes=["dreambooth-fields"]):
                self.fields.place(*DRAWING)

    def inputs(self) -> set[Any]:
        """Return every component that reading the settings needs."""
        return set(self.fields.components().values())

    @property
    def displays(self) -> list[Any]:
        """Return every component that showing a comparison changes."""
        return [self.verdict, self.table, self.grid, self.about]

    def read(self, values: Mapping[Any, Any], model: str, concepts: list[Concept]) -> CompareConfig:
        """Return what to compare; what is learned is measured if it is the built-in subject."""
        return self.fields.read(values, {"model": model, "subject": known_subject(concepts)})

    def show(self, workspace: Workspace, model: str) -> Updates:
        """Return the updates that show a model's newest comparison."""
        try:
            found = last_comparison(workspace, model) if model else None
            picture = thumbnail(found.grid, GRID_PIXELS) if found else None
        except DreamboothError as error:
            return self._show(explain(error), "", None, "")
        except OSError as error:
            return self._show(note(f"The sheet cannot be read: {error}", "error"), "", None, "")
        if found is None:
            return self._show(note(EMPTY), "", None, "")
        return self._show(show_verdict(found), show_numbers(found), picture, show_about(found))

    def _show(self, verdict: str, numbers: str, picture: Any, about: str) -> Updates:
        shown = gr.update(value=picture, visible=visibility(picture is not None))
        parts = {self.verdict: verdict, self.table: numbers, self.about: about}
        return {**parts, self.grid: shown}


def show_verdict(found: Comparison) -> str:
    """Return which checkpoint is the one to keep, as HTML."""
    if not found.measured:
        return note("Look at the pictures: only the built-in subject can be measured.")
    if found.kept <= 0:
        return note("No checkpoint is better than the model as created.", "warning")
    row = found.rows[found.kept]
    name, likeness = row.get("checkpoint", ""), row.get("subject_fidelity")
    if isinstance(likeness, float) and likeness < SURE:
        return note(f"{name} is the best of these, but {FAINT}", "warning")
    return note(f"Keep {name}.", "good")


def show_numbers(found: Comparison) -> str:
    """Return the measured numbers as a table, the row to keep marked; "" if there are none."""
    if not found.measured:
        return ""
    keys = [key for key in MEASURES if key in found.rows[0]]
    rows = [[_cell(row.get(key, "")) for key in keys] for row in found.rows]
    return table([MEASURES[key] for key in keys], rows, marked=found.kept) + hint(LEGEND)


def show_about(found: Comparison) -> str:
    """Return how the pictures were drawn and where they are, as HTML."""
    return "".join(hint(text) for text in [*found.remarks, str(found.grid)])


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "keep" if value else ""
    return measure_text(value) if isinstance(value, float) else str(value)
