"""The Create tab: a checkpoint becomes a model to train."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from dreambooth_core import demo
from dreambooth_core.checkpoint.header import Header, read_header
from dreambooth_core.checkpoint.recognise import family_label, has_ema_weights
from dreambooth_core.config.schema import CreateConfig
from dreambooth_core.config.validate import check
from dreambooth_core.errors import DreamboothError
from dreambooth_core.host.base import Host
from dreambooth_core.job.checkpoint_files import is_diffusers_model
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.ui.controls import Fields, side_button
from dreambooth_core.ui.gradio_compat import listen, make, settled_events
from dreambooth_core.ui.messages import explain, facts, heading, note, size_text
from dreambooth_core.world.install import install

START = Callable[[str, Any], Any]
HINT = "Choose a checkpoint to see what it is."
FOLDER = "A model in the diffusers layout. It is saved as a single file that the WebUI loads."


class CreateTab:
    """The fields of a creation, what the chosen file is, and the button that starts it."""

    def __init__(self, host: Host) -> None:
        """Place everything inside the current tab."""
        self.host = host
        self.fields = Fields(CreateConfig, "create")
        source = str(demo.CHECKPOINT) if host.name == "standalone" else ""
        with make(gr.Row, elem_classes=["dreambooth-split"]):
            with make(gr.Column, scale=3, min_width=360, elem_classes=["dreambooth-flat"]):
                gr.HTML(heading("New model", "A model is a checkpoint taken apart for training."))
                self.fields.place("name")
                with make(gr.Row, elem_classes=["dreambooth-with-button"]):
                    self.fields.place("source", choices=source_names(host))
                    self.refresh = side_button("Refresh", "create_refresh")
                self.fields.place("extract_ema", "vae", "prediction_type")
                self.button = make(
                    gr.Button,
                    value="Create model",
                    variant="primary",
                    elem_id="dreambooth_create_button",
                )
                self.message = gr.HTML("", elem_id="dreambooth_create_message")
            with make(gr.Column, scale=2, min_width=280):
                gr.HTML(heading("The checkpoint"))
                self.found = gr.HTML(self.recognise(source), elem_id="dreambooth_create_found")
                self.example = make(
                    gr.Button,
                    value="Use the built-in example",
                    elem_id="dreambooth_create_example",
                )
                gr.HTML(
                    '<p class="dreambooth-hint">A tiny checkpoint that comes with this extension.'
                    " It trains in minutes without a GPU.</p>"
                )
        if source:
            self.fields.components()["source"].value = source

    def wire(self, start: START) -> None:
        """Let the controls act; `start` begins a job and raises DreamboothError if it cannot."""
        parts = self.fields.components()
        for event in settled_events(parts["source"], typed=True):
            listen(event, self.recognise, parts["source"], self.found, newest=True)
        listen(self.refresh.click, self.choices, None, parts["source"])
        filled = [parts["name"], parts["source"], self.found]
        listen(self.example.click, self.fill_example, None, filled)

        def create(values: Mapping[Any, Any]) -> str:
            try:
                config = self.fields.read(values)
                check(config, self.host.workspace())
                start("create", loadable_in_host(config, self.host))
            except DreamboothError as error:
                return explain(error, CreateConfig)
            return note(f"Creating {config.name}. It is on the Select tab when it is ready.")

        listen(self.button.click, create, set(parts.values()), self.message, waiting=True)

    def recognise(self, source: str | None) -> str:
        """Return what a checkpoint is, told from its header alone."""
        return describe_source(self.host.workspace(), source or "")

    def choices(self) -> Any:
        """Return the update with the checkpoints that there are now."""
        return gr.update(choices=source_names(self.host))

    def fill_example(self) -> tuple[Any, Any, str]:
        """Return the updates that choose the built-in checkpoint, under a free name."""
        name, source = demo.free_name(self.host.workspace()), str(demo.CHECKPOINT)
        return gr.update(value=name), gr.update(value=source), self.recognise(source)


def loadable_in_host(config: CreateConfig, host: Host) -> CreateConfig:
    """Return the settings with the built-in checkpoint in the form that the WebUI loads.

    What is saved from a model takes its source's side file along.
    """
    if Path(config.source) != demo.CHECKPOINT:
        return config
    return dataclasses.replace(config, source=str(install(host.workspace())))


def source_names(host: Host) -> list[str]:
    """Return the checkpoints to choose from, the built-in one last."""
    return [*host.checkpoint_names(), str(demo.CHECKPOINT)]


def describe_source(workspace: Workspace, source: str) -> str:
    """Return what a checkpoint is as HTML, or why it cannot be used."""
    if not source.strip():
        return note(HINT)
    if is_diffusers_model(Path(source).expanduser()):
        return note(FOLDER)
    try:
        header = read_header(workspace.find_checkpoint(source))
        label = family_label(header)
    except DreamboothError as error:
        return explain(error, CreateConfig)
    return facts(_facts(header, label))


def _facts(header: Header, family: str) -> list[tuple[str, object]]:
    dtypes = sorted({info.dtype.lower() for info in header.tensors.values() if info.size > 1000})
    title = header.metadata.get("modelspec.title", "")
    return [
        ("File", Path(header.path).name),
        ("Family", family),
        ("Size", size_text(header.file_size)),
        ("Numbers", ", ".join(dtypes)),
        ("EMA weights", "yes" if has_ema_weights(header) else "no"),
        *([("Title", title)] if title else []),
    ]
