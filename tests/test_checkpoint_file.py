"""Reading tensors one at a time and writing them as a stream."""

from __future__ import annotations

import errno
import hashlib
import zlib
from collections.abc import Callable
from io import FileIO
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreambooth_core.checkpoint import file as checkpoint_file
from dreambooth_core.checkpoint import proof
from dreambooth_core.checkpoint.file import (
    TORCH_DTYPES,
    CheckpointReader,
    CheckpointWriter,
    Data,
    Entry,
    cast_chunks,
    dtype_name,
    is_finite,
    write_checkpoint,
    write_summed,
)
from dreambooth_core.checkpoint.stream import Buffers, Digest
from dreambooth_core.errors import CheckpointError, NonFiniteError
from dreambooth_core.job import disk


def samples() -> dict[str, Tensor]:
    """One tensor of every dtype, a scalar and an empty one among them."""
    generator = torch.Generator().manual_seed(3)
    tensors = {
        name: (torch.rand((5, 3), generator=generator) * 100).to(dtype)
        for name, dtype in TORCH_DTYPES.items()
    }
    return {**tensors, "scalar": torch.tensor(2.5), "empty": torch.empty(0, 4)}


def entries(tensors: dict[str, Tensor], verbatim: bool = False) -> list[Entry]:
    def entry(key: str, tensor: Tensor) -> Entry:
        name = dtype_name(tensor.dtype)
        return Entry(key, name, tuple(tensor.shape), lambda: tensor, verbatim)

    return [entry(key, tensor) for key, tensor in tensors.items()]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 16 bytes, so that small tensors come in several."""
    monkeypatch.setattr(checkpoint_file, "CHUNK_BYTES", 16)


def test_every_dtype_is_read_as_the_library_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "library.safetensors"
    save_file(samples(), path)
    with CheckpointReader(path) as reader:
        for key, expected in samples().items():
            tensor = reader.read(key)
            assert tensor.dtype == expected.dtype
            assert torch.equal(tensor, expected)
            raw = expected.reshape(-1).view(torch.uint8).numpy().tobytes()
            assert reader.read_bytes(key) == raw


def test_every_dtype_is_written_as_the_library_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "ours.safetensors"
    written = write_checkpoint(path, entries(samples()), {"title": "ours"})
    loaded = load_file(path)
    assert loaded.keys() == samples().keys()
    for key, expected in samples().items():
        assert torch.equal(loaded[key], expected)
        assert loaded[key].dtype == expected.dtype
    with safe_open(path, "pt") as library:
        assert library.metadata() == {"title": "ours"}
    assert written.path == path
    assert written.size == path.stat().st_size
    assert written.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_is_read_owns_its_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(4)}, path)
    with CheckpointReader(path) as reader:
        tensor = reader.read("a")
    tensor += 1
    path.unlink()  # no mapping holds the file
    assert tensor.tolist() == [2, 2, 2, 2]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    "form",
    [
        lambda raw: raw,
        memoryview,
        lambda raw: iter([raw[:20], raw[20:]]),
        lambda raw: torch.frombuffer(bytearray(raw), dtype=torch.float32),
        lambda raw: torch.frombuffer(bytearray(raw), dtype=torch.float32).reshape(10, 2).T,
    ],
)
def test_data_may_come_in_any_form_and_many_chunks(
    tmp_path: Path, form: Callable[[bytes], Data]
) -> None:
    raw = torch.arange(20.0).numpy().tobytes()
    path = tmp_path / "x.safetensors"
    written = write_checkpoint(path, [Entry("a", "F32", (20,), lambda: form(raw))])
    expected = form(raw)
    flat = expected.flatten() if isinstance(expected, Tensor) else torch.arange(20.0)
    with CheckpointReader(path) as reader:
        assert torch.equal(reader.read("a"), flat)
        assert [len(chunk) for chunk in reader.chunks("a")] == [16] * 5
    assert written.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_formats_that_torch_lacks_pass_as_bytes_but_not_as_tensors(tmp_path: Path) -> None:
    path = tmp_path / "f8.safetensors"
    write_checkpoint(path, [Entry("a", "F8_E4M3", (3,), lambda: b"\x7f\x01\x02")])
    with CheckpointReader(path) as reader:
        assert reader.read_bytes("a") == b"\x7f\x01\x02"
        with pytest.raises(CheckpointError, match="F8_E4M3"):
            reader.read("a")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_nan_and_infinity_are_never_written(tmp_path: Path, dtype: str, bad: float) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"what was there before")
    tensors = {"good": torch.ones(3), "bad.weight": torch.ones(50).to(TORCH_DTYPES[dtype])}
    tensors["bad.weight"][37] = bad
    with pytest.raises(NonFiniteError, match=r"bad\.weight"):
        write_checkpoint(path, entries(tensors))
    assert path.read_bytes() == b"what was there before"
    assert list(tmp_path.iterdir()) == [path]


def test_verbatim_tensors_are_not_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, entries({"buffer": torch.tensor([float("inf")])}, verbatim=True))
    assert load_file(path)["buffer"].isinf().all()


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_number_of_16_bits_is_judged_as_torch_does(dtype: str) -> None:
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    finite = torch.isfinite(bits.view(TORCH_DTYPES[dtype]))
    assert is_finite(bits[finite].numpy().data, dtype)
    others = bits[~finite].numpy()
    assert len(others) == {"F16": 2048, "BF16": 256}[dtype]
    assert not any(is_finite(others[i : i + 1].tobytes(), dtype) for i in range(len(others)))
    late = bits[finite].repeat(2)  # more than are looked at together
    late[-1] = int(others[0])
    assert not is_finite(late.numpy().data, dtype)


def test_the_largest_numbers_are_finite() -> None:
    largest = torch.full((1000,), torch.finfo(torch.float16).max, dtype=torch.float16)
    assert is_finite(largest.numpy().tobytes(), "F16")
    assert is_finite(b"", "F32")
    assert is_finite(b"\xff" * 8, "I64")


class LyingDisk:
    """Keeps another byte than it was given, the first time that a file of a name is written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        """Stand in for the writing."""
        self.name, self.real, self.lies = name, disk.write, 1
        monkeypatch.setattr(disk, "write", self.write)

    def write(self, file: FileIO, data: bytes | memoryview) -> None:
        """Write, and change the last byte."""
        changed = bytearray(data)
        if self.name in str(file.name) and len(data) > 50 and self.lies:
            self.lies -= 1
            changed[-1] ^= 1
        self.real(file, changed)


@pytest.mark.parametrize("sync_bytes", [100, proof.SYNC_BYTES])
def test_a_file_is_read_again_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync_bytes: int
) -> None:
    path, side = tmp_path / "x.safetensors", tmp_path / "x.yaml"
    new = entries({f"w{i}": torch.full((30,), float(i)) for i in range(9)})
    write_checkpoint(path, entries({"old": torch.ones(1)}), {}, {side: b"old"})
    before = path.read_bytes()
    monkeypatch.setattr(proof, "SYNC_BYTES", sync_bytes)
    LyingDisk(monkeypatch, "x.safetensors")
    with pytest.raises(CheckpointError, match=r"x\.safetensors\.tmp does not read back"):
        write_checkpoint(path, new, {}, {side: b"new"})
    assert (path.read_bytes(), side.read_bytes()) == (before, b"old")
    assert sorted(tmp_path.iterdir()) == [path, side]
    written = write_checkpoint(path, new, {}, {side: b"new"})
    assert written.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert side.read_bytes() == b"new"
    crc = write_summed(tmp_path / "summed.safetensors", new, {})
    assert crc == f"{zlib.crc32(path.read_bytes()):08x}"


@pytest.mark.parametrize("there", [b"old", None])
def test_a_side_file_is_as_it_was_if_the_checkpoint_gets_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bytes | None
) -> None:
    path, side, real = tmp_path / "x.safetensors", tmp_path / "x.yaml", disk.rename
    if there is not None:
        side.write_bytes(there)

    def refuse(source: Path, target: Path) -> None:
        if target == path:
            assert side.read_bytes() == b"new"  # it is there first
            raise OSError(errno.EIO, "broken")
        real(source, target)

    monkeypatch.setattr(disk, "rename", refuse)
    with pytest.raises(OSError, match="broken"):
        write_checkpoint(path, entries({"a": torch.ones(1)}), {}, {side: b"new"})
    assert list(tmp_path.iterdir()) == ([side] if there is not None else [])
    assert there is None or side.read_bytes() == there


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> Tensor:
        raise RuntimeError("in the middle")

    path = tmp_path / "x.safetensors"
    good = entries({"a": torch.ones(3)})
    with pytest.raises(RuntimeError, match="in the middle"):
        write_checkpoint(path, [*good, Entry("b", "F32", (1,), fail)])
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_of_another_size_than_announced_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for data in (torch.ones(3), torch.ones(5)):
        entry = Entry("a", "F32", (4,), lambda data=data: data)  # type: ignore[misc]
        with pytest.raises(ValueError, match="instead of 16"):
            write_checkpoint(path, [entry])
    assert not path.exists()


def test_a_name_used_twice_or_out_of_turn_is_refused(tmp_path: Path) -> None:
    a, b = entries({"a": torch.ones(1), "b": torch.ones(1)})
    with pytest.raises(ValueError, match="twice"):
        write_checkpoint(tmp_path / "x.safetensors", [a, a])
    writer = CheckpointWriter(tmp_path / "y.safetensors", [a, b])
    with pytest.raises(ValueError, match="'a' comes next"), writer:
        writer.write("b", torch.ones(1))


def test_a_file_left_incomplete_is_found_by_reading_it_again(tmp_path: Path) -> None:
    a, b = entries({"a": torch.ones(1), "b": torch.ones(1)})
    writer = CheckpointWriter(tmp_path / "x.safetensors", [a, b])
    with pytest.raises(CheckpointError, match="8 bytes of tensors, the file has 4"), writer:
        writer.write("a", torch.ones(1))


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(100)}, path)
    with CheckpointReader(path) as reader:
        with path.open("rb+") as file:
            file.truncate(path.stat().st_size - 8)
        with pytest.raises(CheckpointError, match="ended while a was read"):
            reader.read("a")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1)}, path)
    with CheckpointReader(path) as reader, pytest.raises(CheckpointError, match="'b'"):
        reader.read("b")


def test_a_closed_reader_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1)}, path)
    reader = CheckpointReader(path)
    with pytest.raises(ValueError, match="not open"):
        reader.read("a")


@pytest.mark.parametrize("target", [torch.float16, torch.bfloat16, torch.float32])
def test_a_cast_in_chunks_is_the_cast_of_the_whole(tmp_path: Path, target: torch.dtype) -> None:
    numbers = torch.randn(100, generator=torch.Generator().manual_seed(1)) * 300
    raw = bytearray(numbers.numpy().tobytes())
    chunks = [memoryview(raw)[:160], memoryview(raw)[160:]]
    cast = b"".join(map(bytes, cast_chunks(chunks, "F32", dtype_name(target), Buffers())))
    assert cast == numbers.to(target).view(torch.uint8).numpy().tobytes()


def test_the_digest_takes_chunks_in_order() -> None:
    digest = Digest()
    for i in range(50):
        digest.update(bytes([i]) * 1000)
    expected = hashlib.sha256(b"".join(bytes([i]) * 1000 for i in range(50))).hexdigest()
    assert digest.hexdigest() == expected
    digest.close()
