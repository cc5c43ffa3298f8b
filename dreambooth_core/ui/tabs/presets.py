"""The presets on the Select tab: load, save, share, and what differs from one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from dreambooth_core.config.presets import (
    Preset,
    apply_preset,
    built_in_presets,
    delete_preset,
    differences,
    export_preset,
    find_preset,
    import_preset,
    own_presets,
    preset_of,
    save_preset,
)
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.settings_store import Change, difference
from dreambooth_core.errors import DreamboothError
from dreambooth_core.job.runs import last_run
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.ui.controls import side_button
from dreambooth_core.ui.gradio_compat import listen, make, uploaded_path
from dreambooth_core.ui.messages import heading, hint, note, table
from dreambooth_core.ui.training_form import Handler, TrainingForm, Updates, Values, guarded

LAST_RUN = "The last run"
HINT = "A preset sets the settings that it names and leaves all others as they are."


class PresetRow:
    """The controls for presets and for comparing the settings."""

    def __init__(self, form: TrainingForm, workspace: Callable[[], Workspace]) -> None:
        """Place everything inside the current container."""
        self.form, self.workspace = form, workspace
        names = preset_names(workspace())
        gr.HTML(heading("Presets", HINT))
        with make(gr.Row, elem_classes=["dreambooth-with-button"]):
            self.choice = make(
                gr.Dropdown,
                choices=names,
                value=names[0],
                label="Preset",
                elem_id="dreambooth_preset",
            )
            self.load = side_button("Load", "preset_load", variant="primary")
            self.compare = side_button("Compare", "preset_compare")
        self.about = gr.HTML(hint(_description(workspace(), names[0])))
        self.message = gr.HTML("", elem_id="dreambooth_preset_message")
        with make(gr.Accordion, label="Save and share presets", open=False):
            with make(gr.Row, elem_classes=["dreambooth-with-button"]):
                self.name = make(
                    gr.Textbox, label="Save as", elem_id="dreambooth_preset_name", max_lines=1
                )
                self.save = side_button("Save", "preset_save")
                self.delete = side_button("Delete", "preset_delete")
                self.export = side_button("Export", "preset_export")
            self.file = make(
                gr.File, label="Exported file", visible=False, interactive=False, height=80
            )
            self.upload = make(
                gr.UploadButton, label="Import a preset's file", file_types=[".json"], size="sm"
            )
        with make(gr.Row, elem_classes=["dreambooth-with-button"]):
            self.against = make(
                gr.Dropdown,
                choices=[LAST_RUN, *names],
                value=LAST_RUN,
                label="Compare the settings with",
                elem_id="dreambooth_against",
            )
            self.differ = side_button("Show", "preset_differ")
        self.differences = gr.HTML("", elem_id="dreambooth_differences")

    def wire(self) -> None:
        """Let the buttons act."""
        form, inputs = self.form, self.form.inputs()
        listen(self.choice.change, self.describe, self.choice, self.about)
        self._answer(self.load, self._load, {*inputs, self.choice}, form.outputs())
        self._answer(self.compare, self._compare, {*inputs, self.choice}, [self.differences])
        self._answer(self.differ, self._differ, {*inputs, self.against}, [self.differences])
        lists = [self.choice, self.against, self.file]
        self._answer(self.save, self._save, {*inputs, self.name}, lists)
        self._answer(self.delete, self._delete, {self.choice}, lists)
        self._answer(self.export, self._export, {self.choice}, lists)
        answer = guarded(self.message, self._import)
        listen(self.upload.upload, answer, {self.upload}, [*lists, self.message])

    def describe(self, name: str) -> str:
        """Return what a preset is for."""
        return hint(_description(self.workspace(), name))

    def _answer(self, button: Any, handler: Handler, inputs: set[Any], outputs: list[Any]) -> None:
        listen(button.click, guarded(self.message, handler), inputs, [*outputs, self.message])

    def _load(self, values: Values) -> Updates:
        before = self.form.read(values)
        preset = find_preset(self.workspace(), values[self.choice])
        after = apply_preset(preset, before)
        changes = difference(before, after)
        words = f"{preset.name} loaded: {len(changes)} settings changed."
        index = values[self.form.state]["index"]
        shown = self.form.show(after, index)
        return {**shown, self.message: note(words, "good") + show_changes(changes)}

    def _compare(self, values: Values) -> Updates:
        return {self.differences: self._differences(values, values[self.choice])}

    def _differ(self, values: Values) -> Updates:
        return {self.differences: self._differences(values, values[self.against])}

    def _differences(self, values: Values, other: str) -> str:
        config = self.form.read(values)
        if other != LAST_RUN:
            preset = find_preset(self.workspace(), other)
            return show_changes(differences(preset, config)) or note(
                f"All is as in {preset.name}.", "good"
            )
        return differences_from_last_run(self.workspace(), config)

    def _save(self, values: Values) -> Updates:
        name = (values[self.name] or "").strip()
        config = self.form.read(values)
        save_preset(self.workspace(), preset_of(config, name, "A preset of your own."))
        return {**self._lists(name), self.message: note(f"Saved as {name}.", "good")}

    def _delete(self, values: Values) -> Updates:
        delete_preset(self.workspace(), values[self.choice])
        return {**self._lists(), self.message: note(f"{values[self.choice]} is deleted.", "good")}

    def _export(self, values: Values) -> Updates:
        preset = find_preset(self.workspace(), values[self.choice])
        path = export_preset(preset, Path(self._exported.name))
        return {self.file: gr.update(value=str(path), visible=True)}

    @cached_property
    def _exported(self) -> TemporaryDirectory[str]:
        """Where exported files lie for the page to fetch them; removed when the WebUI ends."""
        return TemporaryDirectory(prefix="dreambooth-preset-")

    def _import(self, values: Values) -> Updates:
        path = uploaded_path(values[self.upload])
        if path is None:
            return {}
        preset = import_preset(self.workspace(), path)
        return {**self._lists(preset.name), self.message: note(f"Took in {preset.name}.", "good")}

    def _lists(self, chosen: str = "") -> Updates:
        names = preset_names(self.workspace())
        return {
            self.choice: gr.update(choices=names, value=chosen or names[0]),
            self.against: gr.update(choices=[LAST_RUN, *names], value=LAST_RUN),
            self.file: gr.update(visible=False),
        }


def preset_names(workspace: Workspace) -> list[str]:
    """Return the names of all presets that can be read, the person's own last."""
    own, _ = own_presets(workspace)
    return [preset.name for preset in (*built_in_presets(), *own)]


def show_changes(changes: list[Change]) -> str:
    """Return settings that differ as a table of label, before and after; "" for none."""
    rows = [(change.label, change.before, change.after) for change in changes]
    return table(("Setting", "Before", "Now"), rows)


def differences_from_last_run(workspace: Workspace, config: TrainConfig) -> str:
    """Return what differs from the model's last training, as HTML."""
    run = last_run(workspace, config.model, "train") if config.model else None
    if run is None or not isinstance(run.config, TrainConfig):
        return note("This model has not been trained here yet.")
    changes = difference(run.config, config)
    return show_changes(changes) or note("All is as in the last run.", "good")


def _description(workspace: Workspace, name: str) -> str:
    try:
        preset: Preset = find_preset(workspace, name)
    except DreamboothError as error:
        return str(error)
    return preset.description or preset.name
