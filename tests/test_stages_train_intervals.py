"""How long a training is, in steps, epochs and sessions, and the rests in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.job.events import CheckpointSaved, Event, PhaseProgress, PhaseStarted, StepDone
from dreambooth_core.stages import pausing
from dreambooth_core.stages.pausing import pause
from tests.trainings import Trainings, same, trainings_in

TWO_STEPS_AN_EPOCH: dict[str, Any] = {"batch": {"batch_size": 2}}


@pytest.fixture(scope="module")
def trainings(module_folder: Path, _created_model: Path) -> Trainings:
    """One workspace with a tiny model for all tests of this module."""
    return trainings_in(module_folder, _created_model)


@pytest.mark.turns("train.intervals.epochs", "train.intervals.max_steps")
def test_with_no_epochs_the_steps_say_how_long(trainings: Trainings) -> None:
    intervals = {"epochs": 0, "max_steps": 5}
    run = trainings.run({**TWO_STEPS_AN_EPOCH, "intervals": intervals}, "five")
    assert [step.step for step in run.steps] == [1, 2, 3, 4, 5]
    assert [step.epoch for step in run.steps] == [0, 0, 1, 1, 2]
    assert "stopped" not in run.summary


@pytest.mark.turns("train.intervals.stop_after_steps", "train.intervals.stop_after_epochs")
@pytest.mark.parametrize("stops", [{"stop_after_steps": 2}, {"stop_after_epochs": 1}])
def test_sessions_that_end_early_make_the_training_that_never_did(
    trainings: Trainings, stops: dict[str, int]
) -> None:
    settings = {
        **TWO_STEPS_AN_EPOCH,
        "learning_rate": {"schedule": "linear"},
        "saving": {"save_on_stop": False},
    }
    name = "-".join(stops)
    whole = trainings.run({**settings, "intervals": {"epochs": 2}}, f"{name} whole")
    part = {**settings, "intervals": {"epochs": 2, **stops}}
    first = trainings.run(part, f"{name} first")
    assert first.summary["stopped"] is True
    assert first.summary["total_steps"] == 4
    assert [step.step for step in first.steps] == [1, 2]
    assert first.events_of(CheckpointSaved) == []
    rest = trainings.run({**part, "resume": True}, f"{name} rest")
    assert "stopped" not in rest.summary
    assert first.losses + rest.losses == whole.losses
    assert rest.state is not None and whole.state is not None
    assert same(rest.state.weights, whole.state.weights)
    assert same(rest.state.optimizer, whole.state.optimizer)


@pytest.mark.turns("train.saving.save_on_stop")
def test_a_session_that_ends_early_is_saved_as_a_stopped_one(trainings: Trainings) -> None:
    saving = {"save_at_end": False, "save_on_stop": True, "name": "session"}
    run = trainings.run({"intervals": {"stop_after_steps": 1}, "saving": saving}, "saved")
    assert [event.step for event in run.events_of(CheckpointSaved)] == [1]


class Clock:
    """A time that passes only while someone sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.naps = 100.0, 0
        monkeypatch.setattr(pausing.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(pausing.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self.naps += 1


def test_a_pause_is_as_long_as_it_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, events = Clock(monkeypatch), list[Event]()
    pause(3, lambda: False, events.append)
    assert clock.now == 103.0
    assert events[0] == PhaseStarted("paused", 3, "seconds")
    assert events[1:] == [PhaseProgress("paused", done, 3) for done in (1, 2, 3)]


def test_a_stop_ends_a_pause_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pause(3600, lambda: clock.naps == 2, lambda event: None)
    assert clock.now == 101.0


@pytest.mark.turns("train.intervals.pause_every_epochs", "train.intervals.pause_seconds")
def test_training_rests_after_epochs_and_is_none_the_worse(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = trainings.run({"batch": {"batch_size": 4}, "intervals": {"epochs": 5}}, "no rest")
    slept: list[float] = []
    monkeypatch.setattr(
        "dreambooth_core.stages.train.pause", lambda seconds, *others: slept.append(seconds)
    )
    intervals = {"epochs": 5, "pause_every_epochs": 2, "pause_seconds": 7}
    run = trainings.run({"batch": {"batch_size": 4}, "intervals": intervals}, "rests")
    assert slept == [7, 7]  # after epochs 2 and 4
    assert run.losses == quick.losses


def test_commands_are_answered_in_a_pause(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch)
    intervals = {"epochs": 3, "pause_every_epochs": 1, "pause_seconds": 3600}
    settings = {"batch": {"batch_size": 4}, "intervals": intervals}
    saving = {"save_on_stop": False, "name": "asked in a pause"}
    run = trainings.run({**settings, "saving": saving}, "stop", at_step={1: ["save", "stop"]})
    assert len(run.steps) == 1
    assert run.summary["stopped"] is True
    assert [event.step for event in run.events_of(CheckpointSaved)] == [1]
    kinds = [type(e) for e in run.events if type(e) in (StepDone, CheckpointSaved)]
    assert kinds == [StepDone, CheckpointSaved]
    assert any(event.phase == "paused" for event in run.events_of(PhaseStarted))
