"""The plan of a training: what it says comes true, and saying it needs neither torch nor a lock."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreambooth_core.config.schema import OPTIMIZER_CHOICES, TrainConfig
from dreambooth_core.data.dataset import TrainingSet
from dreambooth_core.data.examples import Example
from dreambooth_core.errors import CheckpointError, InputError
from dreambooth_core.families import FAMILIES, load_components
from dreambooth_core.job import launcher, lock
from dreambooth_core.job.commands import Command, send
from dreambooth_core.job.events import (
    CheckpointSaved,
    ClassImagesPlanned,
    Event,
    FilesPlanned,
    ImagesPlanned,
    JobFinished,
    PlanMade,
    PlannedFile,
    PlannedImage,
    Preflight,
    SampleSaved,
    StateSaved,
)
from dreambooth_core.job.process import start_mark
from dreambooth_core.job.runs import Run, create_run_folder, write_run
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.stages import plan, planned_files
from dreambooth_core.stages.class_images import ensure_class_images
from dreambooth_core.stages.model_shape import component_config, model_quantum
from dreambooth_core.stages.optimizer_sizes import OPTIMIZER_SIZES
from dreambooth_core.stages.planned_files import MOST_ROWS, shortened
from dreambooth_core.stages.preflight import pictures
from dreambooth_core.stages.training_pictures import arrange, find_class_images, find_instances
from dreambooth_core.stages.training_setup import step_batches
from tests.noise_pictures import write_pictures
from tests.trainings import Trainings

ROOT = Path(__file__).resolve().parents[1]
CLASSES = {
    "class_prompt": "a dog",
    "class_images_per_instance_image": 1,
    "class_steps": 1,
    "class_cfg_scale": 1.0,
}


@pytest.fixture
def trainings(tiny_model_folder: ModelFolder) -> Trainings:
    return Trainings(launcher.Workspace(tiny_model_folder.path.parents[2]))


def planned(trainings: Trainings, config: TrainConfig) -> tuple[dict[str, Any], list[Event]]:
    context, events = trainings.context("plan")
    return plan.run(config, context), events


def rows_of(events: list[Event]) -> list[PlannedImage]:
    return [row for event in events if isinstance(event, ImagesPlanned) for row in event.rows]


def only(events: list[Event], kind: type[Any]) -> Any:
    (found,) = [event for event in events if type(event) is kind]
    return found


def test_every_picture_has_its_prompt_bucket_and_repeats(trainings: Trainings) -> None:
    write_pictures(trainings.pictures / "wide", 1, size=(128, 64))
    config = trainings.config({"concept": CLASSES, "intervals": {"epochs": 3}})
    summary, events = planned(trainings, config)
    rows = rows_of(events)
    instances = [row for row in rows if row.kind == "instance"]
    assert [Path(row.file).name for row in instances] == [
        *(f"{letter} red dog.png" for letter in "abcd"),
        "a red dog.png",
    ]
    assert [row.prompt for row in instances[:2]] == ["a red zwx dog", "b red zwx dog"]
    assert {row.bucket for row in instances[:4]} == {"64x64"} and instances[4].bucket == "80x48"
    assert {row.repeats for row in rows} == {3}
    assert {row.concept for row in rows} == {1}
    classes = [row for row in rows if row.kind == "class"]
    assert len(classes) == 5 and not any(row.exists for row in classes)
    assert {row.prompt for row in classes} == {"a dog"}
    assert sorted(row.bucket for row in classes) == ["64x64"] * 4 + ["80x48"]
    assert only(events, ClassImagesPlanned).to_generate == 5
    assert (summary["instance_images"], summary["class_images_to_generate"]) == (5, 5)
    assert "5 instance images and 5 class images" in only(events, PlanMade).lines[0]


def test_the_plan_is_what_training_does(trainings: Trainings) -> None:
    changes = {
        "concept": {**CLASSES, "sample_prompts": ["zwx dog"]},
        "intervals": {"epochs": 2, "max_steps": 7},
        "batch": {"class_batch_size": 1},
        "saving": {"save_at_end": True, "save_every_steps": 3, "dtype": "fp32"},
        "previews": {"every_steps": 5, "steps": 1},
    }
    config = trainings.config(changes)
    summary, events = planned(trainings, config)
    files = only(events, FilesPlanned)
    trained = trainings.run(changes, run_id=planned_files.RUN)
    assert summary["total_steps"] == trained.summary["steps"] == 7
    *lines, shapes = only(events, PlanMade).lines
    assert lines == trained.events_of(PlanMade)[0].lines and shapes.startswith("Shapes")
    saved = {event.path: event.size for event in trained.events_of(CheckpointSaved)}
    checkpoints = {row.path: row for row in files.rows if row.path.endswith(".safetensors")}
    assert checkpoints.keys() == saved.keys() and len(saved) == 3
    assert all(0 <= saved[path] - checkpoints[path].bytes < 2048 for path in saved)
    assert [row.when for row in checkpoints.values()] == [
        "step 3, epoch 1",
        "step 6, epoch 2",
        "at the end, step 7, epoch 2",
    ]
    sides = [row for row in files.rows if row.path.endswith(".yaml")]
    assert [row.bytes for row in sides] == [Path(row.path).stat().st_size for row in sides] != []
    cards = [row for row in files.rows if row.path.endswith((".json", ".preview.png"))]
    assert len(cards) == 5 and all(Path(row.path).is_file() for row in cards)  # a preview is at 5
    (state,) = [row for row in files.rows if "/state/" in Path(row.path).as_posix()]
    assert state.path == trained.events_of(StateSaved)[0].path
    size = sum(path.stat().st_size for path in Path(state.path).iterdir())
    assert state.bytes == pytest.approx(size, rel=0.2)
    samples = trained.events_of(SampleSaved)
    previews = next(row for row in files.rows if row.when.startswith("1 previews"))
    preview_files = [Path(e.path) for e in samples if "samples" in e.path]
    assert {path.parent for path in preview_files} == {Path(previews.path)}
    again_summary, again = planned(trainings, config)
    assert again_summary["class_images_to_generate"] == 0
    assert only(again, ClassImagesPlanned).found == 4
    assert all(row.exists for row in rows_of(again))
    assert [(r.prompt, r.bucket) for r in rows_of(again)] == [
        (r.prompt, r.bucket) for r in rows_of(events)
    ]


@pytest.mark.parametrize(("max_steps", "class_batch"), [(0, 0), (7, 2), (9, 1)])
def test_repeats_are_counted_as_the_steps_show_them(
    trainings: Trainings, max_steps: int, class_batch: int
) -> None:
    changes = {
        "concept": {**CLASSES, "class_images_per_instance_image": 2},
        "intervals": {"epochs": 5, "max_steps": max_steps},
        "batch": {"batch_size": 2, "class_batch_size": class_batch},
    }
    config = trainings.config(changes)
    summary, events = planned(trainings, config)
    context, _ = trainings.context()
    components = load_components(trainings.workspace.model("tiny"))
    quantum = FAMILIES[components.family].quantum(components)
    images = ensure_class_images(config, context, components)
    classes = find_class_images(config, quantum, images)
    training_set = arrange(config, find_instances(config, quantum), classes)
    shown: dict[str, int] = {}
    batches = step_batches(training_set, plan.Progress())
    for _ in range(summary["total_steps"]):
        for sample in next(batches).samples:
            path = str(sample.example.path)
            shown[path] = shown.get(path, 0) + 1
    assert {row.file: row.repeats for row in rows_of(events) if row.repeats} == shown


def test_times_shown_by_hand() -> None:
    examples = [Example(Path(name), name, (64, 64)) for name in "abc"]
    classes = [Example(Path(n), n, (64, 64), is_class=True) for n in "xy"]
    training_set = TrainingSet(examples, classes, seed=1)
    assert training_set.times_shown(0, 0) == ([0, 0, 0], [0, 0])
    instances, shown = training_set.times_shown(2, 0)
    assert instances == [2, 2, 2] and shown == [3, 3]
    instances, shown = training_set.times_shown(1, 1)
    assert sorted(instances) == [1, 1, 2] and shown == [2, 2]


def test_a_resumed_run_counts_what_is_left(trainings: Trainings) -> None:
    trainings.run({"intervals": {"epochs": 2, "max_steps": 3}})
    config = trainings.config({"resume": True, "intervals": {"epochs": 2}})
    summary, events = planned(trainings, config)
    assert (summary["steps"], summary["total_steps"]) == (5, 8)
    assert sorted(row.repeats for row in rows_of(events)) == [1, 1, 1, 2]
    assert "Goes on from step 3: 5 steps are left." in only(events, PlanMade).lines


def test_resume_without_a_state_is_refused(trainings: Trainings) -> None:
    with pytest.raises(InputError, match="no intact training state"):
        planned(trainings, trainings.config({"resume": True}))


def test_states_that_are_deleted_again_take_no_room(trainings: Trainings) -> None:
    changes = {"intervals": {"epochs": 4}, "saving": {"state_every_epochs": 1, "keep_states": 2}}
    _, events = planned(trainings, trainings.config(changes))
    files = only(events, FilesPlanned)
    states = [row for row in files.rows if "/state/" in Path(row.path).as_posix()]
    assert [row.kept for row in states] == [False, False, True, True]
    assert states[0].when == "step 4, epoch 1, deleted again"
    assert files.needed_bytes == 3 * states[0].bytes  # the third is written before one goes
    assert files.free_bytes > 0


def test_latents_on_disk_are_counted(trainings: Trainings) -> None:
    changes = {"images": {"cache_latents": "disk", "horizontal_flip": True}}
    _, events = planned(trainings, trainings.config(changes))
    rows = only(events, FilesPlanned).rows
    cache = trainings.workspace.model("tiny").cache_dir
    (row,) = [row for row in rows if row.path == str(cache)]
    trainings.run(changes)
    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    assert row.bytes <= size <= row.bytes + 8 * 1024


def test_too_little_room_is_a_warning(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        free = 10

    monkeypatch.setattr(planned_files.shutil, "disk_usage", lambda _: Full)
    _, events = planned(trainings, trainings.config())
    assert only(events, FilesPlanned).free_bytes == 10
    (finding,) = only(events, Preflight).findings
    assert finding.level == "warning" and "0.0 GB are free" in finding.message
    assert "save less often" in finding.remedy


def test_long_lists_are_shortened() -> None:
    rows = [PlannedFile(f"/f/{n}", 2, "") for n in range(MOST_ROWS + 5)]
    short = shortened(rows)
    assert len(short) == MOST_ROWS and short[-1].when == "and 6 more files"
    assert sum(row.bytes for row in short) == 2 * len(rows)
    assert shortened(rows[:MOST_ROWS]) == rows[:MOST_ROWS]


def test_rows_of_many_pictures_come_in_parts(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "ROWS_PER_EVENT", 3)
    _, events = planned(trainings, trainings.config())
    assert [len(e.rows) for e in events if isinstance(e, ImagesPlanned)] == [3, 1]


def test_concepts_are_numbered(trainings: Trainings) -> None:
    config = trainings.config()
    second = write_pictures(trainings.workspace.root / "second", 2)
    config.concepts.append(type(config.concepts[0])(instance_folder=str(second)))
    _, events = planned(trainings, config)
    assert [row.concept for row in rows_of(events)] == [1, 1, 1, 1, 2, 2]
    counts = [e for e in events if isinstance(e, ClassImagesPlanned)]
    assert [(e.concept, e.to_generate) for e in counts] == [(1, 0), (2, 0)]


def test_every_picture_is_decoded_once_and_none_is_hashed(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (40, 80)).save(trainings.pictures / "photo.jpg")
    looked: list[Path] = []

    def count(path: Path, buckets: Any, *, measured: bool) -> pictures.Look:
        looked.append(path)
        return look_at(path, buckets, measured=measured)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a whole file was read")

    look_at = pictures.look_at
    monkeypatch.setattr(pictures, "look_at", count)
    monkeypatch.setattr("dreambooth_core.data.examples.file_hash", refuse)
    monkeypatch.setattr("dreambooth_core.stages.preflight.picture_checks.file_hash", refuse)
    assert planned(trainings, trainings.config())[0]["instance_images"] == 5
    assert len(looked) == len(set(looked)) == 5


def test_a_stop_ends_it(trainings: Trainings) -> None:
    context, _ = trainings.context("plan", at_step={0: ["stop"]})
    send(context.folder, Command("stop"))
    assert plan.run(trainings.config(), context)["stopped"]


def test_the_quantum_is_the_familys(trainings: Trainings) -> None:
    folder = trainings.workspace.model("tiny")
    components = load_components(folder)
    assert model_quantum(folder) == FAMILIES[components.family].quantum(components)
    (folder.component("vae") / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        component_config(folder, "vae")


def test_every_optimizer_has_its_size() -> None:
    assert set(OPTIMIZER_SIZES) == set(OPTIMIZER_CHOICES)


def test_the_worker_answers_without_torch(trainings: Trainings) -> None:
    folder = create_run_folder(trainings.workspace, "plan")
    config = trainings.config({"concept": CLASSES})
    write_run(folder, Run(folder.name, "plan", trainings.workspace.root, config))
    code = (
        "import sys\nfrom dreambooth_core.worker import main\n"
        f"code = main([{str(folder)!r}])\n"
        "heavy = ('torch', 'diffusers', 'transformers', 'accelerate', 'numpy', 'safetensors')\n"
        "print(code, [name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "0 []", done.stderr[-2000:]
    lines = (folder / "events.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["event"] == "job_finished"


def test_it_runs_beside_the_job_that_has_the_model(trainings: Trainings) -> None:
    workspace = trainings.workspace
    path = launcher.model_lock_path(workspace, "tiny")
    pid = launcher.os.getpid()
    holder = lock.Holder(pid, start_mark(pid), "training", "train")
    lock.acquire(path, holder, "tiny")
    began = time.monotonic()
    job = launcher.launch(workspace, "plan", trainings.config())
    final = job.wait()
    assert isinstance(final, JobFinished), (final, time.monotonic() - began)
    assert lock.read_holder(path) == holder


@pytest.mark.turns("train.concepts.sample_prompts")
def test_each_sample_prompt_of_a_concept_is_one_more_preview(trainings: Trainings) -> None:
    changes = {
        "previews": {"every_steps": 1, "steps": 1, "cfg_scale": 1.0, "prompts": ["a dog"]},
        "intervals": {"max_steps": 1},
    }
    asked = {**changes, "concept": {"sample_prompts": ["zwx dog", " ", "zwx dog at sea"]}}
    drawn = []
    for number, settings in enumerate((changes, asked)):
        trained = trainings.run(settings, run_id=f"run{number}")
        drawn.append([event.prompt for event in trained.events_of(SampleSaved)])
    assert drawn == [["a dog"], ["a dog", "zwx dog", "zwx dog at sea"]]
