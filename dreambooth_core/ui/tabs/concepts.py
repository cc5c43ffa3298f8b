"""The Concepts tab: what to learn, and how each of its pictures will be described."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from dreambooth_core import demo
from dreambooth_core.config.concept import Concept
from dreambooth_core.errors import ConfigError
from dreambooth_core.job.events import PlannedImage, Preflight
from dreambooth_core.job.run_view import RunView
from dreambooth_core.ui.controls import side_button
from dreambooth_core.ui.gradio_compat import gallery, listen, make, thumbnail
from dreambooth_core.ui.messages import explain, heading, note, remark, size_text, table
from dreambooth_core.ui.training_form import TrainingForm, Updates, Values, blank_concept

INSTANCE = ("instance_folder", "instance_prompt", "instance_token", "class_token")
CLASS = (
    "class_images_per_instance_image",
    "class_prompt",
    "class_folder",
    "class_images_source",
    "class_negative_prompt",
)
CLASS_MAKING = ("class_steps", "class_cfg_scale", "class_sampler", "class_seed")
PREVIEWS = (
    "previews.prompts",
    "previews.negative_prompt",
    "previews.steps",
    "previews.cfg_scale",
    "previews.sampler",
    "previews.seed",
    "previews.use_ema",
)
KINDS = ("instance", "class")
MOST_ROWS = 500
MOST_THUMBNAILS = 48
EMPTY = "Press the button to see every picture with its final prompt before you train."
Change = Callable[[list[Concept], int], int]


class ConceptsTab:
    """The list of concepts, the editor of one of them, and the table of all pictures."""

    def __init__(self, form: TrainingForm) -> None:
        """Place everything inside the current tab."""
        self.form = form
        with make(gr.Row, elem_classes=["dreambooth-toolbar"]):
            form.place_picker()
            self.add = side_button("Add", "concept_add")
            self.duplicate = side_button("Duplicate", "concept_duplicate")
            self.remove = side_button("Remove", "concept_remove")
            self.example = side_button("Load the built-in example", "concept_example")
        self.message = gr.HTML("", elem_id="dreambooth_concept_message")
        with make(gr.Row):
            with make(gr.Column, min_width=340):
                gr.HTML(heading("Instance images", "The pictures of what is to be learned."))
                form.concept.place(*INSTANCE)
                form.concept.place("sample_prompts")
            with make(gr.Column, min_width=340):
                gr.HTML(heading("Class images", "Pictures of its kind, so that the rest stays."))
                form.concept.place(*CLASS)
                with make(gr.Row, elem_classes=["dreambooth-fields"]):
                    form.concept.place(*CLASS_MAKING)
        form.concept.place(*_later(form))
        previews = make(gr.Accordion, label="Preview pictures of all concepts", open=False)
        with previews, make(gr.Row, elem_classes=["dreambooth-fields"]):
            form.train.place(*PREVIEWS)
        with make(gr.Row, elem_classes=["dreambooth-title"]):
            gr.HTML(heading("Pictures and prompts", "What training would see, before it starts."))
            self.button = side_button("Check pictures and prompts", "plan", min_width=200)
        self.summary = gr.HTML(note(EMPTY), elem_id="dreambooth_plan_summary")
        self.thumbnails = gallery(
            label="Instance images",
            columns=8,
            visible=False,
            elem_classes=["dreambooth-pictures"],
        )
        self.table = gr.HTML("", elem_id="dreambooth_plan_table")

    def wire(self) -> None:
        """Let the list's buttons act."""
        form = self.form
        inputs, outputs = form.inputs(), [*form.outputs(), self.message]
        listen(form.picker.input, self._edit(pick), inputs, outputs)
        for button, change in ((self.add, add), (self.duplicate, duplicate), (self.remove, remove)):
            listen(button.click, self._edit(change), inputs, outputs)

    def _edit(self, change: Change) -> Callable[[Values], Updates]:
        """Return the handler that changes the list and shows the concept at its new place."""

        def edit(values: Values) -> Updates:
            state = values[self.form.state]
            try:
                concepts = self.form.concepts(values)
            except ConfigError as error:
                back = gr.update(value=state["index"])
                return {self.message: explain(error), self.form.picker: back}
            chosen = values[self.form.picker] if change is pick else state["index"]
            index = change(concepts, chosen if chosen is not None else 0)
            shown = self.form.show_concepts(state["model"], concepts, index)
            return {**shown, self.message: ""}

        return edit


def pick(concepts: list[Concept], index: int) -> int:
    """Go to a concept of the list."""
    return index


def add(concepts: list[Concept], index: int) -> int:
    """Add a blank concept at the end and go to it."""
    concepts.append(blank_concept())
    return len(concepts) - 1


def duplicate(concepts: list[Concept], index: int) -> int:
    """Put a copy of a concept behind it and go to the copy."""
    concepts.insert(index + 1, dataclasses.replace(concepts[index]))
    return index + 1


def remove(concepts: list[Concept], index: int) -> int:
    """Take a concept out and go to the one before it."""
    del concepts[index]
    return max(0, index - 1)


def example_settings(model: str) -> Any:
    """Return the built-in example's settings, which fit the built-in checkpoint."""
    config = demo.training_config(model)
    concept = dataclasses.replace(config.concepts[0], sample_prompts=demo.PROMPTS[:2])
    return dataclasses.replace(config, concepts=[concept])


def show_summary(view: RunView) -> str:
    """Return what a plan says about class images, and what was found before the start, as HTML."""
    instance = sum(row.kind == "instance" for row in view.planned_images)
    lines = [note(f"{instance} instance images.", "good")] if instance else []
    for planned in view.planned_class_images:
        made = f", {planned.to_generate} to generate" if planned.to_generate else ""
        words = f"{planned.found + planned.own} found and fitting{made}"
        lines.append(note(f"Concept {planned.concept}, class images: {words}."))
    lines += [note(notice.message, notice.level) for notice in view.notices]
    lines += show_preflight(view.preflight)
    return "".join(lines) or note("There is nothing to show.")


def show_preflight(found: Preflight | None) -> list[str]:
    """Return what was found before a training with its remedies, and the memory, as HTML."""
    if found is None:
        return []
    lines = [remark(each) for each in found.findings]
    lines = lines or [note("Nothing was found that stands in the way.", "good")]
    return [*lines, show_memory(found)] if found.memory else lines


def show_memory(found: Preflight) -> str:
    """Return the table of what each part of a training takes, and what there is, as HTML."""
    gpu = any(phase.gpu_bytes for phase in found.memory)
    rows = [(phase.phase, phase.gpu_bytes, phase.ram_bytes) for phase in found.memory]
    cells = [(name, *(f"about {size_text(s)}" for s in sizes[not gpu :])) for name, *sizes in rows]
    sizes = (found.gpu_bytes, found.ram_bytes)[not gpu :]
    there = ("there is", *(size_text(size) if size else "not known" for size in sizes))
    headings = (found.device, "Main memory")[not gpu :]
    return table(("Memory, estimated", *headings), [*cells, there])


def show_table(rows: list[PlannedImage]) -> str:
    """Return the tables of all shapes, and of the final prompt of every picture, as HTML."""
    many = len({row.concept for row in rows}) > 1
    cells = [_cells(row, many) for row in rows[:MOST_ROWS]]
    headings = ("Picture", "Kind", "Final prompt", "Shape", "Shown")
    more = len(rows) - MOST_ROWS
    rest = note(f"{more} more pictures are not listed.") if more > 0 else ""
    return show_shapes(rows) + table((*(("Concept",) if many else ()), *headings), cells) + rest


def show_shapes(rows: list[PlannedImage]) -> str:
    """Return the table of how many pictures each shape has (its bucket), as HTML."""
    counts = {kind: Counter(r.bucket for r in rows if r.kind == kind) for kind in KINDS}
    shapes = sorted({row.bucket for row in rows}, key=lambda text: [*map(int, text.split("x"))])
    cells = [(shape, *(counts[kind][shape] for kind in KINDS)) for shape in shapes]
    return table(("Shape", "Instance images", "Class images"), cells)


def show_thumbnails(rows: list[PlannedImage]) -> list[tuple[Any, str]]:
    """Return small copies of the instance images with their prompts, the first few of many."""
    files = [row for row in rows if row.kind == "instance"][:MOST_THUMBNAILS]
    shown = []
    for row in files:
        try:
            shown.append((thumbnail(Path(row.file)), row.prompt))
        except OSError:
            continue  # it is in the table all the same, and training will say what is wrong
    return shown


def _cells(row: PlannedImage, many: bool) -> tuple[object, ...]:
    kind = row.kind if row.exists else f"{row.kind}, to generate"
    cells = (Path(row.file).name, kind, row.prompt, row.bucket, f"{row.repeats} times")
    return (row.concept, *cells) if many else cells


def _later(form: TrainingForm) -> list[str]:
    """Return the settings of a concept that no column names: those that came later."""
    named = {*INSTANCE, "sample_prompts", *CLASS, *CLASS_MAKING}
    return [path for path in form.concept.specs if path not in named]
