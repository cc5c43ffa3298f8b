"""The learning rate that the page draws is the one that training follows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from dreambooth_core.config.schema import LR_SCHEDULE_CHOICES, TrainConfig
from dreambooth_core.config.serialize import from_dict
from dreambooth_core.host.standalone import StandaloneHost
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.optim.lr import lr_factor
from dreambooth_core.ui.app import Page
from dreambooth_core.ui.schedule_curve import (
    SHAPING,
    SHAPING_TOO,
    expected_steps,
    rate_lines,
    schedule_html,
)
from tests.noise_pictures import write_pictures


def make(**settings: Any) -> TrainConfig:
    """Settings of a training of 400 steps, with some changed."""
    intervals = {"epochs": 0, "max_steps": 400}
    return from_dict(TrainConfig, {"model": "ada", "intervals": intervals, **settings})


def factors(config: TrainConfig, total: int = 400) -> list[float]:
    """The schedule's factors by its own function."""
    settings = config.learning_rate
    return [
        lr_factor(
            settings.schedule,
            step,
            total,
            warmup_steps=settings.warmup_steps,
            min_factor=settings.min_factor,
            cycles=settings.cycles,
            power=settings.power,
            decay_share=settings.decay_share,
        )
        for step in range(total)
    ]


@pytest.mark.parametrize("schedule", LR_SCHEDULE_CHOICES)
def test_every_schedule_is_drawn_as_training_follows_it(schedule: str) -> None:
    shape = {"schedule": schedule, "warmup_steps": 40, "min_factor": 0.1, "cycles": 3, "power": 2.0}
    config = make(learning_rate={**shape, "unet": 1e-5, "decay_share": 0.3})
    (unet, text_encoder) = rate_lines(config, 400)
    expected = factors(config)
    assert unet.label == "unet" and text_encoder.label == "text encoder"
    assert [rate for _, rate in unet.points] == pytest.approx(
        [1e-5 * expected[step - 1] for step, _ in unet.points]
    )
    assert (unet.points[0][0], unet.points[-1][0]) == (1, 400)
    assert 200 < len(unet.points) <= 302


def test_the_warm_up_s_corner_is_drawn() -> None:
    config = make(learning_rate={"schedule": "linear", "warmup_steps": 37})
    steps = [step for step, _ in rate_lines(config, 100_000)[0].points]
    assert {37, 38} <= set(steps)


def test_each_part_ends_where_its_training_ends() -> None:
    half = make(text_encoder={"train_ratio": 0.5}, learning_rate={"schedule": "linear"})
    unet, text_encoder = rate_lines(half, 400)
    assert (unet.points[-1][0], text_encoder.points[-1][0]) == (400, 200)
    assert len(rate_lines(make(text_encoder={"train_ratio": 0.0}), 400)) == 1
    alone = make(unet={"train": False}, text_encoder={"train_ratio": 0.5})
    (only,) = rate_lines(alone, 400)
    assert (only.label, only.points[-1][0]) == ("text encoder", 400)


def test_a_lora_s_own_rates_are_drawn() -> None:
    lora = {"enabled": True, "unet_learning_rate": 1e-4, "text_encoder_learning_rate": 5e-5}
    unet, text_encoder = rate_lines(make(lora=lora), 400)
    assert (unet.points[-1][1], text_encoder.points[-1][1]) == (1e-4, 5e-5)


def test_the_drawing_is_an_svg_that_says_its_length() -> None:
    text = schedule_html(make(learning_rate={"schedule": "cosine"}))
    assert text.count("<svg") == 1
    assert "Learning rate over 400 steps" in text
    assert len(re.findall("<polyline", text)) == 2


def test_it_changes_with_the_settings() -> None:
    shape = {"cycles": 3, "power": 2.0, "warmup_steps": 0}
    drawn = {
        schedule_html(make(learning_rate={**shape, "schedule": name}))
        for name in LR_SCHEDULE_CHOICES
    }
    assert len(drawn) == len(LR_SCHEDULE_CHOICES) - 1  # both constant ones, without warm-up


def test_self_tuning_optimizers_multiply_it() -> None:
    rates = {"unet": 1.0, "text_encoder": 1.0}
    text = schedule_html(make(optimizer={"name": "prodigy"}, learning_rate=rates))
    assert "prodigy multiplies this by the rate that it finds" in text


def test_what_cannot_be_trained_is_not_drawn() -> None:
    assert "<svg" not in schedule_html(make(intervals={"epochs": 10}))
    nothing = make(unet={"train": False}, text_encoder={"train_ratio": 0.0})
    assert "<svg" not in schedule_html(nothing)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 40),
        ({"batch": {"batch_size": 2, "gradient_accumulation_steps": 2}}, 10),
        ({"batch": {"batch_size": 3}}, 20),
        ({"intervals": {"epochs": 10, "max_steps": 25}}, 25),
        ({"intervals": {"epochs": 10, "max_steps": 2500}}, 40),
        ({"intervals": {"epochs": 0, "max_steps": 2500}}, 2500),
    ],
)
def test_how_long_a_training_is_is_told_by_files(
    tmp_path: Path, changes: dict[str, Any], expected: int
) -> None:
    pictures = write_pictures(tmp_path / "pictures", 4)
    settings = {
        "intervals": {"epochs": 10},
        "concepts": [{"instance_folder": str(pictures)}],
        **changes,
    }
    assert expected_steps(make(**settings)) == expected


def test_repeats_count(tmp_path: Path) -> None:
    write_pictures(tmp_path / "9_zwx dog", 2)
    concept = {"instance_folder": str(tmp_path / "9_zwx dog")}
    intervals = {"epochs": 1}

    def steps(**more: Any) -> int:
        return expected_steps(make(intervals=intervals, concepts=[{**concept, **more}]))

    assert steps() == 2
    assert steps(repeats=3) == 6
    assert steps(repeats=3, folder_names=True) == 18


def test_on_the_page_it_follows_its_settings(workspace: Workspace) -> None:
    """Each of them draws it again, and so does opening its tab; a number being typed leaves it."""
    with gr.Blocks() as blocks:
        page = Page(StandaloneHost(workspace))
    display, train = page.select.curve.display, page.form.train
    functions = blocks.fns.values() if isinstance(blocks.fns, dict) else blocks.fns
    answering = [fn for fn in functions if display in (getattr(fn, "outputs", None) or ())]
    paths = {path for name in (*SHAPING, *SHAPING_TOO) for path in train.paths(name)}
    assert len(answering) == 1 + len(paths & set(train.components()))
    draw = answering[0].fn
    values = {part: getattr(part, "value", None) for part in page.form.inputs()}
    values[page.form.model] = "ada"
    values[train.components()["intervals.max_steps"]] = 400
    assert "over 400 steps" in draw(values)
    values[train.components()["learning_rate.unet"]] = None
    assert draw(values) == gr.update()
