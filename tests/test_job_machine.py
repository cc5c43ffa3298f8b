"""What a machine cannot do is found by workers and told by the page."""

from __future__ import annotations

import sys
from types import ModuleType

import gradio as gr
import pytest
import torch

from dreambooth_core import worker
from dreambooth_core.config.schema import SampleConfig, TrainConfig
from dreambooth_core.config.sections.optimizer import EIGHT_BIT_OPTIMIZERS
from dreambooth_core.job.eight_bit import EIGHT_BIT_TEST_WORD
from dreambooth_core.job.events import EventWriter
from dreambooth_core.job.machine import machine_path, note_unavailable, unavailable
from dreambooth_core.job.overlay import SELF_TEST_WORD
from dreambooth_core.job.runs import Run, create_run_folder, events_path, run_ids
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.stages import machine
from dreambooth_core.ui.controls import Fields
from dreambooth_core.ui.unavailable import show_unavailable, unavailable_text

FOUND = {"optimizer.name": {"adamw_8bit": "needs a GPU", "lion_8bit": "needs a GPU"}}


def test_before_any_worker_looked_nothing_is_known(workspace: Workspace) -> None:
    assert unavailable(workspace) == {}


def test_what_was_found_is_read_again(workspace: Workspace) -> None:
    note_unavailable(workspace, FOUND)
    assert unavailable(workspace) == FOUND
    assert run_ids(workspace) == []
    note_unavailable(workspace, {})
    assert unavailable(workspace) == {}


def test_the_same_is_not_written_again(workspace: Workspace) -> None:
    note_unavailable(workspace, FOUND)
    before = machine_path(workspace).stat().st_mtime_ns
    note_unavailable(workspace, FOUND)
    assert machine_path(workspace).stat().st_mtime_ns == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"unavailable": 1}', '{"unavailable": {"a": 1}}'])
def test_a_damaged_file_says_nothing(workspace: Workspace, text: str) -> None:
    machine_path(workspace).parent.mkdir(parents=True, exist_ok=True)
    machine_path(workspace).write_text(text)
    assert unavailable(workspace) == {}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_worker_looks_at_its_device(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(machine, "resolve_device", lambda: torch.device(device))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    machine.look_at_machine(workspace)
    found = unavailable(workspace)
    if device == "cuda":
        assert found == {}
    else:
        assert set(found["optimizer.name"]) == set(EIGHT_BIT_OPTIMIZERS)
        assert "needs an NVIDIA GPU" in found["optimizer.name"]["adamw_8bit"]
        assert set(found["precision.mixed_precision"]) == {"fp16"}


def test_the_page_names_the_choices_with_the_reason() -> None:
    assert unavailable_text({}) == ""
    assert unavailable_text({"a": "no GPU", "b": "no GPU", "c": "too old"}) == (
        " Not on this machine: a, b (no GPU). Not on this machine: c (too old)."
    )


def test_the_help_of_the_setting_says_it_and_keeps_what_else_is_updated() -> None:
    with gr.Blocks():
        fields = Fields(TrainConfig, "train")
        fields.place("optimizer.name", "seed")
    component = fields.components()["optimizer.name"]
    updates = {component: gr.update(value="lion")}
    show_unavailable(fields, {**FOUND, "nothing.here": {"x": "y"}}, updates)
    assert set(updates) == {component}
    assert updates[component]["value"] == "lion"
    assert updates[component]["info"].endswith(
        "Not on this machine: adamw_8bit, lion_8bit (needs a GPU)."
    )
    assert fields.described("optimizer.name")["info"] in updates[component]["info"]


@pytest.mark.parametrize(("kind", "looks"), [("sample", True), ("plan", False)])
def test_every_job_with_torch_looks(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, kind: str, looks: bool
) -> None:
    stage = ModuleType("a_stage")
    stage.run = lambda config, context: {}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_stage", stage)
    monkeypatch.setitem(worker.STAGES, kind, "a_stage")
    monkeypatch.setattr(worker, "check", lambda config, workspace, kind: None)
    folder = create_run_folder(workspace, kind)
    run = Run(folder.name, kind, workspace.root, SampleConfig(model="ada", prompts=["a dog"]))
    worker.run_job(run, folder, EventWriter(events_path(folder)))
    assert machine_path(workspace).exists() is looks


def test_a_worker_knows_both_self_tests() -> None:
    assert set(worker.SELF_TESTS) == {SELF_TEST_WORD, EIGHT_BIT_TEST_WORD}
