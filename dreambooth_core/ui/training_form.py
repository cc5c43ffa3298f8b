"""All training settings on the page: the controls, the list of concepts and what is kept of them.

The concepts are a list of any length. One of them is in the editor; the others, and which one that
is, are in the page's own state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import gradio as gr

from dreambooth_core.config.concept import Concept
from dreambooth_core.config.schema import ImagesSection, TrainConfig
from dreambooth_core.config.serialize import from_dict, to_dict
from dreambooth_core.config.settings_store import concept_title, keep_settings, kept_settings
from dreambooth_core.errors import ConfigError, DreamboothError, NewerVersionError, Problem
from dreambooth_core.job.runs import last_run
from dreambooth_core.job.workspace import ModelFolder, ModelInfo, Workspace
from dreambooth_core.ui.controls import Fields
from dreambooth_core.ui.gradio_compat import make
from dreambooth_core.ui.messages import explain

Values = Mapping[Any, Any]
Updates = dict[Any, Any]
Handler = Callable[[Values], Updates]
TITLE_LENGTH = 40


def blank_concept() -> Concept:
    """Return a concept that nothing has been said about."""
    return Concept(instance_folder="")


class TrainingForm:
    """The controls of a training and the concepts that are not in the editor at the moment."""

    def __init__(self) -> None:
        """Make the state; the tabs place the controls. Called inside the page's Blocks."""
        self.train = Fields(TrainConfig, "train")
        self.concept = Fields(Concept, "concept")
        self.state = gr.State({"model": "", "concepts": [to_dict(blank_concept())], "index": 0})
        self.picker: Any = None

    def place_picker(self) -> None:
        """Make the list of concepts, one of which is in the editor."""
        options = self.train.described("concepts")
        choices = _choices([blank_concept()])
        self.picker = make(gr.Radio, choices=choices, value=0, **options)

    @property
    def model(self) -> Any:
        """The component that chooses the model."""
        return self.train.components()["model"]

    def inputs(self) -> set[Any]:
        """Return every component that reading the settings needs."""
        fields = [*self.train.components().values(), *self.concept.components().values()]
        return {*fields, self.picker, self.state}

    def outputs(self) -> list[Any]:
        """Return every component that showing settings changes."""
        fields = [*self.train.components().values(), *self.concept.components().values()]
        return [*fields, self.picker, self.state]

    def read(self, values: Values) -> TrainConfig:
        """Return the settings on the page; raises ConfigError naming what cannot be used.

        A single concept that nothing was said about counts as none.
        """
        concepts = self.concept_data(values)
        if concepts == [to_dict(blank_concept())]:
            concepts = []
        return self.train.read(values, {"concepts": concepts})

    def read_shown(self, values: Values) -> TrainConfig:
        """Return the settings on the page if the page still knows whose they are."""
        if (values[self.model] or "") != values[self.state]["model"]:
            raise ConfigError(
                [Problem("model", "was chosen before the server was restarted.", "Press Refresh.")]
            )
        return self.read(values)

    def read_for(self, model: str, values: Values) -> TrainConfig:
        """Return the settings on the page as those of another model than the one chosen."""
        return self.read({**values, self.model: model})

    def concept_data(self, values: Values) -> list[dict[str, Any]]:
        """Return all concepts as JSON, the one in the editor as it is there."""
        state = values[self.state]
        index, concepts = state["index"], list(state["concepts"])
        concepts[index] = self.concept.data(values, f"concepts.{index}.")
        return concepts

    def show(self, config: TrainConfig, index: int = 0) -> Updates:
        """Return the updates that show settings, with one of their concepts in the editor."""
        return {
            **self.train.show(config),
            **self.show_concepts(config.model, config.concepts, index),
        }

    def show_concepts(self, model: str, concepts: list[Concept], index: int) -> Updates:
        """Return the updates that show concepts, one of them in the editor."""
        concepts = concepts or [blank_concept()]
        index = min(index, len(concepts) - 1)
        state = {"model": model, "concepts": [to_dict(c) for c in concepts], "index": index}
        return {
            **self.concept.show(concepts[index]),
            self.picker: gr.update(choices=_choices(concepts), value=index),
            self.state: state,
        }

    def concepts(self, values: Values) -> list[Concept]:
        """Return all concepts on the page."""
        return [from_dict(Concept, data) for data in self.concept_data(values)]


def settings_of(workspace: Workspace, info: ModelInfo) -> TrainConfig:
    """Return the settings kept for a model, else those of its last training, else first ones.

    A model that was trained from a shell has none kept. Raises InputError or ConfigError if those
    that there are cannot be used.
    """
    kept = kept_settings(workspace.model(info.name))
    if kept is not None:
        return kept
    run = last_run(workspace, info.name, "train")
    return run.config if run and isinstance(run.config, TrainConfig) else first_settings(info)


def first_settings(info: ModelInfo) -> TrainConfig:
    """Return the settings of a model that has none yet, at the size it was made for."""
    images = ImagesSection(resolution=info.resolution)
    return TrainConfig(model=info.name, concepts=[blank_concept()], images=images)


def keep(folder: ModelFolder, config: TrainConfig) -> None:
    """Keep settings for a model that is still there; those of a newer version stay, as was told."""
    if folder.exists():
        with suppress(NewerVersionError):
            keep_settings(folder, config)


def require_model(config: TrainConfig) -> TrainConfig:
    """Return the settings; raises ConfigError if no model is chosen."""
    if not config.model:
        raise ConfigError(
            [Problem("model", "is not chosen.", "Choose one on the Select tab, or create one.")]
        )
    return config


def _choices(concepts: list[Concept]) -> list[tuple[str, int]]:
    titles = (concept_title(concept)[:TITLE_LENGTH] for concept in concepts)
    return [(f"{number}. {title}", number - 1) for number, title in enumerate(titles, start=1)]


def guarded(message: Any, handler: Handler) -> Handler:
    """Return the handler with what it raises explained in `message`, which else is emptied."""

    def answer(values: Values) -> Updates:
        try:
            return {message: "", **handler(values)}
        except DreamboothError as error:
            return {message: explain(error)}

    return answer
