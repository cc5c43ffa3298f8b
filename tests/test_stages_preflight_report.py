"""The report before a training: complete, graded, the same in the plan and at the start."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFilter

from dreambooth_core.errors import InputError
from dreambooth_core.job.events import Event, Finding, Notice, PhaseProgress, Preflight, StepDone
from dreambooth_core.job.launcher import Workspace
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.stages import plan
from dreambooth_core.stages.preflight.report import errors_of, in_order
from tests.noise_pictures import write_pictures
from tests.trainings import Trainings

CLASSES = {
    "class_prompt": "a dog",
    "class_images_per_instance_image": 1,
    "class_images_source": "own",
}


@pytest.fixture
def trainings(tiny_model_folder: ModelFolder) -> Trainings:
    return Trainings(Workspace(tiny_model_folder.path.parents[2]))


def preflight(trainings: Trainings, changes: dict[str, Any]) -> tuple[Preflight, list[Event]]:
    context, events = trainings.context("plan")
    plan.run(trainings.config(changes), context)
    (found,) = [event for event in events if isinstance(event, Preflight)]
    return found, events


def said(findings: Sequence[Finding], words: str) -> Finding:
    (found,) = [finding for finding in findings if words in finding.message]
    return found


def test_of_good_pictures_nothing_is_said_but_what_they_take(trainings: Trainings) -> None:
    found, events = preflight(trainings, {})
    assert found.findings == [] and found.device == "cpu" and found.ram_bytes > 0
    assert [phase.phase for phase in found.memory] == ["caching latents", "training", "saving"]
    progress = [event for event in events if isinstance(event, PhaseProgress)]
    assert (progress[0].phase, progress[0].done, progress[0].total) == ("looking at pictures", 4, 4)


def test_everything_that_can_be_wrong_is_told_at_once(trainings: Trainings) -> None:
    pictures = sorted(trainings.pictures.glob("*.png"))
    with Image.open(pictures[0]) as image:
        image.save(trainings.pictures / "copy.jpg", quality=95)
        image.crop((0, 0, 48, 48)).save(trainings.pictures / "small.png")
    Image.effect_mandelbrot((64, 64), (-3, -2.5, 2, 2.5), 100).convert("RGB").filter(
        ImageFilter.GaussianBlur(8)
    ).save(trainings.pictures / "soft dog.png")
    own = write_pictures(trainings.workspace.root / "own", 3, seed=9)
    (own / "again.png").write_bytes(pictures[1].read_bytes())
    (trainings.pictures / "c red dog.txt").write_text("dog, " * 60)
    concept = {
        **CLASSES,
        "class_folder": str(own),
        "class_prompt": "a person dog",
        "instance_token": "person",
    }
    found, _ = preflight(trainings, {"concept": concept})
    rows = found.findings
    assert "soft dog.png" in said(rows, "without a sharp edge").message
    assert "copy.jpg" in said(rows, "almost the same").message
    assert "small.png has 48x48 pixels for 64x64" in said(rows, "smaller than trained").message
    assert "again.png" in said(rows, "both instance and class").message
    assert "longest 121" in said(rows, "more than 75 tokens").message
    assert said(rows, "which is left out").field == "concepts.0.class_prompt"
    assert said(rows, "a word that the model knows").field == "concepts.0.instance_token"
    assert all(finding.remedy for finding in rows)
    levels = [finding.level for finding in rows]
    assert levels == sorted(levels, key=["error", "warning", "info"].index)


def test_unreadable_files_are_all_named_and_end_the_plan(trainings: Trainings) -> None:
    for number in (0, 1):
        path = sorted(trainings.pictures.glob("*.png"))[number]
        path.write_bytes(path.read_bytes()[:900])
    (trainings.pictures / "d red dog.txt").write_bytes(b"\xff\xfe\x00")
    context, events = trainings.context("plan")
    summary = plan.run(trainings.config(), context)
    (found,) = [event for event in events if isinstance(event, Preflight)]
    assert summary == {"model": "tiny", "errors": 3} and found.memory == []
    names = "".join(finding.message for finding in errors_of(found.findings))
    assert all(name in names for name in ("a red dog.png", "b red dog.png", "d red dog.txt"))


def test_training_refuses_what_the_plan_calls_an_error(trainings: Trainings) -> None:
    for number in (0, 1):
        path = sorted(trainings.pictures.glob("*.png"))[number]
        path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(InputError, match="There are 1 more such problems") as caught:
        trainings.run({})
    assert "a red dog.png" in caught.value.message and caught.value.remedy


def test_training_begins_with_what_the_plan_says(trainings: Trainings) -> None:
    changes = {"concept": {"instance_token": "person"}, "intervals": {"max_steps": 1}}
    found, _ = preflight(trainings, changes)
    trained = trainings.run(changes)
    words = [f"{finding.message} {finding.remedy}" for finding in found.findings]
    notices = [event for event in trained.events if isinstance(event, Notice)]
    assert [notice.message for notice in notices[: len(words)]] == words != []
    assert notices[0].level == "warning"
    assert trained.events.index(notices[0]) < trained.events.index(trained.steps[0])


def test_scarce_memory_and_disk_are_told(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        free = 10

    monkeypatch.setattr("dreambooth_core.stages.planned_files.shutil.disk_usage", lambda _: Full)
    monkeypatch.setattr("dreambooth_core.stages.preflight.machine.free_ram", lambda: 10)
    found, _ = preflight(trainings, {})
    assert said(found.findings, "Training takes about").remedy
    assert "Free some space" in said(found.findings, "are free").remedy


def test_each_of_several_concepts_is_looked_at(trainings: Trainings) -> None:
    config = trainings.config({"concept": {"instance_token": "zwx"}})
    second = write_pictures(trainings.workspace.root / "second", 2)
    (second / "c.png").write_bytes((second / "a red dog.png").read_bytes())
    config.concepts.append(
        type(config.concepts[0])(instance_folder=str(second), instance_token="dog")
    )
    context, events = trainings.context("plan")
    plan.run(config, context)
    (found,) = [event for event in events if isinstance(event, Preflight)]
    assert said(found.findings, "'dog'").field == "concepts.1.instance_token"
    assert "c.png" in said(found.findings, "almost the same").message


def test_a_stop_is_heard_while_pictures_are_looked_at(trainings: Trainings) -> None:
    context, events = trainings.context("plan", at_step={0: ["stop"]})
    assert plan.run(trainings.config(), context)["stopped"]
    assert not [event for event in events if isinstance(event, Preflight | StepDone)]


def test_the_gravest_come_first_and_nothing_twice() -> None:
    info, warning, error = (Finding(level, "x") for level in ("info", "warning", "error"))
    assert in_order([info, warning, error, info]) == [error, warning, info]


def test_fifty_pictures_and_a_thousand_class_images_take_seconds(trainings: Trainings) -> None:
    """Told, not asserted: `pytest -s` shows it."""
    own = write_pictures(trainings.workspace.root / "own", 8, seed=5, size=(512, 512))
    names = sorted(own.glob("*.png"))
    for name in names:
        with Image.open(name) as image:
            image.save(name.with_suffix(".jpg"), quality=90)
        name.unlink()
    first = names[0].with_suffix(".jpg").read_bytes()
    for number in range(1000 - 8):
        (own / f"{number}.jpg").write_bytes(first)
    for number in range(46):
        (trainings.pictures / f"{number}.jpg").write_bytes(first)
    changes = {"concept": {**CLASSES, "class_folder": str(own)}}
    cpu, wall = time.process_time(), time.monotonic()
    found, _ = preflight(trainings, changes)
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    sys.stdout.write(f"50 and 1000 pictures: {cpu:.1f} s of CPU, {wall:.1f} s\n")
    assert said(found.findings, "both instance and class")
    assert Path(own / "0.jpg").is_file()
