"""A training in several runs is the training in one: its bits, and what is shown of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from dreambooth_core.job.curve import MOST_POINTS
from dreambooth_core.job.events import (
    CheckpointSaved,
    Event,
    JobFinished,
    Notice,
    PhaseStarted,
    Resumed,
    SampleSaved,
    StateSaved,
    StepDone,
    to_json,
)
from dreambooth_core.job.history import past_runs
from dreambooth_core.job.lineage import began_from, runs_before
from dreambooth_core.job.run_view import RunReader, RunView
from dreambooth_core.job.runs import Run, events_path, write_run
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.recording import LOSS_TABLE, Recorder
from dreambooth_core.stages import train
from dreambooth_core.stages.saved_states import Progress, keep_newest, state_folder, states
from tests.trainings import Trained, Trainings, same, trainings_in

ACCUMULATED: dict[str, Any] = {
    "optimizer": {"name": "lion"},
    "batch": {"batch_size": 1, "gradient_accumulation_steps": 2},
    "intervals": {"epochs": 2},
    "images": {"crop": "random", "horizontal_flip": True},
    "captions": {"shuffle_tags": True, "dropout": 0.3},
    "text_encoder": {"train_ratio": 0.5},
    "ema": {"enabled": True, "decay": 0.9},
    "learning_rate": {"schedule": "cosine"},
}
SCALED: dict[str, Any] = {"batch": {"batch_size": 2}, "intervals": {"epochs": 2}}


@pytest.fixture(scope="module")
def trainings(module_folder: Path, _created_model: Path) -> Trainings:
    """One workspace with a tiny model for all tests of this module."""
    return trainings_in(module_folder, _created_model)


@pytest.fixture
def loss_scaler(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Trainings scale their losses as fp16 on a GPU makes them; the scales of all steps."""
    make, step, scales = train.make_accelerator, AcceleratedOptimizer.step, []

    def scaling(config: Any) -> Accelerator:
        accelerator = make(config)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
        return accelerator

    def counted(self: AcceleratedOptimizer, closure: Any = None) -> Any:
        scales.append(self.scaler.get_scale())
        return step(self, closure)

    monkeypatch.setattr(train, "make_accelerator", scaling)
    monkeypatch.setattr(AcceleratedOptimizer, "step", counted)
    return scales


def in_runs(
    trainings: Trainings, name: str, settings: dict[str, Any], commands: Sequence[dict[int, Any]]
) -> tuple[Trained, list[Trained]]:
    """Train in one run, and in as many as are stopped by `commands` and one that is not."""
    whole = trainings.run(settings, f"{name} whole")
    runs = [
        trainings.run({**settings, "resume": number > 0}, f"{name} {number}", at_step)
        for number, at_step in enumerate([*commands, {}])
    ]
    for run in (whole, *runs):
        shutil.rmtree(run.states)  # they are in memory
    return whole, runs


def assert_same_end(whole: Trained, runs: Sequence[Trained]) -> None:
    """The states are the same to the bit, and so is what each step told."""
    last = runs[-1]
    assert whole.state is not None and last.state is not None
    for part in ("weights", "ema", "optimizer", "loss_scaler", "progress", "seed"):
        assert same(getattr(last.state, part), getattr(whole.state, part)), part
    assert [numbers(step) for run in runs for step in run.steps] == [*map(numbers, whole.steps)]


def numbers(step: StepDone) -> tuple[Any, ...]:
    """What a step tells that does not depend on the machine's speed."""
    told = (step.step, step.total_steps, step.epoch, step.loss, step.loss_instance)
    return (*told, step.loss_class, step.grad_norm, step.learning_rates)


@pytest.fixture(scope="module")
def chain(trainings: Trainings) -> tuple[Trained, list[Trained]]:
    """Four steps in one run, and in three that end in the middle and at the end of an epoch."""
    return in_runs(trainings, "chain", ACCUMULATED, [{1: ["stop"]}, {1: ["stop_after_epoch"]}])


def test_stopped_in_an_epoch_and_after_it_the_bits_are_those_of_one_run(
    chain: tuple[Trained, list[Trained]],
) -> None:
    whole, runs = chain
    assert [len(run.steps) for run in runs] == [1, 1, 2]
    assert_same_end(whole, runs)
    assert runs[1].events_of(Resumed) == [Resumed("chain 0", 1)]
    assert runs[2].events_of(Resumed) == [Resumed("chain 1", 2)]
    assert whole.events_of(Resumed) == runs[0].events_of(Resumed) == []


def test_the_scale_of_the_loss_goes_on(trainings: Trainings, loss_scaler: list[float]) -> None:
    whole, runs = in_runs(trainings, "scaled", SCALED, [{3: ["stop"]}])
    assert loss_scaler == [64.0, 64.0, 128.0, 128.0] * 2
    assert_same_end(whole, runs)
    assert whole.state is not None and whole.state.loss_scaler["scale"] == 256.0
    assert whole.state.progress == Progress(4, 2, 0)


def test_what_is_written_is_a_phase_that_the_next_step_ends(
    chain: tuple[Trained, list[Trained]],
) -> None:
    """A pause for a state or a checkpoint is shown as what it is."""
    _, runs = chain
    view, phases = RunView(), []
    for event in runs[0].events:
        view.update([event])
        if isinstance(event, StateSaved | CheckpointSaved):
            phases.append((view.phase, view.fraction))
    assert phases == [("saving training state", None), ("saving checkpoint", None)]
    view.update([runs[1].steps[0]])
    assert (view.phase, view.done, view.total) == ("training", 2, 4)


# -- what is shown of several runs


def write_events(folder: Path, events: Sequence[Event]) -> Path:
    """A run's folder in which a worker left these events and ended."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(to_json(event)) for event in (*events, JobFinished({}))]
    events_path(folder).write_text("\n".join(lines) + "\n")
    return folder


def test_the_panel_and_the_table_show_one_training(
    trainings: Trainings, chain: tuple[Trained, list[Trained]], tmp_path: Path
) -> None:
    whole, runs = chain
    names = ["chain 0", "chain 1", "chain 2", "chain whole"]
    for name, run in zip(names, [*runs, whole], strict=True):
        write_events(tmp_path / name, run.events)
        with Recorder(tmp_path / "logging" / name) as recorder:
            for event in run.events:
                if isinstance(event, StepDone | Resumed):  # TensorBoard is slow
                    recorder.record(event)
    shown, wanted = (RunReader(tmp_path / name).poll() for name in names[2:])
    assert shown.curves == wanted.curves and len(shown.curves["loss_smoothed"]) == 4
    assert [file.step for file in shown.files] == [1, 2]
    assert (shown.resumed_run, shown.resumed_step, shown.step) == ("chain 1", 2, 4)
    tables = [(tmp_path / "logging" / name / LOSS_TABLE).read_text() for name in names[2:]]
    assert tables[0].splitlines()[1:] == tables[1].splitlines()[1:]
    assert len(tables[0].splitlines()) == 5


def step(number: int, loss: float = 0.5) -> StepDone:
    return StepDone(number, 4500, 0, loss, loss, None, {"unet": 1e-4 * number}, time=float(number))


def long_chain(folder: Path) -> tuple[Path, Path]:
    """Runs of thousands of steps, each killed past the state that the next goes on from."""
    steps = [step(number, 1 / number) for number in range(1, 4501)]
    made_again = [step(number, 7.0) for number in range(1501, 1701)]
    saved, picture = StateSaved("state", 1500), SampleSaved("lost.png", "p", 1, 1600)
    begun = write_events(folder / "a", [*steps[:1500], saved, *made_again, picture])
    unbroken = write_events(folder / "whole", [*steps[:1500], saved, *steps[1500:]])
    events_path(begun).write_bytes(events_path(begun).read_bytes()[:-30])  # as a kill leaves it
    again = [StateSaved("state", 3000), step(3001, 7.0)]
    write_events(folder / "b", [Resumed("a", 1500), *steps[1500:3000], *again])
    last = [Notice("info", "x"), Resumed("b", 3000), PhaseStarted("training", 4500, "steps")]
    return write_events(folder / "c", [*last, *steps[3000:]]), unbroken


def test_a_long_training_in_three_runs_is_read_little_by_little(tmp_path: Path) -> None:
    folder, unbroken = long_chain(tmp_path)
    wanted = RunReader(unbroken).poll()
    for most_reads in (0, 1):
        reader, looks = RunReader(folder), 1
        while not reader.poll(most_reads).ended:
            looks += 1
        shown = reader.poll()
        assert shown.curves["loss_instance"] == wanted.curves["loss_instance"]
        assert shown.curves["learning_rate.unet"] == wanted.curves["learning_rate.unet"]
        assert shown.curves["loss_smoothed"][-1] == wanted.curves["loss_smoothed"][-1]
        assert len(shown.curves["loss_instance"]) <= MOST_POINTS
        assert shown.samples == [] and shown.state == "finished"
        assert (looks > 3) == bool(most_reads)


def test_steps_that_a_run_makes_again_are_shown_once(tmp_path: Path) -> None:
    """After a retreat to the state of step 2; and the table of losses likewise."""
    saved = StateSaved("state", 2)
    steps = [step(1), step(2), saved, step(3, 9.0), step(4, 9.0), step(3, 0.25), step(4, 0.125)]
    shown = RunReader(write_events(tmp_path / "run", steps)).poll()
    plain = [step(1), step(2), saved, step(3, 0.25), step(4, 0.125)]
    assert shown.curves == RunReader(write_events(tmp_path / "plain", plain)).poll().curves
    with Recorder(tmp_path / "logging") as recorder:
        for event in steps:
            if isinstance(event, StepDone):
                recorder._losses.add(event)  # type: ignore[union-attr]
    rows = (tmp_path / "logging" / LOSS_TABLE).read_text().splitlines()[1:]
    assert [row.split(",")[:3] for row in rows] == [
        ["1", "0", "0.5"], ["2", "0", "0.5"], ["3", "0", "0.25"], ["4", "0", "0.125"],
    ]  # fmt: skip


def test_the_limit_of_states_counts_those_of_the_runs_before(tmp_path: Path) -> None:
    model = ModelFolder(tmp_path / "model")
    runs = {"a": [2, 4], "other": [8], "b": [6, 8], "c": [10]}
    for name, steps in runs.items():
        for number in steps:
            state_folder(model, name, number).mkdir(parents=True)
    write_events(tmp_path / "a", [step(1)])
    write_events(tmp_path / "b", [Resumed("a", 4)])
    before = runs_before(write_events(tmp_path / "c", [Resumed("b", 8)]))
    assert before == ["a", "b"]
    keep_newest(model, "c", 2, before)
    left = {path.relative_to(model.states_dir).as_posix() for path in states(model)}
    assert left == {"other/step_00000008", "b/step_00000008", "c/step_00000010"}


@pytest.mark.parametrize("named", ["gone", "run", "../run"])
def test_a_run_before_that_is_gone_or_no_run_is_passed_over(tmp_path: Path, named: str) -> None:
    folder = write_events(tmp_path / "run", [Resumed(named, 4), step(5)])
    shown = RunReader(folder).poll()
    assert shown.curves["loss_instance"] == [(5, 0.5)]
    assert (shown.resumed_run, shown.resumed_step) == (named, 4)


def test_the_history_tells_which_runs_go_on(trainings: Trainings) -> None:
    workspace = trainings.workspace
    config = trainings.config()
    for name, events in {
        "20260101-000000-train": [step(1), step(2)],
        "20260101-000001-train": [Resumed("20260101-000000-train", 2)],
    }.items():
        folder = workspace.run_folder(name)
        folder.mkdir(parents=True)
        write_run(folder, Run(name, "train", workspace.root, config))
        lines = [json.dumps(to_json(event)) for event in events]
        events_path(folder).write_text("\n".join(lines) + "\n")
    newest, before = past_runs(workspace, "tiny")
    assert newest.resumed == Resumed("20260101-000000-train", 2)
    assert (newest.step, before.step, before.resumed) == (2, 2, None)
    assert began_from(workspace.run_folder("20260101-000000-train")) is None
