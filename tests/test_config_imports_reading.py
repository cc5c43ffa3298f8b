"""Files that nobody vouches for: each gives an answer or a clear error, and does no harm."""

from __future__ import annotations

import contextlib
import json
import os
import random
import string
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreambooth_core.config.imports import (
    apply_import,
    paths_there,
    read_import,
    read_settings_text,
    reading,
)
from dreambooth_core.config.imports.d8ahazard_concepts import MOST_CONCEPTS, NAMES
from dreambooth_core.config.imports.d8ahazard_rows import ROWS as THEIRS
from dreambooth_core.config.imports.kohya_rows import ROWS as KOHYAS
from dreambooth_core.config.imports.paths_there import found_folder
from dreambooth_core.config.imports.reading import MAX_BYTES, parse, parse_json, read_text
from dreambooth_core.config.imports.report import (
    BEHAVIOURS,
    LONGEST_VALUE,
    UNUSABLE,
    shown,
    summary,
)
from dreambooth_core.config.imports.words_there import (
    OPTIMIZERS,
    SAMPLER_NAMES,
    SCHEDULES,
    optimizer_here,
    sampler_here,
    schedule_here,
)
from dreambooth_core.config.schema import (
    LR_SCHEDULE_CHOICES,
    OPTIMIZER_CHOICES,
    SAMPLERS,
    Concept,
    TrainConfig,
)
from dreambooth_core.errors import InputError, UsageError

CONCEPT = '[{"instance_data_dir": "a"}]'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing to import"),
        ("{", "not JSON"),
        ("[1,", "not JSON"),
        ('{"learning_rate": NaN}', "NaN is no JSON number"),
        ('{"learning_rate": -Infinity}', "no JSON number"),
        ('{"learning_rate": 1e999}', "too large a number"),
        ('{"learning_rate": 1' + "0" * 400 + "}", "401 digits"),
        ("[" * 100_000, "not JSON"),
        ("[" * 60 + "]" * 60, "nested deeper"),
        ('{"a": ' * 60 + "1" + "}" * 60, "nested deeper"),
        ('{"a": 1, "b": 2}', "no settings that are known"),
        ('{"auths": {"registry": {"auth": "c2VjcmV0"}}}', "no settings that are known"),
        ("[]\n", ""),
        ("[1, 2]", "no list of concepts"),
        ('["a"]', "no list of concepts"),
        ('[{"a": 1}]', ""),
        (json.dumps([{"instance_data_dir": "a"}] * (MOST_CONCEPTS + 1)), "201 concepts"),
        ("a =\nb = 1", "not TOML"),
        ("[table]\na", "not TOML"),
        ("a = 1\na = 2\n", "not TOML"),
        ("x = [" + "[" * 60 + "]" * 60 + "]\ny = 1", "nested deeper"),
    ],
)
def test_text_that_is_no_settings(text: str, words: str) -> None:
    if not words:
        assert not read_import(text).settings
        return
    with pytest.raises(InputError, match=words) as caught:
        read_import(text)
    assert "c2VjcmV0" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        read_import(str(tmp_path / "gone.json"))
    with pytest.raises(InputError, match=r"no file|cannot be read"):
        read_import("a\0b")
    with pytest.raises(InputError, match=r"no file|cannot be read"):
        read_import("x" * 5000)
    with pytest.raises(InputError, match="no file"):
        read_import("~nobody-has-this-name/x.json")
    binary = tmp_path / "x.json"
    binary.write_bytes(b"\x89PNG\r\n\xff\xfa")
    with pytest.raises(InputError, match="no text"):
        read_import(str(binary))
    binary.write_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(InputError, match="larger than 4 MB"):
        read_import(str(binary))
    with pytest.raises(InputError, match="larger than 4 MB"):
        read_settings_text(" " * (MAX_BYTES + 5), "x.json")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such files")
def test_a_device_or_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/zero"), tmp_path / "pipe"):
        with pytest.raises(InputError, match="no file"):
            read_text(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "concepts_list.json"
    path.write_text('[{"instance_data_dir": "bär"}]', encoding=encoding)
    assert read_import(str(path)).concepts[0]["instance_folder"] == "bär"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("x.toml", "a = 1", {"a": 1}),
        ("x.json", '{"a": 1}', {"a": 1}),
        ("text", '{"a": 1}', {"a": 1}),
        ("text", "[1]", [1]),
        ("text", "[[1]]", [[1]]),
        ("text", '["a"]', ["a"]),
        ("text", "[settings]\na = 1", {"settings": {"a": 1}}),
        ("text", "[[datasets]]\na = 1", {"datasets": [{"a": 1}]}),
        ("x.txt", "a = 1", {"a": 1}),
        ("X.TOML", "a = 1", {"a": 1}),
    ],
)
def test_json_and_toml_are_told_apart(name: str, text: str, expected: Any) -> None:
    assert parse(text, name) == expected


def test_where_no_toml_can_be_read_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "TOML_READERS", ("no_such_package",))
    with pytest.raises(InputError, match="cannot read TOML") as caught:
        read_import("[settings]\nlearning_rate = 1\n")
    assert "tomli" in caught.value.remedy
    monkeypatch.setattr(reading, "TOML_READERS", ("no_such_package", "pip._vendor.tomli"))
    pytest.importorskip("pip._vendor.tomli")
    assert parse("a = 1", "x.toml") == {"a": 1}


def test_folders_of_other_computers_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def never(path: Path) -> bool:
        asked.append(path)
        return True

    monkeypatch.setattr(paths_there, "is_folder", never)
    for text in (r"\\evil\share\pictures", "//evil/share", r"\/evil\x"):
        assert found_folder(text, None) == (text, paths_there.ELSEWHERE)
    assert not asked


def test_relative_folders_are_counted_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lists" / "mine").mkdir(parents=True)
    (tmp_path / "started" / "theirs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "started")
    path = tmp_path / "lists" / "concepts_list.json"
    folders = ["mine", ".\\mine", "theirs", "gone", str(tmp_path), "C:\\x\\y"]
    path.write_text(json.dumps([{"instance_data_dir": each} for each in folders]))
    found = [each["instance_folder"] for each in read_import(str(path)).concepts]
    mine = str(tmp_path / "lists" / "mine")
    assert [os.path.normpath(each) for each in found[:2]] == [mine, mine]
    assert found[2:] == [*(str(tmp_path / "started" / "theirs"), "gone", str(tmp_path), "C:\\x\\y")]


def test_an_entry_without_a_folder_does_not_end_the_list() -> None:
    items = [{"instance_data_dir": "a"}, {"instance_token": "x"}, {"instance_data_dir": "b"}]
    found = read_import(json.dumps(items))
    assert [each["instance_folder"] for each in found.concepts] == ["a", "b"]
    assert any("rest of the list was lost" in line.words for line in found.lines)


def test_texts_of_a_file_are_cut_off_and_plain() -> None:
    assert len(shown("x" * 5000)) == LONGEST_VALUE
    assert shown("a\nb\x1b[31m\u202ec") == "a b [31m c"
    assert shown({"a": [1, None]}) == '{"a": [1, null]}'
    name = "k" * 5000
    found = read_import(json.dumps({name: 1, "hflip": True, "epoch": 1, "learning_rate": 1}))
    assert max(len(line.old) for line in found.lines) <= LONGEST_VALUE


@pytest.mark.parametrize(
    ("names", "here", "ours"),
    [
        (SCHEDULES, schedule_here, LR_SCHEDULE_CHOICES),
        (SAMPLER_NAMES, sampler_here, SAMPLERS),
        (OPTIMIZERS, lambda name: optimizer_here(name)[0], OPTIMIZER_CHOICES),
    ],
)
def test_every_word_of_theirs_is_one_of_ours(names: Any, here: Any, ours: Sequence[str]) -> None:
    for theirs in names:
        assert here(theirs) in ours, theirs
    assert here("no such thing") == ""


def test_optimizers_that_are_the_same_are_told_from_stand_ins() -> None:
    for theirs, wanted in OPTIMIZERS.items():
        assert optimizer_here(theirs) == (wanted[0], True), theirs


TABLES = {"datasets", "general", "concepts_list", "concepts_path"}
KNOWN = sorted(({row.old for row in (*THEIRS, *KOHYAS)} | NAMES) - TABLES)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(["true", "1e-6", "0", "-1", "C:\\x", "\\\\host\\share", "[filewords]", "\0"]),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=5)), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    values=st.dictionaries(st.sampled_from(KNOWN), ODD, min_size=3, max_size=12),
    concepts=st.lists(st.dictionaries(st.sampled_from(sorted(NAMES)), ODD, max_size=6), max_size=3),
    behaviour=st.sampled_from(sorted(BEHAVIOURS)),
)
def test_any_values_are_taken_or_told(
    values: dict[str, Any], concepts: list[dict[str, Any]], behaviour: str
) -> None:
    found = read_import(json.dumps({**values, "concepts_list": concepts}), behaviour)
    apply_import(found, TrainConfig(model="ada"))
    json.dumps([line.__dict__ for line in found.lines])
    assert summary(found)


def test_what_no_text_holds_is_told_and_not_taken() -> None:
    nameless, odd = {"instance_data_dir": "\0"}, {"instance_data_dir": "p", "instance_prompt": "\0"}
    values = {"adam_beta1": None, "gradient_checkpointing": True, "concepts_list": [nameless, odd]}
    found = read_import(json.dumps(values), "as it was")
    (concept,) = apply_import(found, TrainConfig(model="ada")).concepts
    assert (concept.instance_folder, concept.instance_prompt) == (
        "p",
        Concept(instance_folder="p").instance_prompt,
    )
    unusable = {line.old: line.words for line in found.lines if line.verdict == UNUSABLE}
    assert "names no folder" in unusable["concepts[0]"]
    assert "not a text" in unusable["concepts[0].instance_prompt"]


@settings(max_examples=30, deadline=None)
@given(st.one_of(st.text(max_size=60), st.text(alphabet='{}[]":,0a \n=', max_size=60)))
def test_any_text_is_taken_or_told(text: str) -> None:
    with contextlib.suppress(UsageError):
        read_settings_text(text, "x")


def test_damaged_files_are_taken_or_told() -> None:
    chance = random.Random(5)
    whole = json.dumps({"concepts_list": json.loads(CONCEPT), "learning_rate": 1e-6, "epoch": 3})
    for _ in range(100):
        text = list(whole)
        for _ in range(chance.randint(1, 4)):
            text[chance.randrange(len(text))] = chance.choice(string.printable)
        with contextlib.suppress(UsageError):
            read_settings_text("".join(text), "x.json")


def test_numbers_of_json_that_python_would_take_too(tmp_path: Path) -> None:
    assert parse_json("[1, 1.5, 1e3]", "x") == [1, 1.5, 1000.0]


def test_a_key_that_is_there_twice_counts_once() -> None:
    """As in the trainers that the files are of; in a file of ours it would be an error."""
    assert parse_json('{"a": 1, "a": 2}', "x") == {"a": 2}
