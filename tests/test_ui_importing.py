"""The import section: what it shows is escaped, and what it reads reaches the settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from dreambooth_core.config.imports import read_import
from dreambooth_core.config.imports.report import AS_IT_WAS, AS_LABELLED
from dreambooth_core.config.schema import CreateConfig
from dreambooth_core.errors import BusyError, InputError
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.ui.tabs.importing import (
    ImportSection,
    from_state,
    show_report,
    to_state,
)
from dreambooth_core.ui.training_form import TrainingForm, guarded

HOSTILE = "<img src=x onerror=alert(1)>"
SETTINGS = {
    **{"learning_rate": 3e-6, "min_snr_gamma": 5, "num_train_epochs": 7, HOSTILE: HOSTILE},
    **{"custom_model_name": HOSTILE, "attention": HOSTILE, "src": HOSTILE},
    "concepts_list": [{"instance_data_dir": HOSTILE, "instance_token": "zwx"}],
}


class Section:
    """The section with the form that it fills, and the values that a page would have."""

    def __init__(self, workspace: Workspace) -> None:
        with gr.Blocks():
            self.form = TrainingForm()
            self.form.train.place("model", choices=[])
            for name in self.form.train.specs:
                if name not in ("model", "concepts"):
                    self.form.train.place(name)
            for name in self.form.concept.specs:
                self.form.concept.place(name)
            self.form.place_picker()
            self.section = ImportSection(self.form, lambda: workspace)
            self.started: list[tuple[str, Any]] = []
            self.section.wire(lambda kind, config: self.started.append((kind, config)))
        parts = {*self.form.inputs(), self.section.source, self.section.behaviour}
        parts |= {self.section.upload, self.section.found, self.section.name}
        parts |= {self.section.weights, self.section.ema}
        self.values = {part: getattr(part, "value", None) for part in parts}

    def show(self, updates: dict[Any, Any]) -> dict[Any, Any]:
        for part, update in updates.items():
            is_update = isinstance(update, dict) and "__type__" in update
            self.values[part] = update.get("value") if is_update else update
        return updates

    def ask(self, name: str, source: str = "", behaviour: str = AS_LABELLED) -> dict[Any, Any]:
        if source:
            self.values[self.section.source] = source
        self.values[self.section.behaviour] = behaviour
        handler = guarded(self.section.message, getattr(self.section, name))
        return self.show(handler(self.values))


@pytest.fixture
def section(workspace: Workspace) -> Section:
    return Section(workspace)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "theirs"
    (folder / "working").mkdir(parents=True)
    (folder / "working" / "model_index.json").write_text("{}")
    (folder / "db_config.json").write_text(json.dumps(SETTINGS))
    return folder


def test_the_report_escapes_everything() -> None:
    shown = show_report(read_import(json.dumps(SETTINGS)))
    assert "<img" not in shown and shown.count("&lt;img") >= 4
    assert "<td>Learning rate: UNet learning rate = 3e-06</td>" in shown
    assert "<td>min_snr_gamma = 5</td>" in shown and "<td>Never worked there. It was" in shown
    assert "Concept 1: Instance images folder" in shown


def test_reading_and_taking_over(section: Section) -> None:
    shown = section.ask("_read", json.dumps(SETTINGS))
    assert shown[section.section.apply]["visible"] is True
    assert shown[section.section.create]["visible"] is not True
    taken = section.ask("_apply")
    assert "settings changed" in taken[section.section.message]
    config = section.form.read(section.values)
    assert config.learning_rate.unet == 3e-6 and config.intervals.epochs == 7
    assert config.loss.min_snr_gamma == 5.0
    assert [each.instance_folder for each in config.concepts] == [HOSTILE]


def test_another_behaviour_reads_again(section: Section) -> None:
    assert set(section.ask("_read_again", "x")) == {section.section.message}  # nothing was read
    section.ask("_read", json.dumps(SETTINGS))
    section.ask("_read_again", behaviour=AS_IT_WAS)
    section.ask("_apply")
    assert section.form.read(section.values).loss.min_snr_gamma == 0.0


def test_an_uploaded_file(section: Section, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("learning_rate = 1e-6\ntrain_batch_size = 2\nclip_skip = 2\n")
    section.values[section.section.upload] = str(path)
    section.ask("_read_upload")
    section.ask("_read_again", behaviour=AS_LABELLED)
    section.ask("_apply")
    assert section.form.read(section.values).batch.batch_size == 2
    section.values[section.section.upload] = None
    assert set(section.ask("_read_upload")) == {section.section.message}


def test_a_model_is_made_of_a_folder(section: Section, folder: Path) -> None:
    shown = section.ask("_read", str(folder))
    assert shown[section.section.name]["value"] == "theirs"
    assert shown[section.section.weights]["choices"] == ["The newest weights"]
    assert shown[section.section.create]["visible"] is True
    section.values[section.section.name] = "mine"
    made: list[Any] = []
    said = section.section._create(section.values, lambda kind, config: made.append(config))
    assert made == [CreateConfig(name="mine", source=str(folder / "working"))]
    assert "Making mine" in said[section.section.message]


@pytest.mark.parametrize(
    ("source", "words"),
    [("", "nothing to import"), ("/gone", "no file"), (HOSTILE, "&lt;img"), ("{", "not JSON")],
)
def test_what_cannot_be_read_is_said(section: Section, source: str, words: str) -> None:
    section.values[section.section.source] = source
    said = section.ask("_read")
    assert words in said[section.section.message] and "<img" not in said[section.section.message]


def test_without_reading_there_is_nothing_to_take_over(section: Section) -> None:
    assert "Press Read first" in section.ask("_apply")[section.section.message]
    with pytest.raises(InputError):
        from_state(None)


def test_a_job_that_cannot_be_started_is_explained(section: Section, folder: Path) -> None:
    section.ask("_read", str(folder))

    def busy(kind: str, config: Any) -> None:
        raise BusyError("Another job is going on.")

    def create(values: Any) -> Any:
        return section.section._create(values, busy)

    said = guarded(section.section.message, create)(section.values)
    assert "Another job is going on" in said[section.section.message]


def test_what_the_page_remembers(folder: Path) -> None:
    found = read_import(str(folder))
    again = from_state(json.loads(json.dumps(to_state(found))))
    assert again.settings == found.settings and again.concepts == found.concepts
    assert again.model is not None and found.model is not None
    assert again.model.sources == found.model.sources
