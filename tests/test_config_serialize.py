from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_core.config.schema import Concept, CreateConfig, SampleConfig, TrainConfig
from dreambooth_core.config.serialize import (
    apply_set,
    from_dict,
    load_json,
    parse_text,
    put_value,
    read_json_object,
    set_value,
    to_dict,
    type_of,
    with_absolute_paths,
)
from dreambooth_core.errors import ConfigError, InputError

TRAIN = TrainConfig(
    model="ada",
    concepts=[
        Concept(instance_folder="a", sample_prompts=["x", "y"]),
        Concept(instance_folder="b"),
    ],
)


TEXT = st.characters(exclude_characters="\0", exclude_categories=["Cs"])


def _problems(cls: type, data: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        from_dict(cls, data)
    return [str(problem) for problem in caught.value.problems]


def test_there_and_back() -> None:
    text = json.dumps(to_dict(TRAIN))
    assert from_dict(TrainConfig, json.loads(text)) == TRAIN


@settings(max_examples=50, deadline=None)
@given(
    epochs=st.integers(1, 10000),
    rate=st.floats(0, 1),
    folder=st.text(TEXT, min_size=1, max_size=20),
    flip=st.booleans(),
    prompts=st.lists(st.text(TEXT, max_size=20), max_size=3),
)
def test_any_values_survive(
    epochs: int, rate: float, folder: str, flip: bool, prompts: list[str]
) -> None:
    config = TrainConfig(model="m", concepts=[Concept(instance_folder=folder)])
    config.intervals.epochs = epochs
    config.learning_rate.unet = rate
    config.images.horizontal_flip = flip
    config.previews.prompts = prompts
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_an_unknown_setting_is_named_with_the_closest() -> None:
    assert _problems(TrainConfig, {"model": "m", "optimizer": {"beta_1": 0.9}}) == [
        "optimizer.beta_1: is not a setting. Did you mean optimizer.beta1?"
    ]
    assert _problems(TrainConfig, {"model": "m", "epoch": 3}) == [
        "epoch: is not a setting. Did you mean intervals.epochs?"
    ]
    (text,) = _problems(CreateConfig, {"name": "n", "source": "s", "zzzzzzzz": 3})
    known = "name, source, extract_ema, vae, prediction_type"
    assert text == f"zzzzzzzz: is not a setting. Known here: {known}."


def test_all_mistakes_are_told_at_once() -> None:
    data = {
        "seed": "x",
        "resume": 1,
        "intervals": 3,
        "concepts": [{"instance_folder": 5}, {"class_token": "dog"}],
        "loss": {"offset_noise": True},
        "previews": {"prompts": "one"},
    }
    assert _problems(TrainConfig, data) == [
        'seed: is "x", which is not a whole number.',
        "resume: is 1, which is not true or false.",
        "intervals: is 3, which is not a group of settings.",
        "concepts.0.instance_folder: is 5, which is not a text.",
        "concepts.1.instance_folder: must be given. The folder with the 5 to 50 pictures to learn"
        " from, subfolders included.",
        "loss.offset_noise: is true, which is not a number.",
        'previews.prompts: is "one", which is not a list of texts.',
        "model: must be given. The name of the model to train.",
    ]


def test_whole_numbers_may_be_written_as_floats_but_not_as_fractions() -> None:
    made = from_dict(TrainConfig, {"model": "m", "intervals": {"epochs": 1e2}})
    assert made.intervals.epochs == 100
    assert isinstance(made.intervals.epochs, int)
    assert isinstance(from_dict(SampleConfig, {"model": "m", "cfg_scale": 7}).cfg_scale, float)
    _problems(TrainConfig, {"model": "m", "intervals": {"epochs": 1.5}})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "NaN", None, [1.0]])
def test_numbers_must_be_finite(value: Any) -> None:
    _problems(TrainConfig, {"model": "m", "loss": {"offset_noise": value}})


def test_a_list_for_a_config_is_refused() -> None:
    assert "group of settings" in _problems(TrainConfig, [1])[0]
    assert "not a list" in _problems(TrainConfig, {"model": "m", "concepts": {}})[0]


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("optimizer.name=adamw", ("optimizer", "name"), "adamw"),
        ("intervals.epochs=7", ("intervals", "epochs"), 7),
        ("intervals.epochs=1e2", ("intervals", "epochs"), 100),
        ("learning_rate.unet=2e-6", ("learning_rate", "unet"), 2e-6),
        ("ema.enabled=off", ("ema", "enabled"), False),
        ("unet.train=Yes", ("unet", "train"), True),
        ("saving.name=a=b", ("saving", "name"), "a=b"),
        ("previews.prompts=one, two", ("previews", "prompts"), ["one, two"]),
        ('previews.prompts=["one", "two"]', ("previews", "prompts"), ["one", "two"]),
        ("previews.prompts=", ("previews", "prompts"), []),
    ],
)
def test_apply_set(assignment: str, path: tuple[str, str], value: Any) -> None:
    changed = apply_set(TRAIN, assignment)
    assert getattr(getattr(changed, path[0]), path[1]) == value
    assert changed is not TRAIN
    assert TRAIN.optimizer.name == "lion"


def test_apply_set_reaches_into_lists() -> None:
    changed = apply_set(TRAIN, "concepts.1.class_token=dog")
    assert [concept.class_token for concept in changed.concepts] == ["", "dog"]
    assert changed.concepts[0].sample_prompts == ["x", "y"]


def test_set_makes_the_groups_and_list_items_on_the_way() -> None:
    data: dict[str, Any] = {}
    set_value(data, TrainConfig, "concepts.0.class_token=dog")
    set_value(data, TrainConfig, "concepts.0.instance_folder=f")
    set_value(data, TrainConfig, "concepts.1.instance_folder=g")
    set_value(data, TrainConfig, "ema.decay=0.9")
    assert data == {
        "concepts": [{"class_token": "dog", "instance_folder": "f"}, {"instance_folder": "g"}],
        "ema": {"decay": 0.9},
    }
    with pytest.raises(ConfigError, match="before there are 5"):
        put_value(data, TrainConfig, "concepts.5.class_token", "cat")


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("optimizer.nme=adamw", "Did you mean optimizer.name"),
        ("optimiser.name=adamw", "Did you mean optimizer"),
        ("epochs", "has no value"),
        ("ema.enabled=perhaps", "not true or false"),
        ("intervals.epochs=many", "not a whole number"),
        ("learning_rate.unet=", "not a number"),
        ("concepts.x.class_token=a", "not a setting"),
        ("seed.low=1", "not a setting"),
        ("previews.prompts=[1", "not a list of texts"),
    ],
)
def test_apply_set_names_what_is_wrong(assignment: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        apply_set(TRAIN, assignment)


def test_types_are_found_by_path() -> None:
    assert type_of(TrainConfig, "ema.decay") is float
    assert type_of(TrainConfig, "concepts.3.class_steps") is int
    assert parse_text("x", bool, "on") is True


def test_settings_files(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"name": "n", "source": "s"}')
    assert load_json(path, CreateConfig) == CreateConfig(name="n", source="s")


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b"3"])
def test_bad_settings_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"run\.json"):
        read_json_object(path)


def test_a_missing_settings_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.json"):
        read_json_object(tmp_path / "nowhere.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_json_object(tmp_path)


def test_paths_become_absolute(tmp_path: Path) -> None:
    (tmp_path / "file.safetensors").write_bytes(b"")
    moved = with_absolute_paths(TRAIN, tmp_path)
    assert [c.instance_folder for c in moved.concepts] == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert moved.concepts[0].class_folder == ""
    assert moved.concepts[0].sample_prompts == ["x", "y"]
    assert TRAIN.concepts[0].instance_folder == "a"
    there = with_absolute_paths(CreateConfig(name="n", source="file.safetensors"), tmp_path)
    assert there.source == str(tmp_path / "file.safetensors")
    named = with_absolute_paths(CreateConfig(name="n", source="in the webui"), tmp_path)
    assert named.source == "in the webui"
    absolute = TrainConfig(model="m", concepts=[Concept(instance_folder=str(tmp_path))])
    assert with_absolute_paths(absolute, Path("/else")) == absolute
