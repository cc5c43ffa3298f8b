"""Controls from the schema: each once, with its words, and values that survive the round trip."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_core import demo
from dreambooth_core.config.control import field_specs, section_specs
from dreambooth_core.config.schema import Concept, CreateConfig, SaveConfig, TrainConfig
from dreambooth_core.errors import ConfigError
from dreambooth_core.ui import gradio_compat
from dreambooth_core.ui.controls import LINE_BREAK, Fields, is_slider


def placed(cls: type, *names: str, **options: Any) -> Fields[Any]:
    fields: Fields[Any] = Fields(cls, "test")
    with gr.Blocks():
        fields.place(*(names or [s for s in fields.specs if s != "concepts"]), **options)
    return fields


TRAIN = placed(TrainConfig)


def values(fields: Fields[Any], config: Any) -> dict[Any, Any]:
    """What the browser sends back when a configuration is shown."""
    return {part: update["value"] for part, update in fields.show(config).items()}


@pytest.mark.parametrize("cls", [TrainConfig, Concept, CreateConfig, SaveConfig])
def test_every_setting_has_its_label_help_and_id(cls: type) -> None:
    fields = placed(cls)
    for path, part in fields.components().items():
        control = fields.specs[path].control
        assert part.label == control.label
        assert control.help in part.info
        assert part.elem_id == f"dreambooth_test_{path.replace('.', '_')}"
        assert part.do_not_save_to_config is True
    assert set(fields.components()) == {s.path for s in field_specs(cls)} - {"concepts"}


def test_every_range_is_on_the_page() -> None:
    for path, part in TRAIN.components().items():
        control = TRAIN.specs[path].control
        if control.maximum is None:
            continue
        if isinstance(part, gr.Slider):
            limits = (part.minimum, part.maximum, part.step)
            assert limits == (control.minimum, control.maximum, control.step)
        assert f"to {control.maximum:,}" in part.info or f"to {control.maximum:g}" in part.info
        assert control.unit in part.info


def test_the_kind_of_control_follows_the_type() -> None:
    parts = TRAIN.components()
    assert isinstance(parts["ema.enabled"], gr.Checkbox)
    assert isinstance(parts["batch.batch_size"], gr.Slider)
    assert isinstance(parts["intervals.epochs"], gr.Number)
    assert isinstance(parts["learning_rate.unet"], gr.Number)
    assert isinstance(parts["optimizer.name"], gr.Dropdown)
    assert isinstance(parts["precision.device"], gr.Dropdown)
    assert parts["precision.device"].allow_custom_value
    assert not parts["optimizer.name"].allow_custom_value
    assert isinstance(parts["previews.prompts"], gr.Textbox)
    assert not any(
        is_slider(s.control) for s in TRAIN.specs.values() if s.path == "optimizer.beta1"
    )


def test_found_choices_are_offered() -> None:
    fields = placed(CreateConfig, "source", choices=["a.safetensors"])
    part = fields.components()["source"]
    # Gradio 3 keeps a choice as it was given, newer ones as (label, value).
    offered = [choice if isinstance(choice, str) else choice[1] for choice in part.choices]
    assert offered == ["a.safetensors"]
    assert part.allow_custom_value and part.value is None


def test_a_setting_cannot_be_placed_twice_and_must_exist() -> None:
    fields = placed(TrainConfig, "ema")
    with gr.Blocks(), pytest.raises(ValueError, match="twice"):
        fields.place("ema.decay")
    with pytest.raises(KeyError, match="nothing"):
        fields.place("nothing")
    assert list(fields.components()) == [
        "ema.enabled",
        "ema.decay",
        "ema.every_steps",
        "ema.device",
    ]


def test_the_defaults_are_those_of_the_schema() -> None:
    shown = {part: part.value for part in TRAIN.components().values()}
    shown[TRAIN.components()["model"]] = "ada"
    assert TRAIN.read(shown) == TrainConfig(model="ada")


def test_settings_go_round_unchanged() -> None:
    config = demo.training_config("ada")
    config.previews.prompts = ["a dog", "two\nlines, one prompt", " spaces "]
    config.precision.device = "cuda:1"
    config.learning_rate.unet = 1e-8
    concepts = [{"instance_folder": "x"}]
    back = TRAIN.read(values(TRAIN, config), {"concepts": concepts})
    config.concepts = [Concept(instance_folder="x")]
    assert back == config


TEXTS = st.text(
    st.characters(exclude_characters=[LINE_BREAK, "\r", "\0"], exclude_categories=["Cs"])
)
PROMPTS = st.lists(TEXTS.filter(lambda text: text.strip()), max_size=4)


@settings(max_examples=40, deadline=None)
@given(PROMPTS, TEXTS, st.floats(0, 1), st.integers(1, 10000), st.booleans())
def test_any_settings_go_round_unchanged(
    prompts: list[str], text: str, rate: float, epochs: int, flag: bool
) -> None:
    config = TrainConfig(model="ada", resume=flag)
    config.previews.prompts, config.previews.negative_prompt = prompts, text
    config.learning_rate.unet, config.intervals.epochs = rate, epochs
    assert TRAIN.read(values(TRAIN, config)) == config


def test_whole_numbers_may_come_back_as_floats() -> None:
    shown = values(TRAIN, TrainConfig(model="ada"))
    shown[TRAIN.components()["batch.batch_size"]] = 4.0
    assert TRAIN.read(shown).batch.batch_size == 4


def test_missing_numbers_and_texts() -> None:
    shown = values(TRAIN, TrainConfig(model="ada"))
    shown[TRAIN.components()["saving.name"]] = None
    shown[TRAIN.components()["previews.prompts"]] = None
    assert TRAIN.read(shown) == TrainConfig(model="ada")
    shown[TRAIN.components()["intervals.epochs"]] = None
    with pytest.raises(ConfigError, match=r"intervals\.epochs: is empty"):
        TRAIN.read(shown)


def test_advanced_settings_are_hidden_at_first_and_can_be_shown() -> None:
    hidden = gradio_compat.visibility(False)
    for path, part in TRAIN.components().items():
        assert part.visible == (hidden if TRAIN.specs[path].control.advanced else True)
    updates = TRAIN.filter(lambda spec: spec.section == "ema")
    for path, part in TRAIN.components().items():
        assert updates[part]["visible"] == (True if path.startswith("ema.") else hidden)


def test_each_section_can_be_placed_whole() -> None:
    for section in section_specs(TrainConfig):
        fields = placed(TrainConfig, section.name)
        assert all(path.startswith(f"{section.name}.") for path in fields.components())
        assert fields.components()
