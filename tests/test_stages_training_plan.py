"""Tests of the arithmetic of steps, epochs and what is written when."""

from __future__ import annotations

from typing import Any

import pytest

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.serialize import from_dict
from dreambooth_core.errors import InputError
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.stages.saved_states import Progress
from dreambooth_core.stages.training_plan import (
    TrainingPlan,
    checkpoint_file,
    make_plan,
    plan_lines,
    planned_checkpoints,
    text_encoder_steps,
    what_is_due,
)


def make_config(**sections: Any) -> TrainConfig:
    """A configuration with some settings changed."""
    return from_dict(TrainConfig, {"model": "tiny", **sections})


def plan_of(
    config: TrainConfig, steps_per_epoch: int = 3, start: Progress | None = None
) -> TrainingPlan:
    """A plan for six instance and four class images."""
    return make_plan(
        config,
        instance_images=6,
        class_images=4,
        steps_per_epoch=steps_per_epoch,
        start=start or Progress(),
    )


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"),
    [(10, 0, 30), (10, 12, 12), (10, 30, 30), (10, 31, 30), (1, 1, 1), (0, 7, 7), (0, 4000, 4000)],
)
@pytest.mark.turns("train.intervals.epochs", "train.intervals.max_steps")
def test_total_steps_are_the_epochs_or_the_limit(
    epochs: int, max_steps: int, expected: int
) -> None:
    config = make_config(intervals={"epochs": epochs, "max_steps": max_steps})
    assert plan_of(config).total_steps == expected


def test_a_resumed_run_has_the_same_end_as_a_straight_one() -> None:
    config = make_config(intervals={"epochs": 10})
    assert plan_of(config, start=Progress(step=7, epoch=2, position=1)).total_steps == 30


def test_a_resumed_run_with_more_pictures_goes_on_in_its_epoch() -> None:
    config = make_config(intervals={"epochs": 4})
    plan = plan_of(config, steps_per_epoch=5, start=Progress(step=7, epoch=2, position=1))
    assert plan.total_steps == 7 + 4 + 5  # the rest of epoch 2, then epoch 3


def test_a_resumed_run_with_fewer_pictures_begins_the_next_epoch() -> None:
    config = make_config(intervals={"epochs": 4})
    plan = plan_of(config, steps_per_epoch=2, start=Progress(step=5, epoch=1, position=2))
    assert plan.start == Progress(step=5, epoch=2, position=0)
    assert plan.total_steps == 5 + 2 + 2


@pytest.mark.parametrize(
    ("intervals", "field"),
    [
        ({"epochs": 2}, "intervals.epochs"),
        ({"epochs": 9, "max_steps": 6}, "intervals.max_steps"),
    ],
)
def test_a_run_with_nothing_left_says_what_to_raise(intervals: dict[str, int], field: str) -> None:
    with pytest.raises(InputError) as caught:
        plan_of(make_config(intervals=intervals), start=Progress(step=6, epoch=2, position=0))
    assert caught.value.field == field
    assert field in caught.value.remedy
    assert "6 steps" in caught.value.message


@pytest.mark.parametrize(
    ("ratio", "total", "train_unet", "expected"),
    [
        (0.0, 10, True, 0),
        (1.0, 10, True, 10),
        (0.75, 4, True, 3),
        (0.1, 30, True, 3),  # 0.1 * 30 is 3.0000000000000004
        (0.5, 5, True, 3),
        (0.01, 10, True, 1),
        (0.5, 10, False, 10),  # alone, it is trained to the end
        (0.0, 10, False, 0),
    ],
)
def test_the_text_encoders_share_of_the_steps(
    ratio: float, total: int, train_unet: bool, expected: int
) -> None:
    config = make_config(text_encoder={"train_ratio": ratio}, unet={"train": train_unet})
    assert text_encoder_steps(config, total) == expected


def test_progress_counts_steps_into_epochs() -> None:
    plan = plan_of(make_config())
    progress, seen = Progress(), []
    for _ in range(4):
        progress = plan.after(progress)
        seen.append((progress.step, progress.epoch, progress.position))
    assert seen == [(1, 0, 1), (2, 0, 2), (3, 1, 0), (4, 1, 1)]


def _steps_due(config: TrainConfig, what: str, steps: int = 12) -> list[int]:
    plan, progress, due = plan_of(config), Progress(), []
    for _ in range(steps):
        progress = plan.after(progress)
        if getattr(what_is_due(config, progress), what):
            due.append(progress.step)
    return due


@pytest.mark.parametrize(
    ("section", "name", "what", "expected"),
    [
        ("saving", "save_every_steps", "checkpoint", [2, 4, 6, 8, 10, 12]),
        ("saving", "save_every_epochs", "checkpoint", [6, 12]),
        ("saving", "state_every_epochs", "state", [6, 12]),
        ("previews", "every_steps", "preview", [2, 4, 6, 8, 10, 12]),
        ("previews", "every_epochs", "preview", [6, 12]),
    ],
)
@pytest.mark.turns(
    "train.saving.save_every_steps",
    "train.saving.save_every_epochs",
    "train.saving.state_every_epochs",
    "train.previews.every_steps",
    "train.previews.every_epochs",
)
def test_every_two_steps_or_epochs(section: str, name: str, what: str, expected: list[int]) -> None:
    config = make_config(**{section: {name: 2}})
    assert _steps_due(config, what) == expected
    others = {"checkpoint", "state", "preview"} - {what}
    assert [_steps_due(config, other) for other in others] == [[], []]


def test_nothing_is_due_unless_asked_for() -> None:
    assert all(_steps_due(make_config(), what) == [] for what in ("checkpoint", "state", "preview"))


def test_checkpoints_are_planned_at_the_intervals_and_the_end() -> None:
    saving = {"save_every_epochs": 2}
    config = make_config(intervals={"epochs": 5}, saving=saving)
    assert planned_checkpoints(config, plan_of(config)) == [6, 12, 15]
    config = make_config(intervals={"epochs": 5}, saving={**saving, "save_at_end": False})
    assert planned_checkpoints(config, plan_of(config)) == [6, 12]
    start = Progress(step=6, epoch=2, position=0)
    assert planned_checkpoints(config, plan_of(config, start=start)) == [12]


def test_a_checkpoints_name_has_the_step(workspace: Workspace) -> None:
    folder = workspace.checkpoints_dir
    assert checkpoint_file(make_config(), workspace, 40) == folder / "tiny_40.safetensors"
    config = make_config(saving={"name": "my dog", "subfolder": "dogs"})
    assert checkpoint_file(config, workspace, 8) == folder / "dogs" / "my dog_8.safetensors"


def test_a_lora_goes_to_its_own_folder(workspace: Workspace) -> None:
    config = make_config(lora={"enabled": True, "rank": 4}, saving={"save_at_end": False})
    path = workspace.root / "models" / "Lora" / "tiny_40.safetensors"
    assert checkpoint_file(config, workspace, 40) == path
    lines = plan_lines(config, plan_of(config), workspace)
    assert lines[-2].startswith("Trains a LoRA of rank 4 for the UNet and the text encoder")
    assert lines[-1] == "Writes no LoRA, only the state to resume from."


def test_the_plan_in_words(workspace: Workspace) -> None:
    config = make_config(
        intervals={"epochs": 10, "max_steps": 24},
        batch={"batch_size": 1, "gradient_accumulation_steps": 2},
        text_encoder={"train_ratio": 0.5},
        saving={"save_every_steps": 6},
    )
    (workspace.checkpoints_dir / "tiny_12.safetensors").touch()
    lines = plan_lines(config, plan_of(config, start=Progress(2, 0, 2)), workspace)
    assert lines == [
        "6 instance images and 4 class images; class images that are missing are made first.",
        (
            "6 images / batch size 1 / 2 accumulated batches = 3 steps an epoch;"
            " 3 x 10 epochs = 30 steps, ended after step 24."
        ),
        "Class images are shown beside them, 1 with every full batch; they add no steps.",
        "Goes on from step 2: 22 steps are left.",
        "Trains the UNet and the text encoder (up to step 12).",
        (
            "Writes tiny_6.safetensors, tiny_12-2.safetensors, tiny_18.safetensors and 1 more into"
            f" {workspace.checkpoints_dir}."
        ),
    ]


def test_the_shortest_plan_in_words(workspace: Workspace) -> None:
    config = make_config(
        intervals={"epochs": 2},
        batch={"batch_size": 2},
        text_encoder={"train_ratio": 1.0},
        unet={"train": False},
        saving={"save_at_end": False},
    )
    plan = make_plan(config, instance_images=6, class_images=0, steps_per_epoch=3, start=Progress())
    assert plan_lines(config, plan, workspace) == [
        "6 instance images, no class images.",
        "6 images / batch size 2 = 3 steps an epoch; 3 x 2 epochs = 6 steps.",
        "Trains the text encoder.",
        "Writes no checkpoint, only the state to resume from.",
    ]


@pytest.mark.parametrize(
    ("shown", "batch", "intervals", "line"),
    [
        (
            6,
            {"batch_size": 4},
            {"epochs": 0, "max_steps": 10},
            "6 images / batch size 4 = 3 steps an epoch (smaller last batches included);"
            " 10 steps = 3.333 epochs.",
        ),
        (
            18,
            {"batch_size": 2, "gradient_accumulation_steps": 3},
            {"epochs": 2},
            "6 images with their repeats = 18 images an epoch; 18 / batch size 2 / 3 accumulated"
            " batches = 3 steps an epoch; 3 x 2 epochs = 6 steps.",
        ),
    ],
)
def test_the_arithmetic_of_steps_in_words(
    workspace: Workspace,
    shown: int,
    batch: dict[str, int],
    intervals: dict[str, int],
    line: str,
) -> None:
    config = make_config(intervals=intervals, batch=batch)
    plan = make_plan(
        config,
        instance_images=6,
        shown_images=shown,
        class_images=0,
        steps_per_epoch=3,
        start=Progress(),
    )
    assert plan_lines(config, plan, workspace)[1] == line


@pytest.mark.turns("train.batch.class_batch_size")
@pytest.mark.parametrize(("size", "told"), [(0, 2), (3, 3)])
def test_class_images_are_said_to_add_no_steps(workspace: Workspace, size: int, told: int) -> None:
    config = make_config(batch={"batch_size": 2, "class_batch_size": size})
    line = plan_lines(config, plan_of(config), workspace)[2]
    assert line.startswith(f"Class images are shown beside them, {told} with every full batch")


# -- sessions


@pytest.mark.turns("train.intervals.stop_after_steps", "train.intervals.stop_after_epochs")
@pytest.mark.parametrize(
    ("stops", "start", "last"),
    [
        ({}, (0, 0, 0), 30),
        ({"stop_after_steps": 4}, (0, 0, 0), 4),
        ({"stop_after_steps": 4}, (7, 2, 1), 11),
        ({"stop_after_steps": 400}, (0, 0, 0), 30),
        ({"stop_after_epochs": 2}, (0, 0, 0), 6),
        ({"stop_after_epochs": 2}, (7, 2, 1), 12),  # the rest of epoch 2, and epoch 3
        ({"stop_after_epochs": 2, "stop_after_steps": 5}, (0, 0, 0), 5),
    ],
)
def test_a_session_may_end_before_the_training(
    stops: dict[str, int], start: tuple[int, int, int], last: int
) -> None:
    plan = plan_of(make_config(intervals={"epochs": 10, **stops}), start=Progress(*start))
    assert (plan.last_step, plan.total_steps) == (last, 30)


def test_a_session_that_ends_before_is_told_with_what_it_writes(workspace: Workspace) -> None:
    intervals = {"epochs": 10, "stop_after_steps": 4}
    for wanted, planned in ((True, [3, 4]), (False, [3])):
        saving = {"save_every_epochs": 1, "save_on_stop": wanted, "save_at_end": not wanted}
        config = make_config(intervals=intervals, saving=saving)
        assert planned_checkpoints(config, plan_of(config)) == planned
    lines = plan_lines(config, plan_of(config), workspace)
    assert "This session ends after step 4; resume goes on from there." in lines


def test_pauses_are_told(workspace: Workspace) -> None:
    config = make_config(intervals={"pause_every_epochs": 5, "pause_seconds": 60})
    assert "Pauses 60 s after every 5 epochs." in plan_lines(config, plan_of(config), workspace)
