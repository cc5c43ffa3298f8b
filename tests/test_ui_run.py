"""The run panel: what it says of a job in every state, and that it finds the job again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreambooth_core.config.schema import SampleConfig
from dreambooth_core.errors import BusyError, ConfigError, OverlayError, Problem
from dreambooth_core.host.conductor import Conductor
from dreambooth_core.job import launcher
from dreambooth_core.job.events import (
    CheckpointSaved,
    Event,
    EventWriter,
    JobFailed,
    JobFinished,
    JobStarted,
    JobStopped,
    Notice,
    PhaseProgress,
    PhaseStarted,
    SampleSaved,
    StateSaved,
    StepDone,
)
from dreambooth_core.job.interpreter import WorkerPython
from dreambooth_core.job.launcher import Job
from dreambooth_core.job.run_view import RunView, duration
from dreambooth_core.job.runs import events_path, log_path
from dreambooth_core.job.workspace import ModelInfo, Workspace
from dreambooth_core.ui.run_html import (
    caption,
    curves_html,
    log_html,
    progress_html,
    summary_html,
)
from dreambooth_core.ui.run_plot import MOST_SHOWN, Line, plot, shown_points, ticks

gradio = pytest.importorskip("gradio")
run = pytest.importorskip("dreambooth_core.ui.run")

EVIL = "<script>alert('x')</script>&\"</pre>"
STARTED = JobStarted("train", "ada", "run", 1, "1", time=100.0)
STEP = StepDone(
    12, 40, 2, 0.5, 0.4, 0.6, {"unet": 2e-6}, 1.0, 1.25, 95.0, 2048.0, time=110.0
)  # fmt: skip
COMPARING = JobStarted("compare", "ada", "run", 1, "1", time=100.0)
SECONDS = 60.0


def view_of(*events: Event) -> RunView:
    view = RunView(run_id="run", kind="train", model="ada")
    view.update(events)
    return view


class Desk:
    """A host that only has a workspace."""

    name = "standalone"

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def workspace(self) -> Workspace:
        return self._workspace

    def overlay(self) -> None:
        return None

    def worker(self) -> WorkerPython:
        return WorkerPython()

    def generation_allowed(self) -> bool:
        return True

    def hold_generation(self) -> AbstractContextManager[None]:
        return nullcontext()

    def release_memory(self) -> None:
        pass

    def reclaim_memory(self) -> None:
        pass

    def checkpoint_saved(self, path: Path, sha256: str) -> None:
        pass


class Page:
    """The panel in a page of its own, and what one browser has been told."""

    def __init__(self, conductor: Any) -> None:
        with gradio.Blocks() as self.blocks:
            self.order = gradio.Textbox("finish")
            self.elsewhere = gradio.HTML("")
            self.panel = run.build_run_panel(conductor.host, lambda: conductor)
            self.panel.follow(lambda model: {self.elsewhere: model}, [self.elsewhere])
            for bind in (
                self.panel.bind_train,
                self.panel.bind_dry_run,
                self.panel.bind_class_images,
                self.panel.bind_save,
                self.panel.bind_compare,
            ):
                bind({self.order}, self.make_config)
        self.seen: dict[str, Any] = {}
        self.shown: dict[str, Any] = {}

    def make_config(self, values: Any) -> SampleConfig:
        return SampleConfig(model="ada", prompts=[values[self.order]])

    def take(self, updates: dict[Any, Any]) -> Page:
        """Show updates as a browser does."""
        names = {id(b): f"button {n}" for n, b in self.panel.buttons.items()}
        displays = ("answer", "progress", "summary", "curves", "gallery", "log")
        for name in (*displays, "outcome"):
            names[id(getattr(self.panel, name))] = name
        names[id(self.elsewhere)] = "compared"
        for component, update in updates.items():
            if id(component) not in names:
                continue
            given = update if isinstance(update, dict) else {"value": update}
            parts = {key: given[key] for key in ("value", "interactive", "visible") if key in given}
            name = names[id(component)]
            self.shown[name] = {**self.shown.get(name, {}), **parts}
        return self

    def look(self) -> Page:
        return self.take(self.panel.refresh(self.seen))

    def press(self, name: str) -> Page:
        return self.take(self.panel.press(name, self.seen))

    def start(self, order: str, kind: str = "sample") -> Page:
        values = {self.order: order, self.panel.seen: self.seen}
        return self.take(self.panel.start(kind, self.make_config, values))

    def text(self, name: str) -> str:
        return str(self.shown.get(name, {}).get("value", ""))

    def enabled(self) -> set[str]:
        return {n for n in self.panel.buttons if self.shown[f"button {n}"]["interactive"]}

    def wait_for(self, words: str, name: str = "progress") -> Page:
        end = time.monotonic() + SECONDS
        while words not in self.look().text(name):
            assert time.monotonic() < end, self.text(name)
            time.sleep(0.05)
        return self


@pytest.fixture
def desk(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Conductor]:
    """A conductor whose workers do what their prompt says."""
    workspace.model("ada").write_info(ModelInfo("ada", "sd1", ""))
    monkeypatch.setattr(launcher, "WORKER_MODULE", "tests.fake_worker")
    conductor = Conductor(Desk(workspace))  # type: ignore[arg-type]
    yield conductor
    job = conductor.job()
    if job is not None:
        job.kill()
    conductor.wait(SECONDS)


class Fixed:
    """A conductor that shows one run's folder, whatever it is asked."""

    def __init__(self, folder: Path | None, problem: OverlayError | None = None) -> None:
        self.host = Desk(Workspace(Path()))
        self.folder, self.problem, self.doing = folder, problem, ""
        self.started: list[str] = []

    def start(self, kind: str, config: Any) -> Job:
        self.started.append(kind)
        raise BusyError(f"Busy with {EVIL}.", remedy="Wait.")

    def job(self) -> Job | None:
        return Job(self.folder.name, self.folder) if self.folder else None

    def preparing(self) -> str:
        return self.doing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "job.json").write_text("{}")
    return folder


def tell(folder: Path, *events: Event) -> None:
    for event in events:
        EventWriter(events_path(folder)).emit(event)


class TestProgress:
    def test_before_the_first_job(self) -> None:
        assert "press Train" in progress_html(None)

    def test_a_training_says_all_numbers(self) -> None:
        text = progress_html(view_of(STARTED, STEP))
        for words in ("Training ada", "Running", "training", "12 / 40", "1.25", "2.0 GB", "0.5000"):
            assert words in text
        assert "<span>epoch</span> 3" in text and "1 min 35 s" in text and "width:30.0%" in text

    def test_a_phase_counts_its_own_units(self) -> None:
        view = view_of(STARTED, PhaseStarted("class images", 8, "images", time=1.0))
        view.update([PhaseProgress("class images", 2, 8, time=5.0)])
        text = progress_html(view)
        assert "class images" in text and "2 of 8 images" in text and "12 s" in text
        view.update([PhaseStarted("reading", 2**21, "bytes"), PhaseProgress("reading", 2**20)])
        assert "1.0 MB of 2.0 MB" in progress_html(view)

    def test_a_phase_that_is_over_has_no_time_left(self) -> None:
        last = replace(STEP, step=40, eta_seconds=0.0)
        text = progress_html(view_of(STARTED, last))
        assert "finishing training" in text and "40 / 40" in text
        assert ">left<" not in text and ">it/s<" not in text
        view = view_of(STARTED, last, PhaseStarted("previews", 1, "images", time=120.0))
        view.update([PhaseProgress("previews", 1, 1, time=125.0)])
        text = progress_html(view)
        assert "finishing previews" in text and ">left<" not in text
        view.update([JobFinished({})])
        assert "finishing" not in progress_html(view)

    def test_a_phase_of_unknown_length_moves(self) -> None:
        assert 'class="unknown"' in progress_html(view_of(STARTED, PhaseStarted("loading")))

    def test_what_is_prepared_is_said(self) -> None:
        doing = "Installing the trainer: 3 of 17"
        assert doing in progress_html(view_of(), preparing=doing)

    def test_a_failure_has_cause_remedy_and_the_way_to_the_log(self) -> None:
        final = JobFailed("The disk is full.", "Free some.", kept=["A state of step 3 is kept."])
        text = progress_html(view_of(STARTED, STEP, final))
        assert "A state of step 3 is kept." in text
        assert "The disk is full." in text and "Free some." in text and "Log" in text
        assert 'role="alert"' in text and "Failed" in text and 'class="failed"' in text

    def test_a_problem_before_any_job(self) -> None:
        text = progress_html(None, problem=OverlayError("No network.", remedy="Repair."))
        assert "No network." in text and "Repair." in text

    def test_only_the_newest_notices_are_shown(self) -> None:
        notices = [Notice("warning", f"notice {n}") for n in range(5)]
        text = progress_html(view_of(STARTED, *notices))
        assert "notice 1" not in text and "notice 2" in text and "notice 4" in text

    def test_a_mere_hint_does_not_look_like_a_warning(self) -> None:
        text = progress_html(
            view_of(STARTED, Notice("info", "a hint"), Notice("warning", "beware"))
        )
        assert 'notice info">a hint' in text and 'notice warning">beware' in text

    def test_the_end_of_the_log_is_shown_while_it_goes_on(self) -> None:
        assert "last words" in progress_html(view_of(STARTED), log=["last words"])
        assert "last words" not in progress_html(view_of(JobFinished({})), log=["last words"])

    def test_nothing_that_a_user_wrote_becomes_html(self) -> None:
        view = RunView(kind=EVIL, model=EVIL)
        events = [
            PhaseStarted(EVIL, 2, EVIL),
            Notice("warning", EVIL),
            SampleSaved(f"/{EVIL}/1.png", EVIL, 1),
            CheckpointSaved(EVIL, 1, 0, "", 1),
            StateSaved(EVIL, 1),
            replace(STEP, learning_rates={EVIL: 1.0}),
            PhaseStarted(EVIL, 2, EVIL),
        ]
        view.update(events)
        going_on = [progress_html(view, preparing=EVIL, log=[EVIL]), progress_html(view)]
        view.update([JobFailed(EVIL, EVIL)])
        view.summary = {"paths": [EVIL + "2"]}
        ended = [progress_html(view), summary_html(view), curves_html(view), log_html([EVIL], EVIL)]
        problem = progress_html(None, problem=OverlayError(EVIL, remedy=EVIL))
        for text in [*going_on, *ended, problem]:
            assert "<script" not in text and "&lt;script" in text
            assert text.count("</pre>") == text.count("<pre")


class TestSummary:
    def test_each_file_written_is_named(self) -> None:
        view = view_of(
            STARTED,
            CheckpointSaved("/m/ada_12.safetensors", 12, 2, "ab", 3 * 2**20),
            SampleSaved("/s/1.png", "a", 1),
            StateSaved("/state/12", 12),
            replace(STEP, time=190.0),
        )
        assert summary_html(view) == ""
        view.update([JobStopped(12, {"checkpoints": ["/m/ada_12.safetensors"]})])
        text = summary_html(view)
        assert "Stopped in 1 min 30 s" in text
        assert "/m/ada_12.safetensors (3.0 MB, step 12, epoch 2)" in text
        assert "/state/12" in text and "1 picture in /s" in text
        assert text.count("ada_12") == 1

    def test_a_merged_file_has_no_step(self) -> None:
        saved = CheckpointSaved("/m/both.safetensors", 0, 0, "ab", 3 * 2**20)
        text = summary_html(view_of(STARTED, saved, JobFinished({})))
        assert "/m/both.safetensors (3.0 MB)" in text

    def test_files_of_other_jobs_come_from_their_summary(self) -> None:
        view = view_of(JobFinished({"paths": ["/a.png", "/b.png"], "grid": "/g.png"}))
        assert all(f"<li>/{name}.png</li>" in summary_html(view) for name in "abg")
        assert "Nothing" in summary_html(view_of(JobFinished({})))

    def test_words(self) -> None:
        assert caption("a dog", 3, 7) == "step 3, seed 7: a dog"
        assert caption("", 0, 7) == "seed 7"
        assert [duration(s) for s in (5, 65, 3720)] == ["5 s", "1 min 05 s", "1 h 02 min"]


class TestPlot:
    def test_losses_and_rates_are_two_plots(self) -> None:
        text = curves_html(view_of(STARTED, *(replace(STEP, step=n) for n in range(1, 9))))
        assert text.count("<svg") == 2 and text.count("<polyline") == 4
        for words in ("instance 0.4", "class 0.6", "smoothed 0.5", "unet 2e-06", "Learning rate"):
            assert words in text
        assert curves_html(None) == curves_html(view_of(STARTED)) == ""

    def test_a_curve_stays_on_the_drawing(self) -> None:
        text = plot("t", [Line("a", [(0, -5.0), (10, 1e9), (500, 3.0)], "red")])
        places = text.partition('points="')[2].partition('"')[0].split()
        spots = [tuple(map(float, place.split(","))) for place in places]
        assert all(58 <= x <= 620 and 12 <= y <= 202 for x, y in spots)
        assert spots[0][0] == 58 and spots[-1][0] == 620 and spots[1][1] < spots[0][1]

    @pytest.mark.parametrize("points", [[(1, 0.5)], [(1, 0.0)], [(1, 2.0), (2, 2.0)]])
    def test_flat_and_single_values(self, points: list[tuple[int, float]]) -> None:
        assert "nan" not in plot("t", [Line("a", points, "red")]).lower()

    def test_ticks_are_round(self) -> None:
        assert ticks(0.0, 1.0) == pytest.approx([0.0, 0.5, 1.0])
        assert ticks(3, 40) == pytest.approx([10, 20, 30, 40])
        assert ticks(0.0, 2.1e-6) == pytest.approx([0.0, 1e-6, 2e-6])

    def test_few_points_are_drawn(self) -> None:
        points = [(n, float(n)) for n in range(1000)]
        shown = shown_points(points)
        assert len(shown) == MOST_SHOWN and (shown[0], shown[-1]) == (points[0], points[-1])
        assert shown == sorted(set(shown)) and shown_points(points[:5]) == points[:5]


class TestButtons:
    def test_before_a_job_only_starting_is_possible(self) -> None:
        page = Page(Fixed(None)).look()
        assert page.enabled() == {"train", "dry_run", "class_images", "checkpoint", "compare"}

    def test_while_a_training_runs(self) -> None:
        going_on = run.buttons_enabled(view_of(STARTED), "")
        assert {n for n, on in going_on.items() if on} == {
            "stop",
            "stop_after_epoch",
            "save",
            "sample",
        }
        view = view_of(STARTED)
        view.note([launcher.Command("stop_after_epoch")])
        assert {n for n, on in run.buttons_enabled(view, "").items() if on} == {"stop"}

    def test_other_jobs_can_only_be_stopped(self) -> None:
        view = view_of(replace(STARTED, kind="class-images"))
        assert {n for n, on in run.buttons_enabled(view, "").items() if on} == {"stop"}
        assert {n for n, on in run.buttons_enabled(None, "x").items() if on} == {"stop"}

    def test_every_button_is_answered(self) -> None:
        page = Page(Fixed(None))
        config = page.blocks.get_config_file()
        # Gradio 3 lists the components, newer ones (component, event).
        targets = [target for d in config["dependencies"] for target in d["targets"]]
        answered = {target if isinstance(target, int) else target[0] for target in targets}
        assert {button._id for button in page.panel.buttons.values()} <= answered
        assert page.panel.train_button is page.panel.buttons["train"]

    def test_pressing_without_a_job(self) -> None:
        for name in ("stop", "stop_after_epoch", "save", "sample"):
            assert "No job is going on" in Page(Fixed(None)).press(name).text("answer")


class TestFollowing:
    def test_a_page_is_told_only_what_changed(self, folder: Path) -> None:
        page = Page(Fixed(folder))
        first = page.panel.refresh(page.seen)
        again = page.panel.refresh(page.seen)
        values = [v for c, v in again.items() if c is not page.panel.seen]
        assert all("value" not in update and "interactive" not in update for update in values)
        assert "value" in first[page.panel.progress]
        tell(folder, STARTED, STEP)
        assert "12 / 40" in page.look().text("progress")
        assert "<svg" in page.text("curves")

    def test_pictures_come_newest_first(self, folder: Path, tmp_path: Path) -> None:
        for number in (1, 2):
            Image.new("RGB", (900, 600)).save(tmp_path / f"{number}.png")
        tell(folder, SampleSaved(str(tmp_path / "1.png"), "a cat", 4, 5))
        page = Page(Fixed(folder)).look()
        assert [words for _, words in page.shown["gallery"]["value"]] == ["step 5, seed 4: a cat"]
        tell(
            folder,
            SampleSaved(str(tmp_path / "2.png"), EVIL, 4, 9),
            SampleSaved(str(tmp_path / "gone.png"), "x", 4, 10),
        )
        pictures = page.look().shown["gallery"]["value"]
        assert [words for _, words in pictures] == [
            f"step 9, seed 4: {EVIL}",
            "step 5, seed 4: a cat",
        ]
        assert pictures[0][0].size == (384, 256)

    def test_a_comparison_is_told_at_its_end_and_shown_elsewhere(self, folder: Path) -> None:
        tell(folder, COMPARING, SampleSaved("compare.png", "compared", 4))
        page = Page(Fixed(folder)).look()
        assert page.shown["gallery"]["value"] == []
        assert page.text("compared") == ""
        tell(folder, JobFinished({"grid": "compare.png", "keep": "/m/ada_12.safetensors"}))
        page.look()
        assert page.text("compared") == "ada"
        page.shown.clear()
        assert page.look().text("compared") == "", "it is told once"
        summary = Page(Fixed(folder)).look().text("summary")
        assert "ada_12 scored best." in summary and "Compare tab" in summary
        assert "1 picture" not in summary

    def test_nothing_to_keep_is_not_recommended(self) -> None:
        text = summary_html(view_of(COMPARING, JobFinished({"grid": "compare.png", "keep": ""})))
        assert "Keep" not in text and "best" not in text and "Compare tab" in text

    def test_there_is_no_room_for_curves_and_pictures_before_there_are_some(
        self, folder: Path, tmp_path: Path
    ) -> None:
        page = Page(Fixed(folder)).look()
        assert page.shown["outcome"]["visible"] is not True
        tell(folder, STARTED, STEP)
        assert page.look().shown["outcome"]["visible"] is True

    def test_the_log_is_there(self, folder: Path) -> None:
        log_path(folder).write_text("one\ntwo <b>\n")
        page = Page(Fixed(folder)).look()
        assert "one\ntwo &lt;b&gt;" in page.text("log") and str(log_path(folder)) in page.text(
            "log"
        )

    def test_two_pages_at_once(self, folder: Path) -> None:
        conductor = Fixed(folder)
        page = Page(conductor)

        def look(_: int) -> None:
            seen: dict[str, Any] = {}
            for _ in range(20):
                page.panel.refresh(seen)

        with ThreadPoolExecutor(3) as threads:
            done = threads.map(look, range(3))
            for number in range(1, 30):
                tell(folder, replace(STEP, step=number, total_steps=40))
        assert list(done) == [None] * 3
        points = page.panel.look()[0].curves["loss_instance"]
        assert [step for step, _ in points] == list(range(1, 30))

    def test_an_answer_goes_when_the_job_moves_on(self, folder: Path) -> None:
        tell(folder, STARTED)
        page = Page(Fixed(folder)).look().press("sample")
        assert "Pictures are made" in page.look().text("answer")
        tell(folder, JobFinished({}))
        assert page.look().text("answer") == ""

    def test_a_refusal_is_explained(self, folder: Path) -> None:
        conductor = Fixed(folder)
        text = Page(conductor).start("finish", "train").text("answer")
        assert "Busy with &lt;script" in text and "Wait." in text
        assert conductor.started == ["train"]

    def test_each_starter_is_bound_to_its_job(self, monkeypatch: pytest.MonkeyPatch) -> None:
        page, bound = Page(Fixed(None)), []
        monkeypatch.setattr(page.panel, "_bind_start", lambda *given: bound.append(given[:2]))
        for bind in (page.panel.bind_train, page.panel.bind_dry_run, page.panel.bind_class_images):
            bind({page.order}, page.make_config)
        names = [("train", "train"), ("dry_run", "dry-run"), ("class_images", "class-images")]
        assert bound == names

    def test_settings_that_cannot_be_used_are_explained(self) -> None:
        page = Page(Fixed(None))

        def refuse(values: Any) -> SampleConfig:
            raise ConfigError([Problem("model", "is not chosen.", "Choose one.")])

        updates = page.panel.start("train", refuse, {page.panel.seen: {}})
        assert "is not chosen." in page.take(updates).text("answer")


class TestJobs:
    """With real worker processes, from the page's point of view."""

    def test_from_start_to_end(self, desk: Conductor) -> None:
        page = Page(desk).start("finish")
        assert "train" not in page.enabled() and page.text("answer") == ""
        page.wait_for("Finished")
        assert "one.png" in page.text("summary") and "two.png" in page.text("summary")
        assert page.enabled() == {"train", "dry_run", "class_images", "checkpoint", "compare"}

    def test_a_button_that_can_be_pressed_starts_a_job(self, desk: Conductor) -> None:
        """However the one before ended, and though its worker may still be going away."""
        page = Page(desk)
        for order, end in (("linger", "Finished"), ("die", "Failed"), ("finish", "Finished")):
            assert page.start(order).text("answer") == ""
            assert "train" in page.wait_for(end).enabled()
        page.start("wait").press("stop").wait_for("Stopped")  # perhaps before it had a worker
        assert "train" in page.enabled()
        assert page.start("finish").text("answer") == ""
        page.wait_for("Finished")

    def test_stop_now(self, desk: Conductor) -> None:
        page = Page(desk).start("wait").wait_for("working")
        assert "stops after the step" in page.press("stop").text("answer")
        page.wait_for("Stopped")

    def test_a_job_that_does_not_stop_can_be_ended(self, desk: Conductor) -> None:
        page = Page(desk).start("wait").wait_for("working")
        view, _ = page.panel.look()
        view.note([launcher.Command("stop")])  # as if the worker did not look at its commands
        assert page.look().shown["button stop"]["value"] == run.END_AT_ONCE
        assert "ended at once" in page.press("stop").text("answer")
        page.wait_for("Failed")
        assert page.look().shown["button stop"]["value"] == run.STOP

    def test_a_killed_worker_is_a_cause_and_a_place_to_look(self, desk: Conductor) -> None:
        page = Page(desk).start("die").wait_for("Failed")
        assert "was killed by signal 9" in page.text("progress")
        assert "The log is" in page.text("progress")
        assert "line before the end" in page.text("log")
        assert "train" in page.enabled()

    def test_a_full_disk_is_a_cause_and_a_remedy(self, desk: Conductor) -> None:
        page = Page(desk).start("full").wait_for("Failed")
        assert "The disk is full (model_12.safetensors.tmp)." in page.text("progress")
        assert "Free some space" in page.text("progress")
        assert "No space left on device" in page.text("log")

    def test_an_error_in_the_settings_words(self, desk: Conductor) -> None:
        page = Page(desk).start("usage").wait_for("Failed")
        assert "x.safetensors is damaged." in page.text("progress")
        assert "Get it again." in page.text("progress")

    def test_a_restarted_host_finds_the_job(self, desk: Conductor) -> None:
        old = Page(desk).start("wait").wait_for("working")
        restarted = Conductor(desk.host)
        page = Page(restarted).look()
        assert "working" in page.text("progress") and page.enabled() == {"stop"}
        assert [job.run_id for job in restarted.adopt()] == [desk.job().run_id]
        assert "still going on" in page.start("finish").text("answer")
        page.press("stop").wait_for("Stopped")
        assert "Stopped" in old.look().text("progress")
        assert restarted.wait(SECONDS)

    def test_a_reloaded_page_is_told_everything_again(self, desk: Conductor) -> None:
        page = Page(desk).start("finish").wait_for("Finished")
        fresh: dict[str, Any] = {}
        updates = page.panel.refresh(fresh)
        assert "Finished" in updates[page.panel.progress]["value"]
        assert "one.png" in updates[page.panel.summary]["value"]
