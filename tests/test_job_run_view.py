"""A run's events folded into a view, and the reader that keeps one up to date."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_core.config.schema import SampleConfig
from dreambooth_core.job.commands import Command, send
from dreambooth_core.job.curve import MOST_POINTS, SMOOTHING, Curve, RunningMean
from dreambooth_core.job.events import (
    CheckpointSaved,
    ClassImagesPlanned,
    Event,
    EventWriter,
    FilesPlanned,
    Finding,
    ImagesPlanned,
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
    PlannedFile,
    PlannedImage,
    Preflight,
    SampleSaved,
    StateSaved,
    StepDone,
)
from dreambooth_core.job.process import start_mark
from dreambooth_core.job.run_view import (
    MOST_NOTICES,
    MOST_SAMPLES,
    RunReader,
    RunView,
    duration,
)
from dreambooth_core.job.runs import Run, events_path, log_path, process_path, write_run

STARTED = JobStarted("train", "ada", "run", 1, "1", time=100.0)


def step(number: int, total: int = 20, loss_class: float | None = None) -> StepDone:
    return StepDone(
        step=number,
        total_steps=total,
        epoch=number // 5,
        loss=1.0 / number,
        loss_instance=2.0 / number,
        loss_class=loss_class,
        learning_rates={"unet": 1e-4 * number, "text_encoder": 1e-5},
        steps_per_second=2.0,
        eta_seconds=(total - number) / 2.0,
        memory_mb=1500.0,
        time=100.0 + number,
    )


def view_of(*events: Event) -> RunView:
    view = RunView()
    view.update(events)
    return view


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder whose worker is this process."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = SampleConfig(model="ada", prompts=["x"])
    write_run(folder, Run("run", "sample", tmp_path, config))
    live = {"pid": os.getpid(), "mark": start_mark(os.getpid())}
    process_path(folder).write_text(json.dumps(live))
    return folder


class TestView:
    def test_a_blank_one(self) -> None:
        view = RunView()
        assert (view.state, view.fraction, view.ended, view.seconds) == ("starting", None, False, 0)
        assert view.curves == {}

    def test_a_training(self) -> None:
        view = view_of(
            STARTED, PlanMade(["20 steps"]), PhaseStarted("training", 20), step(1), step(5, 20, 0.3)
        )
        assert (view.run_id, view.kind, view.model, view.state) == (
            "run",
            "train",
            "ada",
            "running",
        )
        assert (view.step, view.total_steps, view.epoch, view.loss) == (5, 20, 1, 0.2)
        assert (view.phase, view.done, view.total, view.unit) == ("training", 5, 20, "steps")
        assert (view.steps_per_second, view.eta_seconds, view.memory_mb) == (2.0, 7.5, 1500.0)
        assert view.fraction == 0.25 and view.plan == ["20 steps"] and view.seconds == 5.0
        assert view.curves["loss_instance"] == [(1, 2.0), (5, 0.4)]
        assert view.curves["loss_class"] == [(5, 0.3)]
        assert view.curves["learning_rate.unet"] == [(1, 1e-4), (5, 5e-4)]
        assert view.curves["learning_rate.text_encoder"] == [(1, 1e-5), (5, 1e-5)]
        # 0.05 * (0.95 * 1 + 0.2) / (1 - 0.95^2), by hand
        assert view.curves["loss_smoothed"][1] == (5, pytest.approx(0.0575 / 0.0975))

    def test_previews_do_not_hide_the_training(self) -> None:
        view = view_of(STARTED, step(3), PhaseStarted("previews", 2, "images", time=200.0))
        assert (view.phase, view.done, view.total, view.step) == ("previews", 0, 2, 3)
        view.update([PhaseProgress("previews", 1, 2, time=204.0)])
        assert (view.steps_per_second, view.eta_seconds) == (0.25, 4.0)
        view.update([step(4)])
        assert (view.phase, view.done, view.total) == ("training", 4, 20)

    def test_progress_of_an_unknown_length_and_of_an_unannounced_phase(self) -> None:
        view = view_of(PhaseStarted("a", time=1.0), PhaseProgress("a", 4, time=3.0))
        assert (view.fraction, view.eta_seconds, view.steps_per_second) == (None, None, 2.0)
        view.update([PhaseProgress("b", 1, 3, time=4.0)])
        assert (view.phase, view.done, view.total) == ("b", 1, 3)

    def test_what_was_written(self) -> None:
        view = view_of(
            STARTED,
            SampleSaved("1.png", "a", 1, 5),
            SampleSaved("2.png", "b", 2, 6),
            CheckpointSaved("m.safetensors", 6, 1, "ab", 10),
            LoraSaved("l.safetensors", 6, 1, "ab", 10),
            StateSaved("old", 5),
            StateSaved("state", 6),
            Notice("warning", "careful"),
        )
        assert [sample.path for sample in view.samples] == ["2.png", "1.png"]
        assert [file.path for file in view.files] == ["m.safetensors", "l.safetensors"]
        assert view.training_state == "state" and view.notices[0].message == "careful"

    def test_a_plan(self) -> None:
        rows = [PlannedImage(name, "instance", 1, "a", "64x64", 2) for name in "abc"]
        files = FilesPlanned([PlannedFile("x", 1, "at the end")], 1, 2)
        view = view_of(
            ImagesPlanned(rows[:2]),
            ImagesPlanned(rows[2:]),
            ClassImagesPlanned(1, 0, 12, 88, "f"),
            files,
        )
        assert view.planned_images == rows and view.planned_files == files
        assert view.planned_class_images[0].to_generate == 88

    def test_ends(self) -> None:
        assert view_of(STARTED, JobFinished({"a": 1})).state == "finished"
        finished = view_of(STARTED, step(5), JobFinished({}))
        assert finished.fraction == 1.0 and finished.eta_seconds is None and finished.ended
        stopped = view_of(STARTED, step(5), JobStopped(5, {"steps": 5}))
        assert (stopped.state, stopped.fraction, stopped.summary) == ("stopped", 0.25, {"steps": 5})
        kept, changes = ["A state is kept."], {"batch.batch_size": 1}
        final = JobFailed("no", "do this", "a.b", "OSError", kept=kept, changes=changes)
        failed = view_of(STARTED, final)
        assert (failed.kept, failed.as_dict()["changes"]) == (kept, changes)
        assert (failed.state, failed.message, failed.remedy) == ("failed", "no", "do this")
        assert (failed.field, failed.error) == ("a.b", "OSError")

    def test_nothing_counts_after_the_end(self) -> None:
        view = view_of(STARTED, JobFailed("first"), JobFailed("second"), step(9))
        assert (view.message, view.step) == ("first", 0)

    def test_stopping(self) -> None:
        view = view_of(STARTED)
        view.note([Command("sample"), Command("stop_after_epoch")])
        assert (view.state, view.stop_asked) == ("stopping", "stop_after_epoch")
        view.note([Command("stop"), Command("stop_after_epoch")])
        assert view.stop_asked == "stop"
        view.update([JobStopped(1, {})])
        view.note([Command("stop")])
        assert view.state == "stopped"
        early = RunView()
        early.note([Command("stop")])
        early.update([STARTED])
        assert early.state == "stopping"

    def test_everything_is_json(self) -> None:
        view = view_of(
            STARTED,
            step(1),
            SampleSaved("1.png", "a", 1),
            ImagesPlanned([PlannedImage("a", "class", 1, "p", "64x64", 1)]),
            FilesPlanned([PlannedFile("x", 1, "end")], 1, 2),
            Preflight([Finding("error", "torn", "Take another.")], [PhaseMemory("training", 3, 4)]),
        )
        values = json.loads(json.dumps(view.as_dict()))
        assert values["curves"]["loss_instance"] == [[1, 2.0]]
        assert values["planned_files"]["rows"][0]["path"] == "x"
        assert values["samples"][0]["prompt"] == "a" and values["fraction"] == 0.05
        assert values["preflight"]["findings"][0]["remedy"] == "Take another."
        assert values["preflight"]["memory"][0]["gpu_bytes"] == 3
        assert RunView().as_dict()["planned_files"] is None is RunView().as_dict()["preflight"]


class TestCurves:
    @settings(deadline=None)
    @given(st.integers(0, 5 * MOST_POINTS))
    def test_any_length_is_a_bounded_number_of_points(self, count: int) -> None:
        curve = Curve()
        for number in range(count):
            curve.add(number, float(number))
        points = curve.points
        assert len(points) <= MOST_POINTS and len(points) >= min(count, MOST_POINTS // 2)
        assert points == sorted(set(points))
        if count:
            assert points[0] == (0, 0.0) and points[-1][0] == count - 1

    def test_it_does_not_matter_when_one_looks(self) -> None:
        looked_at, left_alone = Curve(), Curve()
        for number in range(3 * MOST_POINTS):
            looked_at.add(number, 1.0)
            left_alone.add(number, 1.0)
            assert len(looked_at.points) <= MOST_POINTS
        assert looked_at.points == left_alone.points

    def test_a_mean_is_right_from_the_first_value(self) -> None:
        mean = RunningMean()
        assert mean.add(3.0) == pytest.approx(3.0)
        assert mean.add(1.0) == pytest.approx((SMOOTHING * 3 + 1) / (SMOOTHING + 1))
        for _ in range(500):
            last = mean.add(7.0)
        assert last == pytest.approx(7.0)


def test_twenty_thousand_events_take_no_more_memory_than_two_thousand() -> None:
    def add(view: RunView, first: int, last: int) -> None:
        for number in range(first, last):
            view.update([step(number, 20_000, 0.5), SampleSaved(f"{number}.png", "p", number)])
            view.update([Notice("info", f"n {number}")])

    view = RunView()
    tracemalloc.start()
    add(view, 1, 2_000)
    before, _ = tracemalloc.get_traced_memory()
    add(view, 2_000, 8_000)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 200_000  # bytes
    assert len(view.samples) == MOST_SAMPLES and len(view.notices) == MOST_NOTICES
    assert view.samples[0].path == "7999.png" and view.notices[-1].message == "n 7999"
    assert all(len(points) <= MOST_POINTS for points in view.curves.values())


class TestReader:
    def test_only_what_is_new_is_read(self, folder: Path) -> None:
        writer, reader = EventWriter(events_path(folder)), RunReader(folder)
        assert (reader.poll().state, reader.poll().kind) == ("starting", "sample")
        assert reader.poll().log_path == str(log_path(folder))
        writer.emit(STARTED)
        assert reader.poll().state == "running"
        events_path(folder).write_bytes(b"#" * events_path(folder).stat().st_size)
        writer.emit(step(3))
        assert reader.poll().step == 3

    def test_a_new_reader_finds_the_same(self, folder: Path) -> None:
        writer, reader = EventWriter(events_path(folder)), RunReader(folder)
        for number in range(1, 40):
            writer.emit(step(number, 50, 0.1 * number))
            reader.poll()
        send(folder, Command("stop"))
        seen, again = reader.poll(), RunReader(folder).poll()
        assert again == seen and again.curves == seen.curves
        assert again.state == "stopping"

    def test_a_torn_line_is_read_once_it_is_whole(self, folder: Path) -> None:
        reader = RunReader(folder)
        EventWriter(events_path(folder)).emit(STARTED)
        whole = events_path(folder).read_bytes()
        events_path(folder).write_bytes(whole[:-5])
        assert reader.poll().state == "starting"
        events_path(folder).write_bytes(whole)
        assert reader.poll().state == "running"

    def test_a_worker_that_is_gone_has_failed(self, folder: Path) -> None:
        EventWriter(events_path(folder)).emit(STARTED)
        log_path(folder).write_text("the last words\n")
        process_path(folder).write_text(json.dumps({"pid": 2**30, "mark": "x"}))
        view = RunReader(folder).poll()
        assert (view.state, view.error) == ("failed", "WorkerDied")
        assert "the last words" in view.message and str(log_path(folder)) in view.remedy

    def test_the_end_that_a_worker_wrote_counts(self, folder: Path) -> None:
        EventWriter(events_path(folder)).emit(JobFinished({}))
        process_path(folder).write_text(json.dumps({"pid": 2**30, "mark": "x"}))
        reader = RunReader(folder)
        assert reader.poll().state == "finished" and reader.poll().state == "finished"

    def test_a_folder_without_a_readable_job(self, tmp_path: Path) -> None:
        (tmp_path / "job.json").write_text("{")
        assert RunReader(tmp_path).poll().kind == ""

    def test_a_run_of_twenty_thousand_events(self, folder: Path) -> None:
        lines = [
            json.dumps({"event": "step_done", "time": n, "step": n, "total_steps": 20000,
                        "epoch": 0, "loss": 0.5, "loss_instance": 0.5})
            for n in range(1, 20001)
        ]  # fmt: skip
        events_path(folder).write_text("\n".join(lines) + "\n")
        view = RunReader(folder).poll()
        assert view.step == 20000 and len(view.curves["loss_instance"]) <= MOST_POINTS


def test_a_phase_that_is_counted_to_its_end_is_over() -> None:
    view = RunView()
    assert not view.is_phase_over
    view.update([step(19)])
    assert not view.is_phase_over
    view.update([step(20)])
    assert view.is_phase_over
    view.update([JobFinished({})])
    assert not view.is_phase_over


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3720, "1 h 02 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
