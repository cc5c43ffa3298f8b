"""Class images: counted, shared out over captions and shapes, resumable, own folders untouched."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreambooth_core.config.schema import Concept, TrainConfig
from dreambooth_core.config.validate import validate
from dreambooth_core.families import FAMILIES, load_components
from dreambooth_core.families.base import Components
from dreambooth_core.job.commands import Command, send
from dreambooth_core.job.events import Event, JobFailed, PhaseProgress, PhaseStarted, PlanMade
from dreambooth_core.job.launcher import launch
from dreambooth_core.job.workspace import ModelFolder, Workspace
from dreambooth_core.stages import class_images
from dreambooth_core.stages.class_image_plan import (
    ConceptPlan,
    Wanted,
    match,
    wanted_pictures,
)
from dreambooth_core.stages.class_images import (
    ensure_class_images,
    groups_to_paint,
    plan_class_images,
    run,
)
from dreambooth_core.stages.png import read_png
from dreambooth_core.stages.training_pictures import (
    arrange,
    count_class_images,
    find_class_images,
    find_instances,
)
from tests.tiny import stage_context
from tests.trainings import Trainings

A, B = Wanted("a", 64, 64), Wanted("b", 64, 64)
CAPTIONS = ("a zwx man on a beach", "a zwx man at night")


def put_pictures(folder: Path, captions: tuple[str, ...], size: tuple[int, int] = (64, 64)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, caption in enumerate(captions):
        path = folder / f"{number}-{size[0]}x{size[1]}.png"
        Image.new("RGB", size, (40 * number, 90, 120)).save(path)
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return folder


def concept(folder: Path, **changes: Any) -> Concept:
    settings = {
        "instance_folder": str(folder),
        "instance_prompt": "[filewords]",
        "class_prompt": "[filewords]",
        "instance_token": "zwx",
        "class_token": "man",
        "class_images_per_instance_image": 2,
        "class_steps": 1,
        "class_cfg_scale": 2.0,
        **changes,
    }
    return Concept(**settings)


def config(*concepts: Concept, **changes: Any) -> TrainConfig:
    made = TrainConfig(model="tiny", concepts=list(concepts), **changes)
    made.images.resolution = 64
    made.batch.class_batch_size = 2
    return made


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def components(tiny_model_folder: ModelFolder) -> Components:
    return load_components(tiny_model_folder)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return put_pictures(tmp_path / "instance", CAPTIONS)


class TestMatch:
    def test_nothing_there(self) -> None:
        assert match([A, B, A], {}) == ([], {0: A, 1: B, 2: A})

    def test_all_there(self) -> None:
        assert match([A, B], {0: A, 1: B}) == ([0, 1], {})

    def test_a_hole_is_filled_with_what_was_there(self) -> None:
        assert match([A, B, A, B], {0: A, 3: B}) == ([0, 3], {1: B, 2: A})

    def test_pictures_of_an_older_plan_are_used_wherever_they_are(self) -> None:
        assert match([A, B, B], {0: B, 7: B, 9: A}) == ([0, 7, 9], {})

    def test_what_does_not_fit_stays_and_is_not_used(self) -> None:
        other = Wanted("a", 128, 64)
        assert match([A], {0: other}) == ([], {1: A})

    def test_more_than_needed_is_not_used(self) -> None:
        assert match([A], {0: A, 1: A}) == ([0], {})


def test_pictures_are_shared_out_over_captions_and_shapes(tmp_path: Path) -> None:
    folder = put_pictures(tmp_path / "instance", CAPTIONS)
    put_pictures(folder, ("a tall zwx man",), (64, 128))
    wanted = wanted_pictures(concept(folder), 64, 8, 4)
    prompts = ["a tall man", "a man on a beach", "a man at night", "a tall man"]
    assert [one.prompt for one in wanted] == prompts
    tall = [one for one in wanted if one.prompt == "a tall man"]
    assert all(one.height > one.width for one in tall)
    assert all(one.width == one.height == 64 for one in wanted if one not in tall)
    assert wanted_pictures(concept(folder), 64, 8, 0) == []


def test_missing_pictures_are_painted_with_their_prompts(
    workspace: Workspace, components: Components, pictures: Path
) -> None:
    events: list[Event] = []
    images = ensure_class_images(
        config(concept(pictures)), stage_context(workspace, events), components
    )
    assert not images.stopped and len(images.per_concept) == 1
    made = images.per_concept[0]
    assert [image.path.name for image in made] == [f"{n:05d}.png" for n in range(4)]
    assert [image.prompt for image in made] == ["a man on a beach", "a man at night"] * 2
    folder = made[0].path.parent
    assert folder.parent == workspace.model("tiny").class_images_dir
    for image in made:
        assert image.path.with_suffix(".txt").read_text(encoding="utf-8") == image.prompt
        with Image.open(image.path) as picture:
            assert picture.size == (64, 64)
            assert picture.info["parameters"].startswith(f"{image.prompt}\nSteps: 1, Sampler: DDIM")
    assert sorted(path.suffix for path in folder.iterdir()) == [".png"] * 4 + [".txt"] * 4
    texts = [read_png(image.path).parameters for image in made]
    assert [f"Seed: {420420 + n}," in text for n, text in enumerate(texts)] == [True] * 4
    assert PhaseStarted("class images", 4, "images") in events
    assert [e.done for e in events if isinstance(e, PhaseProgress)] == [1, 2, 3, 4]


def test_the_second_time_nothing_is_painted(
    workspace: Workspace,
    components: Components,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = config(concept(pictures))
    first = ensure_class_images(settings, stage_context(workspace), components)
    before = snapshot(workspace.model("tiny").class_images_dir)
    monkeypatch.setattr(class_images, "generate", None)
    events: list[Event] = []
    again = ensure_class_images(settings, stage_context(workspace, events), components)
    assert again == first and events == []
    assert snapshot(workspace.model("tiny").class_images_dir) == before


def test_a_killed_run_goes_on_and_gives_the_same_pictures(
    workspace: Workspace, components: Components, pictures: Path
) -> None:
    settings = config(concept(pictures))
    settings.batch.class_batch_size = 1  # sums of other batches may round a pixel differently
    whole = ensure_class_images(settings, stage_context(workspace), components).per_concept[0]
    folder = workspace.model("tiny").class_images_dir
    before = {name: digest for name, (digest, _) in snapshot(folder).items()}
    whole[1].path.unlink()
    whole[3].path.write_bytes(whole[3].path.read_bytes()[:-20])
    whole[2].path.with_suffix(".txt").unlink()
    (whole[0].path.parent / "00009.png.tmp").write_bytes(b"torn")
    events: list[Event] = []
    again = ensure_class_images(settings, stage_context(workspace, events), components)
    assert sum(isinstance(event, PhaseProgress) for event in events) == 3
    assert again.per_concept[0] == whole
    (whole[0].path.parent / "00009.png.tmp").unlink()
    assert {name: digest for name, (digest, _) in snapshot(folder).items()} == before


def test_a_batch_that_lacks_a_picture_is_painted_whole() -> None:
    """A picture's last bits depend on how many are painted with it."""
    wide, small = Wanted("a dog", 64, 32), Wanted("a dog", 32, 32)
    every = {0: small, 1: wide, 2: small, 3: small, 4: wide, 5: small, 6: small, 7: small}

    def painted(missing: set[int]) -> list[list[int]]:
        lacking = {n: every[n] for n in missing}
        found = {n: want for n, want in every.items() if n not in missing}
        plan = ConceptPlan(Path(), 0, [], [], lacking, found)
        return [[n for n, _ in group] for group in groups_to_paint(plan, 2)]

    assert painted(set(every)) == [[0, 2, 3, 5, 6, 7], [1, 4]]
    assert painted({2, 7}) == [[0, 2, 6, 7]]
    assert painted({4}) == [[1, 4]]
    assert painted(set()) == []


def test_a_stop_ends_the_painting_and_the_next_run_goes_on(
    workspace: Workspace, components: Components, pictures: Path
) -> None:
    settings = config(concept(pictures))
    context = stage_context(workspace)
    send(context.folder, Command("stop"))
    assert ensure_class_images(settings, context, components).stopped
    assert len(list(workspace.model("tiny").class_images_dir.rglob("*.png"))) == 1
    finished = ensure_class_images(settings, context, components)
    assert not finished.stopped
    assert len(list(workspace.model("tiny").class_images_dir.rglob("*.png"))) == 4


def test_own_pictures_count_first_and_are_left_alone(
    workspace: Workspace, components: Components, pictures: Path, tmp_path: Path
) -> None:
    own = put_pictures(tmp_path / "own", ("a man in snow", "", "a dog"), (200, 100))
    for bare in sorted(own.glob("2-*.txt")):
        bare.unlink()
    before = snapshot(own)
    settings = config(concept(pictures, class_folder=str(own), class_prompt="photo of a man"))
    images = ensure_class_images(settings, stage_context(workspace), components).per_concept[0]
    assert [image.path.parent for image in images[:3]] == [own] * 3
    assert images[0].prompt == "a man in snow" and images[2].prompt == "photo of a man"
    assert len(images) == 4 and images[3].prompt == "photo of a man"
    assert images[3].path.parent.parent == workspace.model("tiny").class_images_dir
    assert snapshot(own) == before


def test_more_own_pictures_than_needed_are_all_used(
    workspace: Workspace, components: Components, pictures: Path, tmp_path: Path
) -> None:
    own = put_pictures(tmp_path / "own", ("a man",) * 6)
    settings = config(concept(pictures, class_folder=str(own)))
    images = ensure_class_images(settings, stage_context(workspace), components)
    assert len(images.per_concept[0]) == 6
    assert not workspace.model("tiny").class_images_dir.exists()


def test_an_empty_own_folder_is_filled_up_elsewhere(
    workspace: Workspace, components: Components, pictures: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    settings = config(concept(pictures, class_folder=str(own)))
    images = ensure_class_images(settings, stage_context(workspace), components)
    assert len(images.per_concept[0]) == 4 and list(own.iterdir()) == []


def test_without_prior_preservation_there_are_none(
    workspace: Workspace, components: Components, pictures: Path
) -> None:
    settings = config(concept(pictures, class_images_per_instance_image=0), concept(pictures))
    images = ensure_class_images(settings, stage_context(workspace), components)
    assert [len(made) for made in images.per_concept] == [0, 4]


@pytest.mark.parametrize(
    "change",
    [
        {"class_steps": 2},
        {"class_cfg_scale": 3.0},
        {"class_sampler": "euler"},
        {"class_seed": 5},
        {"class_negative_prompt": "dog"},
        {"class_prompt": "photo of [filewords]"},
    ],
)
def test_other_settings_get_their_own_folder(
    workspace: Workspace, components: Components, pictures: Path, change: dict[str, Any]
) -> None:
    context = stage_context(workspace)
    plan = plan_class_images(config(concept(pictures)), context, components)[0]
    other = plan_class_images(config(concept(pictures, **change)), context, components)[0]
    more = concept(pictures, class_images_per_instance_image=9)
    assert other.folder != plan.folder
    assert plan_class_images(config(more), context, components)[0].folder == plan.folder


def test_a_new_picture_needs_only_its_own_class_images(
    workspace: Workspace, components: Components, pictures: Path
) -> None:
    settings = config(concept(pictures))
    context = stage_context(workspace)
    ensure_class_images(settings, context, components)
    put_pictures(pictures / "more", ("a zwx man in snow",))
    plan = plan_class_images(settings, context, components)[0]
    assert len(plan.made) == 4
    assert list(plan.missing.values()) == [Wanted("a man in snow", 64, 64)] * 2


def test_the_job_tells_its_plan_and_its_result(
    workspace: Workspace, tiny_model_folder: ModelFolder, pictures: Path
) -> None:
    assert tiny_model_folder.exists()
    events: list[Event] = []
    summary = run(config(concept(pictures)), stage_context(workspace, events))
    assert PlanMade(["Concept 1: 0 class images found, 4 to generate."]) in events
    assert summary["found"] == 0 and summary["generated"] == 4 and "stopped" not in summary
    assert len(list(Path(summary["folders"][0]).glob("*.png"))) == 4
    again = run(config(concept(pictures)), stage_context(workspace))
    assert again["found"] == 4 and again["generated"] == 0


def test_sizes_suit_the_model(workspace: Workspace, components: Components, tmp_path: Path) -> None:
    quantum = FAMILIES[components.family].quantum(components)
    folder = put_pictures(tmp_path / "wide", ("a zwx man",), (256, 128))
    settings = config(concept(folder))
    settings.images.resolution = 128
    image = ensure_class_images(settings, stage_context(workspace), components).per_concept[0][0]
    with Image.open(image.path) as picture:
        assert picture.width > picture.height
        assert picture.width % quantum == picture.height % quantum == 0


OWN = ("a man in snow", "a man at sea", "a man asleep")


@pytest.mark.turns("train.concepts.class_images_source", "train.concepts.class_folder")
@pytest.mark.parametrize(
    ("source", "own_used", "painted"), [("fill_up", 3, 1), ("own", 3, 0), ("generate", 0, 4)]
)
def test_where_class_images_come_from_is_chosen(
    workspace: Workspace,
    components: Components,
    pictures: Path,
    tmp_path: Path,
    source: str,
    own_used: int,
    painted: int,
) -> None:
    own = put_pictures(tmp_path / "own", OWN)
    before = snapshot(own)
    settings = config(concept(pictures, class_folder=str(own), class_images_source=source))
    context = stage_context(workspace)
    (plan,) = plan_class_images(settings, context, components)
    assert (len(plan.own), len(plan.made), len(plan.missing)) == (own_used, 0, painted)
    images = ensure_class_images(settings, context, components).per_concept[0]
    assert [image.path.parent == own for image in images] == [True] * own_used + [False] * painted
    assert count_class_images(settings) == len(images) == own_used + painted
    assert snapshot(own) == before


def test_pictures_that_were_made_are_used_whatever_the_source_was(
    workspace: Workspace, components: Components, pictures: Path, tmp_path: Path
) -> None:
    context = stage_context(workspace)
    ensure_class_images(config(concept(pictures)), context, components)
    own = put_pictures(tmp_path / "own", OWN)
    changes = {"class_folder": str(own), "class_images_source": "fill_up"}
    (plan,) = plan_class_images(config(concept(pictures, **changes)), context, components)
    assert (len(plan.own), len(plan.made), len(plan.missing)) == (3, 1, 0)


def test_own_pictures_alone_must_be_there(pictures: Path, tmp_path: Path) -> None:
    def problems(**changes: Any) -> list[str]:
        settings = config(concept(pictures, class_images_source="own", **changes))
        return [problem.field for problem in validate(settings, None)]

    empty = tmp_path / "empty"
    empty.mkdir()
    assert problems() == problems(class_folder=str(empty)) == ["concepts.0.class_folder"]
    assert problems(class_folder=str(put_pictures(tmp_path / "own", OWN))) == []


@pytest.mark.turns("train.concepts.class_images_per_instance_image")
def test_as_many_are_made_for_each_picture_as_asked_for(
    workspace: Workspace, components: Components, pictures: Path
) -> None:
    for per_image in (0, 1, 3):
        settings = config(concept(pictures, class_images_per_instance_image=per_image))
        images = ensure_class_images(settings, stage_context(workspace), components)
        assert len(images.per_concept[0]) == per_image * len(CAPTIONS)
        assert count_class_images(settings) == per_image * len(CAPTIONS)


def painted_with(workspace: Workspace, components: Components, asked: Concept) -> list[Any]:
    """Return the pixels and the text of the first class image of a concept."""
    image = ensure_class_images(config(asked), stage_context(workspace), components)
    path = image.per_concept[0][0].path
    picture = read_png(path)
    assert picture is not None
    with Image.open(path) as opened:
        return [opened.tobytes(), picture.parameters]


@pytest.mark.turns(
    "train.concepts.class_steps",
    "train.concepts.class_cfg_scale",
    "train.concepts.class_sampler",
    "train.concepts.class_seed",
    "train.concepts.class_negative_prompt",
    "train.concepts.class_prompt",
)
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"class_steps": 2}, "Steps: 2, Sampler: DDIM"),
        ({"class_cfg_scale": 5.0}, "CFG scale: 5"),
        ({"class_sampler": "euler"}, "Sampler: Euler"),
        ({"class_seed": 5}, "Seed: 5,"),
        ({"class_negative_prompt": "night"}, "Negative prompt: night"),
        ({"class_prompt": "photo of [filewords]"}, "photo of a man on a beach"),
    ],
)
def test_a_setting_of_the_painting_changes_the_picture(
    workspace: Workspace,
    components: Components,
    pictures: Path,
    change: dict[str, Any],
    told: str,
) -> None:
    pixels, text = painted_with(workspace, components, concept(pictures))
    other_pixels, other_text = painted_with(workspace, components, concept(pictures, **change))
    assert other_pixels != pixels and told in other_text and told not in text


def test_class_images_of_a_shape_that_no_instance_image_has_are_trained(
    workspace: Workspace, components: Components, pictures: Path, tmp_path: Path
) -> None:
    own = put_pictures(tmp_path / "own", OWN, (200, 100))
    settings = config(concept(pictures, class_folder=str(own), class_images_source="own"))
    quantum = FAMILIES[components.family].quantum(components)
    images = ensure_class_images(settings, stage_context(workspace), components)
    classes = find_class_images(settings, quantum, images)
    instances = find_instances(settings, quantum)
    assert {e.bucket for e in classes}.isdisjoint({e.bucket for e in instances})
    training_set = arrange(settings, instances, classes)
    shown = Counter(
        sample.example.path
        for epoch in range(3)
        for step in training_set.epoch_batches(epoch)
        for sample in step.samples
        if sample.example.is_class
    )
    assert shown == dict.fromkeys((e.path for e in classes), 4)  # two beside each of six


def test_each_concept_has_its_own(
    workspace: Workspace, components: Components, pictures: Path, tmp_path: Path
) -> None:
    cats = put_pictures(tmp_path / "cats", ("a zwx cat",), (64, 128))
    second = concept(cats, class_token="cat", class_images_per_instance_image=1, class_steps=2)
    images = ensure_class_images(
        config(concept(pictures), second), stage_context(workspace), components
    )
    first_ones, (cat,) = images.per_concept
    assert len(first_ones) == 4 and cat.prompt == "a cat"
    assert cat.path.parent not in {image.path.parent for image in first_ones}
    with Image.open(cat.path) as picture:
        assert picture.height > picture.width


def test_a_worker_that_is_killed_half_way_has_made_what_is_there(
    workspace: Workspace, tiny_model_folder: ModelFolder, pictures: Path
) -> None:
    settings = config(concept(pictures, class_images_per_instance_image=8, class_steps=20))
    settings.batch.class_batch_size = 1
    settings.precision.device = "cpu"
    job = launch(workspace, "class-images", settings)
    for event in job.events():
        if isinstance(event, PhaseProgress) and event.done == 3:
            break
    job.kill()
    final = job.wait()
    assert isinstance(final, JobFailed)
    before = snapshot(tiny_model_folder.class_images_dir)
    kept = sum(name.endswith(".png") for name in before)
    assert 3 <= kept < 16
    summary = run(settings, stage_context(workspace))
    assert (summary["found"], summary["generated"]) == (kept, 16 - kept)
    after = snapshot(tiny_model_folder.class_images_dir)
    whole = {name: mark for name, mark in before.items() if name.endswith(".png")}
    assert whole.items() <= after.items()
    assert sum(name.endswith(".png") for name in after) == 16


def test_the_untouched_model_makes_them_also_when_training_goes_on(
    workspace: Workspace, tiny_model_folder: ModelFolder
) -> None:
    trainings = Trainings(workspace)
    classes = {"class_prompt": "a dog", "class_images_per_instance_image": 1, "class_steps": 2}
    asked = {"concept": classes, "resume": True, "intervals": {"epochs": 2}}
    run(trainings.config(asked), stage_context(workspace))
    made = {name: digest for name, (digest, _) in snapshot(tiny_model_folder.path).items()}
    pictures = {name: made[name] for name in made if name.endswith(".png")}
    assert len(pictures) == 4
    shutil.rmtree(tiny_model_folder.class_images_dir)
    first = trainings.run({"learning_rate": {"unet": 0.1}, "intervals": {"max_steps": 2}})
    assert first.losses[0] != first.losses[1]
    trainings.run(asked, run_id="more")
    after = {name: digest for name, (digest, _) in snapshot(tiny_model_folder.path).items()}
    assert pictures.items() <= after.items()
