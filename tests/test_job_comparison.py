"""The newest comparison of a model, found again from its run and its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dreambooth_core.config.schema import CompareConfig
from dreambooth_core.errors import InputError
from dreambooth_core.job.comparison import last_comparison, measure_text
from dreambooth_core.job.events import Event, EventWriter, JobFailed, JobFinished, JobStopped
from dreambooth_core.job.runs import Run, create_run_folder, events_path, write_run
from dreambooth_core.job.workspace import Workspace

ROWS = [
    {"checkpoint": "as created", "score": 0.0, "keep": False},
    {"checkpoint": "ada_12", "score": 0.5, "keep": True},
]


def compared(
    workspace: Workspace, model: str = "ada", *, rows: object = ROWS, end: type[Event] = JobFinished
) -> Path:
    """A comparison that came to its end; returns the folder of its run."""
    folder = create_run_folder(workspace, "compare")
    write_run(folder, Run(folder.name, "compare", workspace.root, CompareConfig(model=model)))
    (folder / "compare.png").write_bytes(b"a sheet")
    (folder / "compare.json").write_text(json.dumps({"rows": rows, "remarks": ["Two each."]}))
    summary = {
        "grid": str(folder / "compare.png"),
        "numbers": str(folder / "compare.json"),
        "keep": "",
    }
    final = JobStopped(0, summary) if end is JobStopped else JobFinished(summary)
    EventWriter(events_path(folder)).emit(JobFailed("No.") if end is JobFailed else final)
    return folder


def test_there_is_none_before_the_first(workspace: Workspace) -> None:
    assert last_comparison(workspace, "ada") is None


@pytest.mark.parametrize("end", [JobFinished, JobStopped])
def test_the_newest_one_of_the_model_is_found(workspace: Workspace, end: type[Event]) -> None:
    compared(workspace)
    folder = compared(workspace, end=end)
    compared(workspace, "bob")
    found = last_comparison(workspace, "ada")
    assert found is not None
    assert (found.run_id, found.grid) == (folder.name, folder / "compare.png")
    assert (found.rows, found.remarks) == (ROWS, ["Two each."])
    assert found.measured and found.kept == 1


def test_one_without_numbers_keeps_none(workspace: Workspace) -> None:
    compared(workspace, rows=[{"checkpoint": "as created"}, {"checkpoint": "ada_12"}])
    found = last_comparison(workspace, "ada")
    assert found is not None and not found.measured and found.kept == -1


def test_failed_ones_and_those_whose_sheet_was_deleted_do_not_count(workspace: Workspace) -> None:
    first = compared(workspace)
    compared(workspace, end=JobFailed)
    (compared(workspace) / "compare.png").unlink()
    found = last_comparison(workspace, "ada")
    assert found is not None and found.run_id == first.name


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": 5}', '{"rows": [[1]], "remarks": []}'])
def test_numbers_that_cannot_be_read_are_told_with_their_file(
    workspace: Workspace, text: str
) -> None:
    (compared(workspace) / "compare.json").write_text(text)
    with pytest.raises(InputError, match=r"compare\.json"):
        last_comparison(workspace, "ada")


@pytest.mark.parametrize(("value", "text"), [(-0.001, "0.00"), (-0.5, "-0.50"), (0.126, "0.13")])
def test_nothing_has_no_sign(value: float, text: str) -> None:
    assert measure_text(value) == text
