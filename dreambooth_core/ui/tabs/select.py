"""The Select tab: the model, its history, and all of its training settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from dreambooth_core.checkpoint.recognise import TRAINABLE
from dreambooth_core.config.control import FieldSpec, SectionSpec, section_specs
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.job.history import PastRun, past_runs
from dreambooth_core.job.workspace import ModelInfo, Workspace
from dreambooth_core.ui.controls import side_button
from dreambooth_core.ui.gradio_compat import listen, make, settled_events, visibility
from dreambooth_core.ui.messages import facts, heading, note, table
from dreambooth_core.ui.schedule_curve import ScheduleCurve
from dreambooth_core.ui.training_form import TrainingForm, Updates

BASIC, ADVANCED = "Basic", "Advanced"
ELSEWHERE = ("saving", "previews")
"""Sections that stand on other tabs."""
OPEN = ("intervals", "learning_rate", "images")
GENERAL = ("resume", "seed")
NO_MODELS = "No models yet: go to the Create tab and make one from a checkpoint."


class SelectTab:
    """The choice of the model, what is known of it, and the settings in their sections."""

    def __init__(self, form: TrainingForm, workspace: Workspace) -> None:
        """Place everything inside the current tab, but for the presets."""
        self.form = form
        names = workspace.model_names()
        with make(gr.Row, elem_classes=["dreambooth-split"]):
            with make(gr.Column, scale=1, min_width=340):
                gr.HTML(heading("The model", "What was done with it, and its settings below."))
                with make(gr.Row, elem_classes=["dreambooth-with-button"]):
                    form.train.place("model", choices=names)
                    self.refresh = side_button("Refresh", "select_refresh")
                self.history = gr.HTML(note(NO_MODELS), elem_id="dreambooth_history")
            self.presets_column = make(gr.Column, scale=1, min_width=340)

    def place_settings(self) -> None:
        """Place the settings below, section by section."""
        form = self.form
        gr.HTML(heading("Settings"))
        with make(gr.Row, elem_classes=["dreambooth-toolbar", "dreambooth-search"]):
            self.view = make(
                gr.Radio,
                choices=[BASIC, ADVANCED],
                value=BASIC,
                label="Settings shown",
                info="Basic are the few that matter.",
                elem_id="dreambooth_view",
            )
            self.search = make(
                gr.Textbox,
                label="Search in settings",
                placeholder="memory",
                info="A word of a setting's name or help finds it, on either view.",
                max_lines=1,
                elem_id="dreambooth_search",
            )
        self.nothing = gr.HTML("", elem_id="dreambooth_search_result")
        with make(gr.Row, elem_classes=["dreambooth-fields"]):
            form.train.place(*GENERAL)
        self.sections = {}
        for section in section_specs(TrainConfig):
            if section.name not in ELSEWHERE:
                self.sections[section.name] = self._section(section)

    def _section(self, section: SectionSpec) -> Any:
        label = f"{section.control.label}: {section.control.help}"
        made = make(gr.Accordion, label=label, open=section.name in OPEN)
        with made, make(gr.Row, elem_classes=["dreambooth-fields"]):
            self.form.train.place(section.name)
        if section.name == "learning_rate":
            with made:
                self.curve = ScheduleCurve()
        return made

    def wire(self, opened: Any) -> None:
        """Let the view and the search act, and the curve follow; `opened` tells of this tab."""
        self.curve.wire(self.form, opened)
        train, concept = self.form.train.components(), self.form.concept.components()
        fields = [part for path, part in train.items() if path not in ("model", "concepts")]
        outputs = [*fields, *concept.values(), *self.sections.values(), self.nothing]
        inputs = [self.view, self.search]
        listen(self.view.change, self.filter, inputs, outputs)
        for event in settled_events(self.search, typed=True):
            listen(event, self.filter, inputs, outputs, newest=True)

    def filter(self, view: str, query: str | None) -> Updates:
        """Return the updates that show the settings of a view, or those that a search finds.

        A search looks at all settings, and only at those of this tab.
        """
        words = (query or "").lower().split()

        def is_in_view(spec: FieldSpec) -> bool:
            return view == ADVANCED or not spec.control.advanced

        def is_shown(spec: FieldSpec) -> bool:
            searched = words and self._stands_here(spec.path)
            return matches(spec, words) if searched else is_in_view(spec)

        updates = self.form.train.filter(is_shown)
        updates.pop(self.form.model)
        updates |= self.form.concept.filter(is_in_view)
        shown = {path for path, spec in self.form.train.specs.items() if is_shown(spec)}
        for name, accordion in self.sections.items():
            any_shown = not shown.isdisjoint(self.form.train.paths(name))
            is_open = bool(words) or name in OPEN
            updates[accordion] = gr.update(visible=visibility(any_shown), open=is_open)
        found = not words or any(map(self._stands_here, shown))
        updates[self.nothing] = "" if found else note(f"No setting speaks of {query!r}.")
        return updates

    def _stands_here(self, path: str) -> bool:
        return path in GENERAL or path.partition(".")[0] in self.sections


def matches(spec: FieldSpec, words: list[str]) -> bool:
    """Return whether every word is in a setting's label, help or path."""
    text = f"{spec.control.label} {spec.control.help} {spec.path}".lower()
    return all(word in text for word in words)


def show_history(workspace: Workspace, info: ModelInfo) -> str:
    """Return what is known of a model and its runs, as HTML."""
    pairs: list[tuple[str, object]] = [
        ("Family", TRAINABLE.get(info.family, info.family)),
        ("Source", Path(info.source).name),
        ("Made for", f"{info.resolution} pixels"),
        ("Trained", _trained(info)),
        ("Checkpoints", len(info.checkpoints) or "none yet"),
        ("Created", info.created.replace("T", " ").removesuffix("+00:00")),
    ]
    runs = [run for run in past_runs(workspace, info.name) if run.run.kind != "plan"]
    listed = table(("Run", "Kind", "Steps", "Ended"), map(_run_cells, runs), "No runs yet.")
    return facts(pairs) + listed


def show_status(info: ModelInfo | None) -> str:
    """Return the line above all tabs that says which model is chosen, as HTML."""
    if info is None:
        return note(NO_MODELS)
    family = TRAINABLE.get(info.family, info.family)
    return note(f"{info.name}: {family}, {info.resolution} pixels, {_trained(info)}", "status")


def _trained(info: ModelInfo) -> str:
    return f"{info.steps} steps, {info.epochs} epochs" if info.steps else "not trained yet"


def _run_cells(past: PastRun) -> tuple[object, ...]:
    day, _, clock = past.run.run_id.partition("-")
    when = f"{day[:4]}-{day[4:6]}-{day[6:8]} {clock[:2]}:{clock[2:4]}"
    steps = f"{past.resumed.step} → {past.step}" if past.resumed else past.step or ""
    return when, past.run.kind, steps, past.outcome


def readable_info(workspace: Workspace, name: str) -> ModelInfo | None:
    """Return what is remembered of a model; None if there is none of that name.

    Raises InputError naming the file if it is damaged.
    """
    if not name or name not in workspace.model_names():
        return None
    return workspace.model(name).read_info()


def newest_model(workspace: Workspace, known: Mapping[str, Any] | None = None) -> str:
    """Return the model that was worked on last; "" if there is none."""
    paths = [workspace.model(name).info_path for name in workspace.model_names()]
    newest = max(paths, key=lambda path: path.stat().st_mtime, default=None)
    return newest.parent.name if newest else ""
