from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_origin

import pytest

from dreambooth_core.config import schema
from dreambooth_core.config.control import (
    REQUIRED,
    control,
    field_specs,
    number_text,
    section,
    section_specs,
)
from dreambooth_core.config.schema import JOB_CONFIGS, Concept, TrainConfig

ALL_CLASSES = [*dict.fromkeys(JOB_CONFIGS.values()), Concept]
ALL_SPECS = [(cls, spec) for cls in ALL_CLASSES for spec in field_specs(cls)]
IDS = [f"{cls.__name__}.{spec.path}" for cls, spec in ALL_SPECS]


@dataclass(kw_only=True)
class Inner:
    rate: float = control(0.5, "Rate", "How fast.", minimum=0, maximum=1, unit="m/s")


@dataclass(kw_only=True)
class Outer:
    name: str = control(REQUIRED, "Name", "What it is called.")
    words: list[str] = control(["a"], "Words", "Some words.")
    inner: Inner = section(Inner, "Inner", "A group.")


def test_field_specs_are_recursive_and_in_order() -> None:
    specs = field_specs(Outer)
    assert [spec.path for spec in specs] == ["name", "words", "inner.rate"]
    assert [spec.name for spec in specs] == ["name", "words", "rate"]
    assert [spec.section for spec in specs] == ["", "", "inner"]
    assert [spec.type for spec in specs] == [str, list[str], float]
    assert [spec.required for spec in specs] == [True, False, False]
    assert specs[1].default == ["a"]
    assert specs[2].control.unit == "m/s"


def test_sections_are_listed_with_their_label() -> None:
    (only,) = section_specs(Outer)
    assert (only.name, only.type, only.control.label) == ("inner", Inner, "Inner")


def test_list_defaults_are_not_shared() -> None:
    first, second = Outer(name="x"), Outer(name="y")
    first.words.append("b")
    assert second.words == ["a"]
    assert first.inner is not second.inner


def test_a_required_setting_must_be_given() -> None:
    with pytest.raises(TypeError, match="name"):
        Outer()
    assert repr(REQUIRED) == "REQUIRED"


def test_numbers_are_written_as_people_do() -> None:
    assert number_text(4294967295) == "4294967295"
    assert number_text(1e-6) == "1e-06"
    assert number_text(0.75) == "0.75"


@pytest.mark.parametrize(("cls", "spec"), ALL_SPECS, ids=IDS)
def test_every_setting_is_described(cls: type, spec: Any) -> None:
    described = spec.control
    assert described.label, spec.path
    assert described.label[0].isupper(), spec.path
    assert len(described.help) > 12, spec.path
    assert described.help.endswith("."), spec.path


@pytest.mark.parametrize(("cls", "spec"), ALL_SPECS, ids=IDS)
def test_every_number_has_a_range_that_holds_its_default(cls: type, spec: Any) -> None:
    if spec.type in (int, float):
        assert spec.control.minimum <= spec.default <= spec.control.maximum
        assert isinstance(spec.default, spec.type)
    elif spec.control.choices:
        assert spec.default in spec.control.choices
    else:
        assert spec.control.minimum is None
        assert spec.type in (str, bool) or get_origin(spec.type) is list


@pytest.mark.parametrize(("cls", "spec"), ALL_SPECS, ids=IDS)
def test_whole_numbers_have_a_unit_or_need_none(cls: type, spec: Any) -> None:
    unitless = {"seed", "class_seed", "step", "min_timestep", "max_timestep"}
    if spec.type is int and spec.name not in unitless:
        assert spec.control.unit, spec.path


def test_labels_are_unique_within_a_group() -> None:
    for cls in ALL_CLASSES:
        seen = [(spec.section, spec.control.label) for spec in field_specs(cls)]
        assert len(seen) == len(set(seen)), cls


def test_the_defaults_of_the_contract() -> None:
    config = TrainConfig(model="m")
    assert config.seed == 420420
    assert config.intervals.epochs == 100
    assert config.optimizer.name == "lion"
    assert (config.optimizer.beta1, config.optimizer.beta2) == (0.9, 0.99)
    assert config.learning_rate.unet == 1e-6
    assert config.learning_rate.schedule == "constant_with_warmup"
    assert config.text_encoder.train_ratio == 0.75
    assert config.loss.prior_loss_weight == 0.75
    assert (config.ema.enabled, config.ema.decay) == (True, 0.995)
    assert config.images.resolution == 512
    assert config.saving.dtype == "fp16"
    assert Concept(instance_folder="f").instance_prompt == "[filewords]"


def test_everything_the_schema_promises_is_there() -> None:
    for name in schema.__all__:
        assert hasattr(schema, name)
