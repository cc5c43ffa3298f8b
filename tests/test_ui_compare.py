"""The Compare tab: the grid large enough to read, the numbers, and the checkpoint to keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from dreambooth_core import demo
from dreambooth_core.config.schema import CompareConfig
from dreambooth_core.job.comparison import Comparison
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.ui.tabs.compare import (
    GRID_PIXELS,
    CompareTab,
    show_about,
    show_numbers,
    show_verdict,
)
from tests.test_job_comparison import ROWS, compared

HOSTILE = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def tab() -> CompareTab:
    with gr.Blocks():
        return CompareTab()


def comparison(*rows: dict[str, Any], remarks: tuple[str, ...] = ()) -> Comparison:
    return Comparison("run", Path("/x/compare.png"), list(rows), list(remarks))


def shown(updates: dict[Any, Any], part: Any) -> Any:
    update = updates[part]
    return update["value"] if isinstance(update, dict) else update


def test_a_comparison_is_shown_large_with_numbers(tab: CompareTab, workspace: Workspace) -> None:
    Image.new("RGB", (1800, 900)).save(compared(workspace) / "compare.png")
    updates = tab.show(workspace, "ada")
    assert set(updates) == set(tab.displays)
    assert shown(updates, tab.grid).size == (1800, 900)
    assert updates[tab.grid]["visible"] is True
    assert "Keep ada_12." in shown(updates, tab.verdict)
    assert "<td>0.50</td>" in shown(updates, tab.table)
    about = shown(updates, tab.about)
    assert "Two each." in about and "compare.png" in about


def test_a_sheet_of_many_checkpoints_is_made_smaller(tab: CompareTab, workspace: Workspace) -> None:
    Image.new("RGB", (900, 9000)).save(compared(workspace) / "compare.png")
    assert shown(tab.show(workspace, "ada"), tab.grid).size == (GRID_PIXELS // 10, GRID_PIXELS)


@pytest.mark.parametrize("model", ["", "ada"])
def test_without_a_comparison_it_says_how_to_make_one(
    tab: CompareTab, workspace: Workspace, model: str
) -> None:
    updates = tab.show(workspace, model)
    assert "press Compare checkpoints" in shown(updates, tab.verdict)
    assert shown(updates, tab.grid) is None and updates[tab.grid]["visible"] is not True


def test_files_that_cannot_be_read_are_told(tab: CompareTab, workspace: Workspace) -> None:
    folder = compared(workspace)
    told = tab.show(workspace, "ada")  # the sheet of the fixture is no picture
    assert "sheet cannot be read" in shown(told, tab.verdict)
    (folder / "compare.json").write_text("{")
    told = tab.show(workspace, "ada")
    assert "compare.json" in shown(told, tab.verdict)
    assert told[tab.grid]["visible"] is not True


def test_the_verdict() -> None:
    assert "Keep ada_12." in show_verdict(comparison(*ROWS))
    base = [{**ROWS[0], "keep": True}, {**ROWS[1], "keep": False}]
    assert "No checkpoint is better" in show_verdict(comparison(*base))
    assert "Look at the pictures" in show_verdict(comparison({"checkpoint": "ada_12"}))


def test_the_best_of_nothing_is_not_to_be_kept() -> None:
    faint = comparison(ROWS[0], {**ROWS[1], "subject_fidelity": 0.01, "score": -0.001})
    assert "Keep" not in show_verdict(faint) and "hardly shows the subject" in show_verdict(faint)
    assert "-0.00" not in show_numbers(faint)
    assert "Keep" in show_verdict(comparison(ROWS[0], {**ROWS[1], "subject_fidelity": 0.9}))


def test_the_row_to_keep_is_marked() -> None:
    text = show_numbers(comparison(*ROWS))
    assert text.count("dreambooth-marked") == 1
    marked = text.partition('class="dreambooth-marked"')[2].partition("</tr>")[0]
    assert marked == "><td>ada_12</td><td>0.50</td><td>keep</td>"
    assert show_numbers(comparison({"checkpoint": "ada_12"})) == ""


def test_names_are_shown_as_text() -> None:
    found = comparison({"checkpoint": HOSTILE, "keep": False}, ROWS[1], remarks=(HOSTILE,))
    kept = comparison(ROWS[0] | {"keep": False}, {"checkpoint": HOSTILE, "keep": True})
    for text in (show_numbers(found), show_about(found), show_verdict(kept)):
        assert "<script" not in text and "&lt;script" in text


def test_what_is_compared_comes_from_the_tab_and_the_concepts(tab: CompareTab) -> None:
    parts = tab.fields.components()
    values = {part: getattr(part, "value", None) for part in tab.inputs()}
    assert tab.read(values, "ada", []) == CompareConfig(model="ada")
    values[parts["seeds_per_prompt"]] = 3
    values[parts["prompts"]] = "a cat\na dog"
    config = tab.read(values, "ada", [demo.concept()])
    wanted = CompareConfig(
        model="ada", seeds_per_prompt=3, prompts=["a cat", "a dog"], subject=demo.SUBJECT
    )
    assert config == wanted
