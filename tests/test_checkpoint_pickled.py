"""PyTorch's `.ckpt` files read as data: the same tensors as torch reads, and nothing is run."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dreambooth_core.checkpoint import file as checkpoint_file
from dreambooth_core.checkpoint import pickle_data
from dreambooth_core.checkpoint.file import TORCH_DTYPES, CheckpointReader
from dreambooth_core.checkpoint.hashed import PassingDigest
from dreambooth_core.checkpoint.header import read_header
from dreambooth_core.errors import CheckpointError


def samples() -> dict[str, Tensor]:
    """One tensor of every dtype, and the forms in which real files keep theirs."""
    generator = torch.Generator().manual_seed(5)
    tensors = {
        name: (torch.rand((5, 3), generator=generator) * 100).to(dtype)
        for name, dtype in TORCH_DTYPES.items()
    }
    base = torch.rand((4, 6), generator=generator)
    return {
        **tensors,
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "transposed": base.t(),
        "permuted": torch.rand((2, 3, 4), generator=generator).permute(2, 0, 1),
        "one wide": torch.rand((3, 1), generator=generator).t(),
        "row of another": base[1],
        "tied": base,
        "parameter": torch.nn.Parameter(torch.ones(3)),
    }


def kept(folder: Path, contents: Any, **options: Any) -> Path:
    path = folder / "x.ckpt"
    torch.save(contents, path, **options)
    return path


def assert_same(path: Path, expected: dict[str, Tensor]) -> None:
    with CheckpointReader(path) as reader:
        assert reader.header.tensors.keys() == expected.keys()
        for key, tensor in expected.items():
            ours = reader.read(key)
            assert (ours.dtype, ours.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(ours, tensor)
            raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            assert reader.read_bytes(key) == raw


def fault(path: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        read_header(path)
    assert str(path) in raised.value.message
    return str(raised.value)


@pytest.mark.parametrize(
    "contents",
    [
        samples(),
        {"state_dict": samples(), "epoch": 3, "lr": 0.5, "global_step": 470000},
        {"state_dict": OrderedDict(samples()), "optimizer_states": [{"state": {0: (1, 2)}}]},
    ],
    ids=["bare", "training", "ordered"],
)
def test_tensors_are_those_that_torch_reads(tmp_path: Path, contents: Any) -> None:
    path = kept(tmp_path, contents)
    theirs = torch.load(path, weights_only=True)
    assert_same(path, dict(theirs.get("state_dict", theirs)))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    path = kept(tmp_path, {"state_dict": samples()}, pickle_protocol=protocol)
    assert_same(path, samples())


def test_a_models_own_state_dict_is_read(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    path = kept(tmp_path, module.state_dict())  # an OrderedDict that is told its `_metadata`
    assert_same(path, dict(module.state_dict()))


def test_tensors_come_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    header = read_header(kept(tmp_path, samples()))
    starts = [info.start for info in header.tensors.values()]
    assert starts == sorted(starts)
    assert header.file_size == sum(tensor.nbytes for tensor in samples().values())


def test_the_records_of_published_checkpoints_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of SD 1.4 name a callback of the training program, which need not be there."""
    home = ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    callback = type("ModelCheckpoint", (), {"__module__": home.__name__})
    home.ModelCheckpoint = callback  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, home.__name__, home)
    for parent in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    callbacks = {callback: {"monitor": "val", "best_model_score": torch.tensor(0.3)}}
    path = kept(tmp_path, {"state_dict": {"a": torch.ones(2)}, "callbacks": callbacks})
    monkeypatch.undo()
    assert b"pytorch_lightning" in path.read_bytes()
    assert_same(path, {"a": torch.ones(2)})


class Attack:
    """Something whose reading would run a program."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Take what would be called."""
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], Any]:
        """Return what pickle would call."""
        return self.call


@pytest.mark.parametrize(
    ("attack", "name"),
    [
        (Attack(os.system, "echo was here > proof"), f"{os.system.__module__}.system"),
        (Attack(eval, "open('proof', 'w')"), "builtins.eval"),
        (Attack(getattr, OrderedDict, "fromkeys"), "builtins.getattr"),
        (Attack(torch.load, "other.ckpt"), "torch.serialization.load"),
    ],
)
@pytest.mark.parametrize("place", ["beside", "instead", "key"])
def test_programs_in_a_pickle_are_named_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: Attack, name: str, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    contents: Any = {
        "beside": {"state_dict": {"a": torch.ones(2)}, "extra": attack},
        "instead": attack,
        "key": {"state_dict": {"a": torch.ones(2), "b": attack}},
    }[place]
    message = fault(kept(tmp_path, contents, pickle_protocol=4))
    name = name.replace("builtins", "__builtin__") if f"'{name}'" not in message else name
    assert f"asks to run {name!r}" in message
    assert "Delete it" in message
    assert not (tmp_path / "proof").exists()


def rewritten(
    path: Path,
    change: Callable[[str, bytes], bytes | None],
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Write the archive again with other parts; None leaves a part out."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in parts.items():
            changed = change(name, data)
            if changed is not None:
                archive.writestr(name, changed)
    return path


def with_pickle(folder: Path, raw: bytes) -> Path:
    """Write an archive with this pickle and one part of 16 bytes."""
    path = folder / "made.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", raw)
        archive.writestr("archive/data/0", bytes(16))
    return path


def test_missing_cut_and_swapped_parts_are_named(tmp_path: Path) -> None:
    def write() -> Path:
        return kept(tmp_path, {"a": torch.ones(100)})

    lost = rewritten(write(), lambda name, data: None if name.endswith("data/0") else data)
    assert "'data/0' is missing" in fault(lost)
    short = rewritten(write(), lambda name, data: data[:50] if name.endswith("data/0") else data)
    assert "'a' reaches beyond its 50 bytes" in fault(short)
    big = rewritten(write(), lambda name, data: b"big" if name.endswith("byteorder") else data)
    assert "another kind of computer" in fault(big)
    none = rewritten(write(), lambda name, data: None if name.endswith(".pkl") else data)
    assert "0 descriptions" in fault(none)


def test_an_archive_that_would_swell_is_refused(tmp_path: Path) -> None:
    path = kept(tmp_path, {"a": torch.zeros(1_000_000)})
    rewritten(path, lambda _, data: data, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20_000
    message = fault(path)
    assert "compressed" in message
    assert "Delete it" in message


def test_many_names_for_the_same_bytes_are_refused(tmp_path: Path) -> None:
    base = torch.zeros(100_000)
    path = kept(tmp_path, {str(i): base.view(-1) for i in range(50)})
    assert "share the same bytes" in fault(path)


def test_repeated_and_gapped_numbers_are_refused(tmp_path: Path) -> None:
    assert "part of a larger" in fault(kept(tmp_path, {"a": torch.ones(1).expand(10**15)}))
    assert "part of a larger" in fault(kept(tmp_path, {"a": torch.ones(4, 4)[:, :2]}))


def test_one_name_twice_and_something_behind_the_end_are_refused(tmp_path: Path) -> None:
    path = kept(tmp_path, {"a": torch.ones(2)})
    with path.open("ab") as file:
        file.write(b"more")
    assert "does not end like an archive" in fault(path)
    path = with_pickle(tmp_path, pickle.dumps({}))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(16))
    assert "names something twice" in fault(path)


def test_a_pickle_of_the_old_kind_says_what_to_do(tmp_path: Path) -> None:
    path = kept(tmp_path, {"a": torch.ones(2)}, _use_new_zipfile_serialization=False)
    assert "before version 1.6" in fault(path)
    assert "save it as .safetensors" in fault(path)
    path.write_bytes(b"./storages".ljust(1024, b"\0"))  # a tar, as even older versions wrote
    assert "save it as .safetensors" in fault(path)


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ({}, "no tensors"),
        ([torch.ones(1)], "no dictionary"),
        ({"state_dict": {1: torch.ones(1)}}, "no tensors"),
        ({"x" * 2000: torch.ones(1)}, "longer than 1000"),
        ({(1, 2): torch.ones(1)}, "neither text nor a number"),
        ({"a\udc80": torch.ones(1)}, "no proper text"),
    ],
)
def test_contents_of_another_form_are_refused(tmp_path: Path, contents: Any, words: str) -> None:
    assert words in fault(kept(tmp_path, contents))


def description(shape: Any, stride: Any, offset: Any = 0, kind: str = "FloatStorage") -> bytes:
    """A pickle of one tensor with numbers that PyTorch would not write; protocol 4, by hand."""
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    storage = b"(" + pickle.dumps("storage", 4)[2:-1] + b"ctorch\n" + kind.encode() + b"\n"
    storage += b"".join(pickle.dumps(value, 4)[2:-1] for value in ("0", "cpu", 4)) + b"tQ"
    numbers = b"".join(pickle.dumps(value, 4)[2:-1] for value in (offset, shape, stride))
    end = b"\x89}t" + b"R"
    return (
        b"\x80\x04}" + pickle.dumps("a", 4)[2:-1] + rebuild + b"(" + storage + numbers + end + b"s."
    )


def unframed(raw: bytes) -> bytes:
    """A pickle without the lengths of its frames, which do not fit after cutting."""
    out, position = b"", 0
    while position < len(raw):
        if raw[position : position + 1] == b"\x95":
            position += 9
            continue
        out += raw[position : position + 1]
        position += 1
    return out


def test_a_description_by_hand_is_read(tmp_path: Path) -> None:
    path = with_pickle(tmp_path, unframed(description((2, 2), (2, 1))))
    assert_same(path, {"a": torch.zeros(2, 2)})


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (description((2, 3), (3, 1)), "beyond its 16 bytes"),
        (description((2, 2), (2, 1), offset=1), "beyond its 16 bytes"),
        (description((2, 2), (2, 1), offset=-4), "impossible shape"),
        (description((-2, 2), (2, 1)), "impossible shape"),
        (description((2, 2), (2,)), "impossible shape"),
        (description((2**80,), (1,)), "impossible shape"),
        (description((2.0,), (1,)), "impossible shape"),
        (description([2], (1,)), "impossible shape"),
        (description((1,) * 17, (1,) * 17), "impossible shape"),
        (description((2,), (1,), kind="OtherStorage"), "asks to run 'torch.OtherStorage'"),
    ],
)
def test_impossible_descriptions_are_refused(tmp_path: Path, raw: bytes, words: str) -> None:
    assert words in fault(with_pickle(tmp_path, unframed(raw)))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b".",
        b"\x80\x02}",
        b"\x80\x02t.",
        b"\x80\x02}}s.",
        b"\x80\x02(}.",
        b"\x80\x02h\x05.",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x02I1\n.",
        b"\x80\x02}]R.",
        b"\x80\x02\x93.",
        b"\xff\xff",
    ],
)
def test_broken_pickles_are_refused(tmp_path: Path, raw: bytes) -> None:
    assert "its pickle" in fault(with_pickle(tmp_path, raw))


def test_an_endless_pickle_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_data, "MAX_INSTRUCTIONS", 100)
    path = kept(tmp_path, {str(i): torch.ones(1) for i in range(20)})
    assert "more than 100 instructions" in fault(path)


def test_a_directory_larger_than_any_is_not_read(tmp_path: Path) -> None:
    path = kept(tmp_path, {"a": torch.ones(1)})
    raw = bytearray(path.read_bytes())
    struct.pack_into("<I", raw, len(raw) - 10, 2**31)
    path.write_bytes(raw)
    assert "directory is larger" in fault(path)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_damaged_archive_is_read_as_something_valid_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a": torch.ones(3, 2), "b": torch.ones(2).half()}}, buffer)
    good = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(4, len(good)))
    path = tmp_path_factory.mktemp("fuzz") / "x.ckpt"
    path.write_bytes(good[:cut] if data.draw(st.booleans()) else good)
    try:
        header = read_header(path)
    except CheckpointError as error:
        assert str(path) in error.message  # noqa: PT017  (either outcome is right)
    else:
        assert all(info.end <= path.stat().st_size for info in header.tensors.values())


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
@pytest.mark.parametrize("chunk", [16, 2**20])
def test_the_files_digest_comes_from_what_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, chunk: int
) -> None:
    from safetensors.torch import save_file

    monkeypatch.setattr(checkpoint_file, "CHUNK_BYTES", chunk)
    path = tmp_path / f"x.{suffix}"
    tensors = {key: value.detach().clone() for key, value in samples().items()}
    if suffix == "ckpt":
        torch.save(samples(), path)
    else:
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    with CheckpointReader(path) as reader, CheckpointReader(path) as other:
        digest = PassingDigest(reader, path.stat().st_size)
        for key in list(reader.header.tensors)[::2]:  # the others are not read
            raw = b"".join(bytes(piece) for piece in digest.passing(key))
            assert raw == other.read_bytes(key)
        assert digest.finish() == hashlib.sha256(path.read_bytes()).hexdigest()
        digest.close()
