"""Words on the page, what is told of a checkpoint, and what a plan looks like."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from dreambooth_core import demo
from dreambooth_core.checkpoint.header import read_header
from dreambooth_core.checkpoint.recognise import has_ema_weights, trainable_family
from dreambooth_core.config.schema import CreateConfig, TrainConfig
from dreambooth_core.errors import ConfigError, InputError, JobFailedError, Problem
from dreambooth_core.host.base import set_host
from dreambooth_core.host.standalone import StandaloneHost
from dreambooth_core.job.events import (
    ClassImagesPlanned,
    EventWriter,
    FilesPlanned,
    Finding,
    ImagesPlanned,
    JobFailed,
    JobFinished,
    Notice,
    PhaseMemory,
    PlannedFile,
    PlannedImage,
    Preflight,
    StepDone,
)
from dreambooth_core.job.history import past_runs
from dreambooth_core.job.launcher import Job
from dreambooth_core.job.run_view import RunView
from dreambooth_core.job.runs import Run, create_run_folder, events_path, write_run
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.ui import gradio_compat
from dreambooth_core.ui.messages import explain, facts, label_of, note, size_text, table
from dreambooth_core.ui.plan import UNUSABLE, PlanView, followed
from dreambooth_core.ui.tabs.concepts import (
    MOST_ROWS,
    show_shapes,
    show_summary,
    show_table,
    show_thumbnails,
)
from dreambooth_core.ui.tabs.create import describe_source, loadable_in_host, source_names
from dreambooth_core.ui.tabs.saving import show_files

HOSTILE = "<script>alert('x')</script>"


def image(file: str, kind: str = "instance", **more: object) -> PlannedImage:
    return PlannedImage(file, kind, 1, f"photo {HOSTILE}", "128x128", 80, **more)  # type: ignore[arg-type]


def test_every_way_to_say_something_escapes_it() -> None:
    error = InputError(HOSTILE, remedy=HOSTILE)
    problems = ConfigError([Problem(HOSTILE, HOSTILE, HOSTILE)])
    said = note(HOSTILE) + explain(error) + explain(problems) + table([HOSTILE], [[HOSTILE]])
    said += facts([(HOSTILE, HOSTILE)]) + show_table([image(f"/x/{HOSTILE}")])
    said += show_files(FilesPlanned([PlannedFile(f"/x/{HOSTILE}", 1, HOSTILE)], 1, 2))
    said += describe_source(Workspace(Path("nowhere")), HOSTILE)
    assert "<script>" not in said and said.count("&lt;script&gt;") > 10


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("learning_rate.unet", "Learning rate: UNet learning rate"),
        ("seed", "Seed"),
        ("concepts.1.class_prompt", "Concept 2: Class prompt"),
        ("concepts.0", "Concept 1"),
        ("ema", "EMA"),
        ("something.else", "something.else"),
    ],
)
def test_settings_are_called_by_the_labels_on_the_page(path: str, label: str) -> None:
    assert label_of(path) == label


def test_a_problem_is_told_with_its_label_and_remedy() -> None:
    said = explain(ConfigError([Problem("name", "is taken.", "Choose another.")]), CreateConfig)
    assert "<strong>Name</strong> is taken." in said and "Choose another." in said


@pytest.mark.parametrize(
    ("size", "words"),
    [(5, "5 bytes"), (2048, "2 KB"), (3.5 * 2**20, "3.5 MB"), (2 * 2**30, "2.0 GB")],
)
def test_sizes_are_readable(size: float, words: str) -> None:
    assert size_text(size) == words


def test_the_built_in_checkpoint_is_recognised_from_its_header(workspace: Workspace) -> None:
    said = describe_source(workspace, str(demo.CHECKPOINT))
    assert "Stable Diffusion 1" in said and "world.safetensors" in said
    header = read_header(demo.CHECKPOINT)
    assert trainable_family(header) == "sd1" and not has_ema_weights(header)
    assert source_names(StandaloneHost(workspace))[-1] == str(demo.CHECKPOINT)


def test_what_is_no_checkpoint_is_said_before_anything_starts(
    workspace: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"no header")
    assert "not a readable" in describe_source(workspace, str(tmp_path / "a.safetensors"))
    assert "no checkpoint file" in describe_source(workspace, "missing.safetensors")
    assert "Choose a checkpoint" in describe_source(workspace, "  ")
    (tmp_path / "model_index.json").write_text("{}")
    assert "diffusers layout" in describe_source(workspace, str(tmp_path))


def test_the_class_image_plan_is_told_in_numbers() -> None:
    view = RunView(planned_images=[image("a.png"), image("b.png"), image("c.png", "class")])
    view.planned_class_images = [ClassImagesPlanned(1, 0, 12, 88, "x")]
    view.notices = [Notice("warning", HOSTILE)]
    said = show_summary(view)
    assert "2 instance images" in said
    assert "12 found and fitting, 88 to generate" in said
    assert "dreambooth-warning" in said and "<script>" not in said
    assert "nothing to show" in show_summary(RunView())


def test_what_was_found_before_the_start_is_told_with_its_remedy() -> None:
    view = RunView(planned_images=[image("a.png")])
    view.preflight = Preflight(
        [
            Finding("error", f"{HOSTILE} cannot be read.", "Replace the file."),
            Finding("info", "dog is known.", "Take zwx.", "concepts.1.instance_token"),
        ],
        [PhaseMemory("training", 3 * 2**30, 2**30)],
        *("NVIDIA Something", 8 * 2**30, 0),
    )
    said = show_summary(view)
    assert "dreambooth-error" in said and "Replace the file." in said and "<script>" not in said
    assert "Concept 2: Instance token:" in said and "dreambooth-note" in said
    assert "<th>NVIDIA Something</th><th>Main memory</th>" in said
    assert "<td>about 3.0 GB</td><td>about 1.0 GB</td>" in said
    assert "<td>there is</td><td>8.0 GB</td><td>not known</td>" in said


def test_a_plan_of_unusable_pictures_says_so_on_both_tabs() -> None:
    places: Any = SimpleNamespace(summary="summary", thumbnails="thumbnails", table="table")
    saving: Any = SimpleNamespace(files="files")
    shown = PlanView(places, saving)._show(
        RunView(preflight=Preflight([Finding("error", "a.png cannot be read.")]))
    )
    assert "a.png cannot be read." in shown["summary"] and UNUSABLE in shown["files"]


def test_on_a_cpu_there_is_one_kind_of_memory() -> None:
    view = RunView(preflight=Preflight([], [PhaseMemory("saving", 0, 2**30)], "cpu", 0, 2**31))
    said = show_summary(view)
    assert "Nothing was found that stands in the way." in said and "<th>cpu</th>" not in said
    assert "<td>saving</td><td>about 1.0 GB</td>" in said and "<td>2.0 GB</td>" in said


def test_the_table_says_what_is_still_to_be_made_and_stays_short() -> None:
    rows = [image(f"{number}.png") for number in range(MOST_ROWS + 5)]
    said = show_table([image("x.png", "class", exists=False), *rows])
    assert "class, to generate" in said and "6 more pictures" in said
    assert "<th>Concept</th>" not in said
    two = [image("a.png"), PlannedImage("b.png", "instance", 2, "p", "64x64", 1)]
    assert "<th>Concept</th>" in show_table(two)


def test_thumbnails_are_small_and_unreadable_pictures_are_left_out(tmp_path: Path) -> None:
    Image.new("RGBA", (900, 300)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    rows = [image(str(tmp_path / name)) for name in ("a.png", "b.png", "missing.png")]
    shown = show_thumbnails([*rows, image(str(tmp_path / "a.png"), "class")])
    assert len(shown) == 1
    assert shown[0][0].size == (256, 85) and shown[0][1].startswith("photo")


def test_the_files_of_a_run_are_listed_with_the_room_for_them() -> None:
    rows = [
        PlannedFile("/m/ada_100.safetensors", 2 * 2**30, "epoch 25"),
        PlannedFile("/s/step_100", 3 * 2**20, "epoch 25", kept=False, estimated=True),
    ]
    said = show_files(FilesPlanned(rows, 3 * 2**30, 5 * 2**30))
    assert "ada_100.safetensors" in said and "2.0 GB" in said and "5.0 GB are free" in said
    assert "about 3.0 MB" in said and "dreambooth-good" in said
    assert ">s/step_100 (deleted again" in said
    assert "not enough" in show_files(FilesPlanned(rows, 6 * 2**30, 5 * 2**30))
    assert "Press the button" in show_files(None)


def run_of(workspace: Workspace, *events: object, kind: str = "train", model: str = "ada") -> Path:
    folder = create_run_folder(workspace, kind)
    write_run(folder, Run(folder.name, kind, workspace.root, TrainConfig(model=model)))
    writer = EventWriter(events_path(folder))
    for event in events:
        writer.emit(event)  # type: ignore[arg-type]
    return folder


def test_the_history_tells_how_each_run_ended(workspace: Workspace) -> None:
    run_of(workspace, StepDone(7, 9, 0, 0.5, 0.5), JobFinished({}))
    run_of(workspace, JobFailed("no memory", "less"))
    run_of(workspace, JobFinished({}), model="bob")
    (workspace.jobs_dir / "broken").mkdir()
    (workspace.jobs_dir / "broken" / "job.json").write_text("{")
    told = [(past.step, past.outcome) for past in past_runs(workspace, "ada")]
    assert sorted(told) == [(0, "failed: no memory"), (7, "finished")]
    assert len(past_runs(workspace, "ada", limit=1)) == 1


def test_a_plan_is_followed_to_its_end(workspace: Workspace) -> None:
    folder = run_of(
        workspace, ImagesPlanned([image("a.png")]), JobFinished({}), kind="class-images"
    )
    assert len(followed(Job(folder.name, folder)).planned_images) == 1
    failed = run_of(workspace, JobFailed("cannot be read", "Check it."), kind="class-images")
    with pytest.raises(JobFailedError, match="Check it"):
        followed(Job(failed.name, failed))


def test_the_page_of_our_own_gets_its_looks_where_this_version_wants_them() -> None:
    blocks, launch = gradio_compat.page_options("p{}", "1", "T")
    assert blocks["title"] == "T"
    assert {"css", "theme"} <= set(blocks) | set(launch)
    assert not set(blocks) & set(launch)


def test_uploads_come_as_paths_or_as_objects(tmp_path: Path) -> None:
    class Named:
        name = str(tmp_path)

    assert gradio_compat.uploaded_path(Named()) == tmp_path
    assert gradio_compat.uploaded_path(str(tmp_path)) == tmp_path
    assert gradio_compat.uploaded_path(None) is None


def test_options_that_a_version_lacks_are_left_out() -> None:
    def function(label: str) -> str:
        return label

    assert gradio_compat.supported(function, {"label": "x", "other": 1}) == {"label": "x"}


@pytest.fixture(autouse=True)
def _alone(workspace: Workspace) -> None:
    set_host(StandaloneHost(workspace))


def test_the_built_in_checkpoint_is_put_where_the_webui_loads_it(tmp_path: Path) -> None:
    host = StandaloneHost(Workspace(tmp_path))
    config = loadable_in_host(CreateConfig(name="ada", source=str(demo.CHECKPOINT)), host)
    placed = Path(config.source)
    assert placed.parent == host.workspace().checkpoints_dir
    assert placed.read_bytes() == demo.CHECKPOINT.read_bytes()
    assert "version:" in placed.with_suffix(".yaml").read_text(encoding="utf-8")
    assert loadable_in_host(config, host) == config


def test_the_shapes_are_counted_by_kind() -> None:
    """From narrow to wide, a shape that only class images have included."""
    rows = [
        PlannedImage("a.png", "instance", 1, "p", "512x512", 1),
        PlannedImage("b.png", "instance", 1, "p", "448x576", 1),
        PlannedImage("c.png", "class", 1, "p", "512x512", 1),
        PlannedImage("d.png", "class", 1, "p", "640x384", 1),
    ]
    said = show_shapes(rows)
    cells = re.findall("<td>(.*?)</td>", said)
    assert cells == ["448x576", "1", "0", "512x512", "1", "1", "640x384", "0", "1"]
    assert said in show_table(rows)
