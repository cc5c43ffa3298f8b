"""A small soak: nothing piles up in a process that starts jobs and shows them for a long time."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gradio")
soak = pytest.importorskip("benchmarks.soak")

JOBS, EVENTS = 100, 5_000
KILLED = 0.2
"""The share of the jobs that end so that they cannot tidy up, and a few more."""
MOST_KB = {"launcher": 300, "conductor": 300, "events": 700}
"""A job that left its events behind would add some 4 KB, an event that stayed 1 KB."""


def test_jobs_and_events_leave_nothing_behind(tmp_path: Path) -> None:
    """Files, threads and children as before; no job runs, no lock is held; memory is bounded.

    `python -m benchmarks.soak` does twenty times as much.
    """
    figures = soak.soak(tmp_path, JOBS, EVENTS)
    for part, told in figures.items():
        for what in ("open_files", "threads", "children"):
            assert told["after"][what] <= told["before"][what], (part, what, told)
        assert told["python_kb_grown_after_warming_up"] < MOST_KB[part], (part, told)
    for part in ("launcher", "conductor"):
        told = figures[part]
        assert (told["ended_otherwise"], told["still_running"], told["locks_held"]) == ([], 0, [])
    folder = figures["launcher"]["jobs_folder"]
    assert folder["runs"] == JOBS
    spares = [path.stat().st_size for path in tmp_path.rglob("*.spare")]
    assert len(spares) <= KILLED * (JOBS + JOBS // 10)
    assert folder["files"] <= 6 * JOBS and folder["bytes"] - sum(spares) < 3_000 * JOBS
    told = figures["events"]
    assert (told["steps"], told["state"]) == (EVENTS, "finished")
    assert told["kept"]["points_of_a_curve"] <= 1_000 and told["kept"]["samples"] <= 200
