"""Headers: what is read from good files, and a clear error for everything else."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from dreambooth_core.checkpoint.header import (
    DTYPE_BYTES,
    MAX_HEADER_BYTES,
    TensorInfo,
    encode_header,
    read_header,
)
from dreambooth_core.errors import CheckpointError

GOOD = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def write(path: Path, table: Any, data: bytes = b"", *, raw: bytes | None = None) -> Path:
    """Write a file with this header, encoded without any of the product's help."""
    text = json.dumps(table).encode() if raw is None else raw
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def tensor(**changes: Any) -> dict[str, Any]:
    """The entry of a good tensor of two floats, with changes."""
    return {"a": {**GOOD["a"], **changes}}


def fault(path: Path) -> str:
    """The message of the error that reading the file raises."""
    with pytest.raises(CheckpointError) as raised:
        read_header(path)
    assert str(path) in raised.value.message
    assert raised.value.remedy
    return str(raised.value)


def test_a_file_of_the_safetensors_library_is_read(tmp_path: Path) -> None:
    path = tmp_path / "library.safetensors"
    tensors = {"half": np.zeros((3, 1), np.float16), "long": np.zeros((2, 2), np.int64)}
    save_file(tensors, path, metadata={"format": "np"})
    header = read_header(path)
    assert {key: (info.dtype, info.shape) for key, info in header.tensors.items()} == {
        "long": ("I64", (2, 2)),
        "half": ("F16", (3, 1)),
    }
    assert header.metadata == {"format": "np"}
    assert header.file_size == path.stat().st_size


def test_tensors_come_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    table = {
        "__metadata__": {"k": "v"},
        "late": {"dtype": "U8", "shape": [1], "data_offsets": [2, 3]},
        "empty": {"dtype": "F32", "shape": [0, 4], "data_offsets": [2, 2]},
        "early": {"dtype": "F16", "shape": [], "data_offsets": [0, 2]},
    }
    header = read_header(write(tmp_path / "x.safetensors", table, b"123"))
    assert list(header.tensors) == ["early", "empty", "late"]
    assert header.tensors["early"] == TensorInfo("F16", (), 0, 2)
    assert header.tensors["late"].size == 1


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ([], "begin with '{'"),
        (tensor(dtype="F12"), "unknown dtype 'F12'"),
        (tensor(dtype=["F32"]), "unknown dtype"),
        (tensor(shape=[-2]), "impossible shape"),
        (tensor(shape=[2.0]), "impossible shape"),
        (tensor(shape=[True, 2]), "impossible shape"),
        (tensor(shape=2), "impossible shape"),
        (tensor(shape=[2] + [1] * 16), "impossible shape"),
        (tensor(shape=[3]), "8 bytes where its shape and dtype need 12"),
        (tensor(data_offsets=[8, 0]), "impossible offsets"),
        (tensor(data_offsets=[0]), "impossible offsets"),
        (tensor(data_offsets=[-8, 0]), "impossible offsets"),
        (tensor(data_offsets=[1, 9]), "leaves a gap before it"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "lacks its dtype, shape or offsets"),
        ({"a": 3}, "lacks its dtype, shape or offsets"),
        ({**GOOD, "b": GOOD["a"]}, "'b' overlaps"),
        ({**GOOD, "__metadata__": {"n": 1}}, "other than text"),
        ({**GOOD, "__metadata__": ["n"]}, "is not an object"),
        ({"\ud800": GOOD["a"]}, "not valid JSON"),
    ],
)
def test_a_bad_table_is_named(tmp_path: Path, table: Any, words: str) -> None:
    assert words in fault(write(tmp_path / "bad.safetensors", table, bytes(8)))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"a":', "not valid JSON"),
        (b"\xff\xfe{", "begin with '{'"),
        (b'{"\xff":1}', "not valid JSON"),
        (b'{"a":NaN}', "holds NaN"),
        (b'{"a":{},"a":{}}', "names something twice"),
        (b"{" + b'"a":[' * 0 + b"[" * 100_000, "not valid JSON"),
        (b" {}", "begin with '{'"),
    ],
)
def test_bad_json_is_named(tmp_path: Path, raw: bytes, words: str) -> None:
    assert words in fault(write(tmp_path / "bad.safetensors", None, raw=raw))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "only 0 bytes"),
        (b"1234567", "only 7 bytes"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}", "length of a header"),
        (struct.pack("<Q", 50) + b"{}", "ends inside its header"),
        (struct.pack("<Q", 2) + b"{}" + b"x", "0 bytes of tensors, the file has 1"),
        (b"\x80\x02}q\x00" + bytes(20), "pickle"),
    ],
)
def test_a_file_of_the_wrong_form_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    assert words in fault(path)


def test_a_file_cut_short_says_so_and_asks_for_another_copy(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.safetensors", GOOD, bytes(5))
    assert "8 bytes of tensors, the file has 5" in fault(path)
    assert "download or copy it again" in fault(path)


def test_a_ckpt_of_nonsense_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 100)
    message = fault(path)
    assert "its pickle is cut or damaged" in message
    assert "download or copy it again" in message


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert "does not exist" in fault(tmp_path / "nowhere.safetensors")
    assert "cannot be read" in fault(tmp_path)


def test_an_encoded_header_is_aligned_and_begins_with_a_brace() -> None:
    infos = {"a": TensorInfo("F32", (2,), 0, 8)}
    raw = encode_header(infos, {"name": "é"})
    assert raw[8:10] == b'{"'  # the WebUI looks at these two bytes
    assert len(raw) % 8 == 0
    assert int.from_bytes(raw[:8], "little") == len(raw) - 8
    assert json.loads(raw[8:]) == {"__metadata__": {"name": "é"}, **GOOD}


shapes = st.lists(st.integers(0, 4), max_size=4)
keys = st.text(st.characters(codec="utf-8"), max_size=20).filter(lambda k: k != "__metadata__")
specs = st.dictionaries(keys, st.tuples(st.sampled_from(sorted(DTYPE_BYTES)), shapes), max_size=6)
texts = st.text(st.characters(codec="utf-8"), max_size=10)


def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    """640 is 0x0280, and 0x80 0x02 is how a pickle of protocol 2 begins."""
    path = tmp_path / "x.safetensors"
    path.write_bytes((640).to_bytes(8, "little") + b"{}".ljust(640))
    assert read_header(path).tensors == {}


@settings(deadline=None, max_examples=60)
@given(specs=specs, metadata=st.dictionaries(texts, texts, max_size=3))
def test_what_is_encoded_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, specs: Any, metadata: dict[str, str]
) -> None:
    infos, position = {}, 0
    for key, (dtype, shape) in specs.items():
        size = int(np.prod(shape, dtype=int)) * DTYPE_BYTES[dtype]
        infos[key] = TensorInfo(dtype, tuple(shape), position, position + size)
        position += size
    path = tmp_path_factory.mktemp("encode") / "x.safetensors"
    path.write_bytes(encode_header(infos, metadata) + bytes(position))
    header = read_header(path)
    assert header.tensors == infos
    assert header.metadata == metadata
    assert header.file_size == path.stat().st_size


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_damaged_file_is_read_as_something_valid_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    good = bytearray(encode_header({"a": TensorInfo("F32", (2,), 0, 8)}, {"k": "v"}) + bytes(8))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    path.write_bytes(good[:cut] if data.draw(st.booleans()) else good)
    try:
        header = read_header(path)
    except CheckpointError as error:
        assert str(path) in error.message  # noqa: PT017  (either outcome is right)
    else:
        assert header.file_size == path.stat().st_size


@settings(deadline=None, max_examples=100)
@given(content=st.binary(max_size=200))
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("random") / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        read_header(path)
