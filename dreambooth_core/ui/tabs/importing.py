"""The section of the Select tab that takes over another trainer's settings and models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from dreambooth_core.config.imports import apply_import, read_import, read_settings_text
from dreambooth_core.config.imports.creating import creation, free_name
from dreambooth_core.config.imports.reading import read_text
from dreambooth_core.config.imports.report import (
    AS_LABELLED,
    BEHAVIOURS,
    FoundModel,
    Import,
    Line,
    Snapshot,
    in_order,
    summary,
)
from dreambooth_core.config.settings_store import difference
from dreambooth_core.config.validate import check
from dreambooth_core.errors import InputError
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.ui.controls import side_button
from dreambooth_core.ui.gradio_compat import listen, make, uploaded_path, visibility
from dreambooth_core.ui.messages import hint, label_of, note, table
from dreambooth_core.ui.training_form import TrainingForm, Updates, Values, guarded

LABEL = "Import from another trainer: settings, concepts, models"
HINT = (
    "Of sd_dreambooth_extension: db_config.json, concepts_list.json or a model's folder. Of kohya's"
    " trainer: settings as .json or .toml, and folders of pictures. Nothing there is changed."
)
HEADINGS = ("In the file", "Here", "What became of it")
Start = Callable[[str, Any], Any]


class ImportSection:
    """What to import, the report of it, and the buttons that take it over."""

    def __init__(self, form: TrainingForm, workspace: Callable[[], Workspace]) -> None:
        """Place everything inside the current container."""
        self.form, self.workspace = form, workspace
        with make(gr.Accordion, label=LABEL, open=False, elem_id="dreambooth_import"):
            gr.HTML(hint(HINT))
            with make(gr.Row, elem_classes=["dreambooth-with-button"]):
                self.source = make(
                    gr.Textbox,
                    label="File, folder or text",
                    info="A path on the computer that the WebUI runs on, or a file's text.",
                    elem_id="dreambooth_import_source",
                )
                self.read = side_button("Read", "import_read", variant="primary")
            with make(gr.Row, elem_classes=["dreambooth-with-button"]):
                self.behaviour = make(
                    gr.Radio,
                    choices=[(label, value) for value, label in BEHAVIOURS.items()],
                    value=AS_LABELLED,
                    label="Where a control did something else there than its label says",
                    elem_id="dreambooth_import_behaviour",
                )
                self.upload = make(
                    gr.UploadButton,
                    label="Upload a file",
                    file_types=[".json", ".toml"],
                    size="sm",
                )
            self.message = gr.HTML("", elem_id="dreambooth_import_message")
            self._place_actions()
            self.report = gr.HTML("", elem_id="dreambooth_import_report")
        self.found = gr.State(None)

    def _place_actions(self) -> None:
        hidden = {"visible": visibility(False)}
        with make(gr.Row, elem_classes=["dreambooth-with-button"]):
            self.apply = make(
                gr.Button,
                value="Take over the settings",
                variant="primary",
                elem_id="dreambooth_import_apply",
                **hidden,
            )
        with make(gr.Row, elem_classes=["dreambooth-with-button"]):
            name, part = "dreambooth_import_name", "dreambooth_import_weights"
            self.name = make(gr.Textbox, label="New model", elem_id=name, max_lines=1, **hidden)
            self.weights = make(
                gr.Dropdown, choices=[], value=None, label="Made of", elem_id=part, **hidden
            )
            self.ema = make(gr.Checkbox, label="Extract EMA weights", value=False, **hidden)
            self.create = make(
                gr.Button, value="Make a model", elem_id="dreambooth_import_create", **hidden
            )

    def wire(self, start: Start) -> None:
        """Let the controls act; `start` begins a job and raises DreamboothError if it cannot."""
        makes = [self.name, self.weights, self.ema, self.create]
        shown = [self.report, self.apply, *makes, self.found, self.message]
        asked = {self.source, self.behaviour}
        read = guarded(self.message, self._read)
        listen(self.read.click, read, asked, shown)
        listen(self.source.submit, read, asked, shown)
        upload = guarded(self.message, self._read_upload)
        listen(self.upload.upload, upload, {self.upload, self.behaviour}, [*shown, self.source])
        again = guarded(self.message, self._read_again)
        listen(self.behaviour.change, again, {*asked, self.found}, shown)
        taken = guarded(self.message, self._apply)
        inputs = {*self.form.inputs(), self.found}
        listen(self.apply.click, taken, inputs, [*self.form.outputs(), self.message])

        def create(values: Values) -> Updates:
            return self._create(values, start)

        asked = {self.found, self.name, self.weights, self.ema}
        listen(self.create.click, guarded(self.message, create), asked, self.message, waiting=True)

    def _read(self, values: Values) -> Updates:
        return self._show(read_import(values[self.source] or "", values[self.behaviour]))

    def _read_again(self, values: Values) -> Updates:
        return self._read(values) if values[self.found] else {}

    def _read_upload(self, values: Values) -> Updates:
        path = uploaded_path(values[self.upload])
        if path is None:
            return {}
        text = read_text(path)
        found = read_settings_text(text, path.name, values[self.behaviour])
        # Its folder is a temporary one, so what was in the file is what can be read again.
        return {**self._show(found), self.source: text}

    def _show(self, found: Import) -> Updates:
        model = found.model
        is_there = visibility(model is not None)
        labels = [snapshot.label for snapshot in model.sources] if model else []
        has_ema = visibility(bool(model and model.has_ema))
        return {
            self.report: show_report(found),
            self.apply: gr.update(visible=visibility(bool(found.settings or found.concepts))),
            self.name: gr.update(
                value=free_name(self.workspace(), model) if model else "", visible=is_there
            ),
            self.weights: gr.update(
                choices=labels, value=labels[0] if labels else None, visible=is_there
            ),
            self.ema: gr.update(value=False, visible=has_ema),
            self.create: gr.update(visible=is_there),
            self.found: to_state(found),
        }

    def _apply(self, values: Values) -> Updates:
        found = from_state(values[self.found])
        before = self.form.read(values)
        after = apply_import(found, before)
        changes = difference(before, after)
        words = f"Taken over: {len(changes)} settings changed. Look through the report below."
        return {**self.form.show(after), self.message: note(words, "good")}

    def _create(self, values: Values, start: Start) -> Updates:
        found, workspace = from_state(values[self.found]), self.workspace()
        config = creation(
            found,
            workspace,
            name=values[self.name] or "",
            source=values[self.weights] or "",
            ema=bool(values[self.ema]),
        )
        check(config, workspace)
        start("create", config)
        words = f"Making {config.name}. It is chosen here, with these settings, when it is ready."
        return {self.message: note(words)}


def show_report(found: Import) -> str:
    """Return the report as a table, all of whose texts are escaped."""
    rows = [_cells(line) for line in in_order(found.lines)]
    return note(summary(found)) + table(HEADINGS, rows)


def _cells(line: Line) -> tuple[str, ...]:
    there = f"{line.old} = {line.old_value}" if line.old_value else line.old
    here = f"{label_of(line.new)} = {line.new_value}" if line.new else ""
    verdict = f"{line.verdict[0].upper()}{line.verdict[1:]}."
    return there, here, f"{verdict} {line.words}".strip()


def to_state(found: Import) -> dict[str, Any]:
    """Return what the page has to remember of an import, as plain values."""
    model = found.model
    sources = [(each.label, each.source) for each in model.sources] if model else []
    return {
        "origin": found.origin,
        "name": found.name,
        "settings": found.settings,
        "concepts": found.concepts,
        "folder": model.folder if model else "",
        "sources": sources,
    }


def from_state(state: dict[str, Any] | None) -> Import:
    """Return what the page remembers; raises InputError if nothing was read yet."""
    if not state:
        raise InputError("Nothing was read yet.", remedy="Press Read first.")
    found = Import(state["origin"], state["name"], state["settings"], state["concepts"])
    if state["sources"]:
        sources = tuple(Snapshot(label, source) for label, source in state["sources"])
        found.model = FoundModel(state["name"], state["folder"], sources, False, 0, 0)
    return found
