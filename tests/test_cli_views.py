from __future__ import annotations

import io
import json
import sys

import pytest
from rich.console import Console

from dreambooth_core.cli import views
from dreambooth_core.cli.follow import Interrupter, exit_code
from dreambooth_core.cli.terminal import TerminalView, step_numbers
from dreambooth_core.cli.verbs import make_view
from dreambooth_core.cli.views import JsonView, PlainView, count_of, step_line
from dreambooth_core.errors import FullDiskError
from dreambooth_core.job.commands import Command
from dreambooth_core.job.events import (
    CheckpointSaved,
    Event,
    Finding,
    JobFailed,
    JobFinished,
    JobStarted,
    JobStopped,
    LoraSaved,
    Notice,
    PhaseMemory,
    PhaseProgress,
    PhaseStarted,
    PlanMade,
    Preflight,
    SampleSaved,
    StateSaved,
    StepDone,
    UnknownEvent,
)

LONG = "/a/very/long/" + "x" * 200 + "/picture [1].png"
STEP = StepDone(3, 10, 1, 0.5, 0.25, 0.75, {"unet": 1e-6}, 1.0, 2.0, 65.0, 10.0)
STORY = [
    JobStarted("train", "ada", "run1", 1, "1"),
    PhaseStarted("cache", 10, "images"),
    PhaseProgress("cache", 10, 10),
    PhaseStarted("load"),
    PlanMade(["12 steps"]),
    STEP,
    SampleSaved(LONG, "a dog", 7, 3),
    CheckpointSaved("/c.safetensors", 3, 1, "ab", 5 * 2**19),
    LoraSaved("/l.safetensors", 3, 1, "ab", 3 * 2**19),
    StateSaved("/state/3", 3),
    Notice("warning", "careful [bold]"),
    Notice("info", "by the way"),
    UnknownEvent("later", {"x": 1}),
    JobFinished({"final_step": 3, "checkpoints": ["/a", "/b"], "nothing": "", "n": {"a": 1}}),
]


def _plain(events: list[Event]) -> list[str]:
    out, times = io.StringIO(), iter(range(0, 1000, 10))
    with PlainView(out, clock=lambda: float(next(times))) as view:
        for event in events:
            view.show(event)
    return out.getvalue().splitlines()


def test_plain_lines() -> None:
    assert _plain(STORY) == [
        "Run run1: train of model ada",
        "cache (10 images)",
        "  cache: 10/10 images",
        "load",
        "Plan:",
        "  12 steps",
        "  step 3/10, epoch 2: loss 0.5000, (instance 0.2500, class 0.7500), 2.00 steps/s,"
        " 1 min 05 s left",
        f"  picture (step 3, seed 7): {LONG}",
        "  checkpoint (step 3, 2.5 MB): /c.safetensors",
        "  LoRA (step 3, 1.5 MB): /l.safetensors",
        "  training state (step 3): /state/3",
        "warning: careful [bold]",
        "note: by the way",
        'later: {"x": 1}',
        "Done.",
        "  final step: 3",
        "  checkpoints:",
        "    /a",
        "    /b",
        "  n: a 1",
    ]


def test_plain_endings() -> None:
    assert _plain([JobStopped(3, {"a": 1})]) == ["Stopped at step 3.", "  a: 1"]
    kept = JobFailed("Memory ran out.", "Use less.", kept=["A state is kept."])
    assert _plain([kept]) == ["error: Memory ran out.", "Use less.", "A state is kept."]
    failed = JobFailed("is 1.", "Use 2.", "a.b", "InputError", 2)
    assert _plain([failed]) == ["error: a.b: is 1.", "Use 2."]
    assert _plain([JobFailed("a.b: is 1.", "", "a.b", "ConfigError")]) == ["error: a.b: is 1."]


def test_plain_progress_is_not_too_much() -> None:
    out, now = io.StringIO(), [0.0]
    view = PlainView(out, clock=lambda: now[0])
    for step in range(1, 101):
        now[0] += 0.125
        view.show(StepDone(step, 100, 0, 0.5, 0.5))
    steps = [int(line.split("/")[0].split()[-1]) for line in out.getvalue().splitlines()]
    assert steps == [1, 17, 33, 49, 65, 81, 97, 100]


def test_a_step_without_class_images_has_one_loss() -> None:
    line = step_line(StepDone(1, 2, 0, 0.5, 0.5, None, {}, 0.0, 1.0, 3.0))
    assert line == "  step 1/2, epoch 1: loss 0.5000, 1.00 steps/s, 3 s left"


def test_counts() -> None:
    assert count_of(3, 10, "images") == "3/10 images"
    assert count_of(3, 0) == "3"
    assert count_of(3 * 2**19, 3 * 2**20, "bytes") == "1.5/3.0 MB"
    assert count_of(5 * 2**19, 0, "bytes") == "2.5 MB"


def test_json_lines() -> None:
    out, err = io.StringIO(), io.StringIO()
    with JsonView(out, err) as view:
        view.show(STEP)
        view.say("words")
    assert json.loads(out.getvalue())["event"] == "step_done"
    assert err.getvalue() == "words\n"


def test_the_terminal_shows_all_of_it() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system=None)
    with TerminalView(console) as view:
        for event in STORY:
            view.show(event)
    text = out.getvalue()
    assert LONG in text.replace("\n", "")
    assert "careful [bold]" in text
    assert "/c.safetensors" in text
    assert "10/10 images" in text
    assert step_numbers(STEP) == "2.00 it/s, 1 min 05 s left, loss 0.5000"
    assert "3/10" in text
    assert "loss 0.5000" in text


def test_the_view_fits_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_view(as_json=True), JsonView)
    assert isinstance(make_view(as_json=False), PlainView)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert isinstance(make_view(as_json=False), TerminalView)


def test_exit_codes() -> None:
    assert exit_code(JobFinished({})) == 0
    assert exit_code(JobStopped(1, {})) == 130
    assert exit_code(JobFailed("x", exit_code=2)) == 2
    assert exit_code(Notice("info", "x")) == 1


class FakeJob:
    """Notes what is done to it."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def send(self, command: Command) -> None:
        self.done.append(command.name)

    def kill(self) -> None:
        self.done.append("kill")


def test_presses_before_the_job_is_there_count() -> None:
    interrupter, job = Interrupter(PlainView(io.StringIO())), FakeJob()
    interrupter(2, None)
    interrupter.attach(job)  # type: ignore[arg-type]
    assert job.done == ["stop"]
    interrupter(2, None)
    assert job.done == ["stop", "kill"]
    quiet = FakeJob()
    Interrupter(PlainView(io.StringIO())).attach(quiet)  # type: ignore[arg-type]
    assert quiet.done == []


def test_views_have_the_same_surface() -> None:
    with pytest.raises(NotImplementedError):
        views.View().show(STEP)
    with pytest.raises(NotImplementedError):
        views.View().say("x")


def test_what_was_found_before_the_start() -> None:
    found = Preflight(
        [
            Finding("error", "a.png cannot be read.", "Replace it."),
            Finding("info", "dog is known."),
        ],
        [PhaseMemory("training", 3 * 2**30, 2**30), PhaseMemory("saving", 0, 2**29)],
        *("NVIDIA Something", 8 * 2**30, 2**34),
    )
    assert _plain([found]) == [
        "Before the start:",
        "  error: a.png cannot be read. Replace it.",
        "  info: dog is known.",
        "  memory for training: about 3.0 GB of the GPU and 1.0 GB of main memory",
        "  memory for saving: about 0.5 GB of main memory",
        "  NVIDIA Something has 8.0 GB of the GPU and 16.0 GB of main memory",
    ]
    assert "  nothing stands in the way." in _plain([Preflight([])])
    assert _plain([Notice("error", "torn")]) == ["error: torn"]


def test_a_stop_that_a_full_disk_refuses_is_said() -> None:
    class FullJob:
        killed = 0

        def send(self, command: Command) -> None:
            raise FullDiskError("The command stop cannot be written.", remedy="Free some space.")

        def kill(self) -> None:
            self.killed += 1

    out, job = io.StringIO(), FullJob()
    interrupter = Interrupter(PlainView(out))
    interrupter.attach(job)  # type: ignore[arg-type]
    interrupter(2, None)
    assert out.getvalue() == (
        "The command stop cannot be written. Free some space. Ctrl-C again kills the job now.\n"
    )
    assert not job.killed
    interrupter(2, None)
    assert job.killed == 1
