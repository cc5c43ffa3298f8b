"""The comparison's numbers as rows, as Markdown and as lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dreambooth_core.job.comparison import measure_text
from dreambooth_core.stages.measure import Measures, best, verdict

HEADINGS = {
    "checkpoint": "checkpoint",
    "subject_fidelity": "subject fidelity",
    "prompt_fidelity": "prompt fidelity",
    "class_leak": "class leak",
    "diversity": "diversity",
    "drift": "drift",
    "score": "score",
    "keep": "keep",
}
NO_MEASURES = (
    "Nothing was measured: likeness and leak are read by the judge of the built-in small world,"
    " which needs a subject of that world."
)


def table_rows(labels: Sequence[str], measured: Sequence[Measures]) -> list[dict[str, Any]]:
    """Return one row per checkpoint; only its label where nothing was measured."""
    if not measured:
        return [{"checkpoint": label} for label in labels]
    keep = best(measured)
    return [
        {
            "checkpoint": label,
            **measures.values(),
            "score": verdict(measures, measured[0]),
            "keep": number == keep,
        }
        for number, (label, measures) in enumerate(zip(labels, measured, strict=True))
    ]


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "**yes**" if value else ""
    return measure_text(value) if isinstance(value, float) else str(value).replace("|", "\\|")


def markdown(title: str, rows: Sequence[dict[str, Any]], remarks: Sequence[str]) -> str:
    """Return the rows as a Markdown table under a title, with remarks below."""
    keys = [key for key in HEADINGS if key in rows[0]]
    lines = [
        "| " + " | ".join(HEADINGS[key] for key in keys) + " |",
        "|" + "---|" * len(keys),
        *("| " + " | ".join(_cell(row[key]) for key in keys) + " |" for row in rows),
    ]
    return "\n".join([f"# {title}", "", *lines, "", *remarks, ""])


def terminal_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the rows as aligned lines, headings first."""
    keys = [key for key in HEADINGS if key in rows[0]]
    cells = [[HEADINGS[key] for key in keys]]
    cells += [[_cell(row[key]).replace("*", "") for key in keys] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(keys))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
