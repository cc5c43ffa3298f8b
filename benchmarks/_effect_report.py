"""The effect table as Markdown: means over the subjects, each subject, and the goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks._effect_runs import RUNS, SHORT

Result = Mapping[str, Any]
Row = Mapping[str, float]

COLUMNS = {
    "subject": "S",
    "subject_plain": "S plain",
    "leak": "leak",
    "leak_neighbour": "leak neighbour",
    "background_seen": "bg seen",
    "background_unseen": "bg unseen",
    "held_out_loss": "held-out loss",
}
LEGEND = """\
Pictures are drawn by the saved checkpoints (EMA, fp16) and read by the world's judge. *S*: subject
score of pictures with the token, on backgrounds of the training pictures and on others. *S plain*:
with the token and no background. *leak*: subject score of pictures of the class word alone. *leak
neighbour*: of another class. *bg*: share of pictures with the background that was asked for, of
those in the training pictures and of others. *held-out loss*: noise prediction error on pictures of
the subject that no run trains on. The step is the update after which the checkpoint was saved.
"""


def _value(key: str, value: float) -> str:
    return f"{value:.4f}" if key == "held_out_loss" else f"{value:.2f}"


def _table(rows: Sequence[tuple[str, int, Row]]) -> list[str]:
    lines = ["| run | step | " + " | ".join(COLUMNS.values()) + " |", "|---" * 9 + "|"]
    for name, step, row in rows:
        cells = [_value(key, row[key]) for key in COLUMNS]
        lines.append(f"| {name} | {step} | " + " | ".join(cells) + " |")
    return lines


def _rows(results: Sequence[Result]) -> list[tuple[str, int, Row]]:
    """Return one row per run and step, averaged over the results that have it."""
    found: dict[tuple[str, int], list[Row]] = {}
    for name in ("base", *RUNS):
        for result in results:
            for row in result["rows"] if result["run"] == name else []:
                found.setdefault((name, row["step"]), []).append(row)
    return [
        (name, step, {key: sum(row[key] for row in rows) / len(rows) for key in COLUMNS})
        for (name, step), rows in found.items()
    ]


def quality(row: Row, base: Row) -> float:
    """Return the rule that checkpoints are chosen by: likeness less leak less lost obedience."""
    lost = max(0.0, base["background_unseen"] - row["background_unseen"])
    return row["subject"] - max(0.0, row["leak"] - base["leak"]) - lost


def best_rows(results: Sequence[Result]) -> list[tuple[str, Row, Row, Row | None]]:
    """Return subject, base, the reference's best checkpoint, and the same step without prior."""
    by = {(result["subject"], result["run"]): result["rows"] for result in results}
    found = []
    for subject in sorted({result["subject"] for result in results}):
        base, reference = by.get((subject, "base")), by.get((subject, "reference"))
        if base and reference:
            best = max(reference, key=lambda row: quality(row, base[0]))
            without = by.get((subject, "no-prior"), [])
            same = [row for row in without if row["step"] == best["step"]]
            found.append((subject, base[0], best, same[0] if same else None))
    return found


def _goals(results: Sequence[Result]) -> list[str]:
    lines = [
        "| subject | step | S of the base | S | leak | leak without prior | bg unseen |",
        "|---|---|---|---|---|---|---|",
    ]
    for subject, base, best, without in best_rows(results):
        leak = f"{without['leak']:.2f}" if without else ""
        lines.append(
            f"| {subject} | {best['step']} | {base['subject']:.2f} | {best['subject']:.2f}"
            f" | {best['leak']:.2f} | {leak} | {best['background_unseen']:.2f} |"
        )
    return lines


def report(results: Sequence[Result], command: str, machine: str) -> str:
    """Return the whole document."""
    subjects = sorted({result["subject"] for result in results})
    seconds = sum(result["seconds"] for result in results)
    runs = [f"* **{run.name}**: {run.about}." for run in RUNS.values()]
    parts = [
        "# What each setting does to training",
        "",
        f"Made by `{command}` on {machine}; {len(results)} results, {seconds / 60:.0f} minutes of"
        " one core in all. This file is written by that command.",
        "",
        LEGEND,
        "The runs differ from the first in one thing each; the shorter ones end at step"
        f" {' and '.join(map(str, SHORT))}:",
        "",
        *runs,
        "",
        "## The checkpoint to keep, for each subject",
        "",
        *_goals(results),
        "",
        f"## Mean of {len(subjects)} subjects ({', '.join(subjects)})",
        "",
        *_table(_rows(results)),
    ]
    for subject in subjects:
        own = [result for result in results if result["subject"] == subject]
        parts += ["", f"## {subject}", "", *_table(_rows(own))]
    return "\n".join(parts) + "\n"
