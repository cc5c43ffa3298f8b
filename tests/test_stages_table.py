"""The comparison's numbers as rows, Markdown and terminal lines."""

from __future__ import annotations

from dreambooth_core.stages.measure import Measures
from dreambooth_core.stages.table import markdown, table_rows, terminal_lines

BASE = Measures(0.0, 1.0, 0.0, 0.5, 0.0)
GOOD = Measures(0.9, 0.95, 0.02, 0.4, 0.1)


def test_rows_hold_every_measure_and_mark_the_best() -> None:
    rows = table_rows(["base", "good"], [BASE, GOOD])
    assert [row["checkpoint"] for row in rows] == ["base", "good"]
    assert [row["keep"] for row in rows] == [False, True]
    assert rows[1]["subject_fidelity"] == 0.9 and rows[1]["class_leak"] == 0.02
    assert abs(rows[1]["score"] - (0.9 - 0.02 - 0.05)) < 1e-12


def test_rows_without_measures_are_labels() -> None:
    assert table_rows(["base", "x"], []) == [{"checkpoint": "base"}, {"checkpoint": "x"}]


def test_markdown_is_a_table_with_remarks() -> None:
    text = markdown("Title", table_rows(["ba|se", "good"], [BASE, GOOD]), ["A remark."])
    lines = text.splitlines()
    assert lines[0] == "# Title" and lines[-1] == "A remark."
    assert lines[2].startswith("| checkpoint | subject fidelity |")
    assert lines[3] == "|---|---|---|---|---|---|---|---|"
    assert lines[4] == "| ba\\|se | 0.00 | 1.00 | 0.00 | 0.50 | 0.00 | 0.00 |  |"
    assert lines[5].endswith("| 0.83 | **yes** |")


def test_terminal_lines_are_aligned() -> None:
    lines = terminal_lines(table_rows(["base", "a longer name"], [BASE, GOOD]))
    start = lines[0].index("subject fidelity")
    assert lines[1][start:].startswith("0.00") and lines[2][start:].startswith("0.90")
    assert lines[2].endswith("yes") and not lines[1].endswith(" ")
