"""Targets: headers of `.safetensors` files and PyTorch's archives."""

from __future__ import annotations

import json
import math
import pickle
import struct
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import yaml

from dreambooth_core.checkpoint.header import read_header
from dreambooth_core.checkpoint.pickle_data import BYSTANDERS, STORAGES
from dreambooth_core.families.side_file import (
    read_side_file,
    side_count,
    side_number,
    side_value,
)
from tests.fuzz import mutate

DTYPES = ("F32", "F16", "BF16", "I64", "U8", "F8_E4M3", "f32", "", "F4", None, 3)
YAML = (
    *("\nx: !!python/object/apply:os.system [touch /tmp/fuzzed]\n", "\nx: !!int ''\n", "\n? [a]\n"),
    *("\na: &a [1]\nb: [*a, *a]\n", "\na: &a {x: 1}\nb: {<<: *a}\n", "\nx: 2001-99-99\n"),
    *("\nx: !!binary ?\n", "\nx: .inf\n", "\nx: 1:99:99\n", "\nx: !!float _\n", "\n\t-", "\0"),
    *("\nmodel: 1e999\n", "\n!!set {a, b}\n", "\nx: !!timestamp a\n", "\n--- \n--- \n", "'"),
    *("[" * 3000, "\n<<: 3\n"),
)
NAMES = (
    *BYSTANDERS,
    *STORAGES,
    *("posix.system", "os.system", "builtins.eval", "builtins.exec", "subprocess.Popen"),
    *("collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch.load", "runpy.run_path"),
)


def header(chance: Random, folder: Path) -> None:
    """A `.safetensors` file whose table, length or bytes are bent."""
    path = folder / chance.choice(("a.safetensors", "a.ckpt", "a.bin"))
    path.write_bytes(_safetensors(chance))
    _check(path)


def archive(chance: Random, folder: Path) -> None:
    """A PyTorch archive whose pickle, parts or directory are bent."""
    path = folder / "a.ckpt"
    _write_archive(chance, path)
    if chance.random() < 0.4:
        path.write_bytes(mutate.raw(chance, path.read_bytes()))
    _check(path)


def side(chance: Random, folder: Path) -> None:
    """The `.yaml` beside a checkpoint."""
    params = {"timesteps": 1000, "linear_start": 0.00085, "unet_config": {"num_heads": 8}}
    whole = {"model": {"target": "ldm.LatentDiffusion", "params": params}}
    text = json.dumps(mutate.tree(chance, whole))
    if chance.random() < 0.5:
        text = yaml.safe_dump(mutate.tree(chance, whole))
    for _ in range(chance.randrange(3)):
        text += chance.choice(YAML)
    data = (
        mutate.encoded(chance, text) if chance.random() < 0.5 else text.encode("utf-8", "replace")
    )
    (folder / "a.yaml").write_bytes(data)
    found = read_side_file(folder / "a.safetensors")
    side_value(found, "model.params.unet_config.num_heads")
    for path in ("model.params.timesteps", "model.params.linear_start", "model"):
        if not math.isfinite(side_number(found, path, 1.0)):
            raise AssertionError(f"{path} is no number")
        if side_count(found, path, 1) < 1:
            raise AssertionError(f"{path} is no count")


def _check(path: Path) -> None:
    """Read the header; what is accepted must lie in the file, within its size."""
    size = path.stat().st_size
    found = read_header(path)
    for key, info in found.tensors.items():
        key.encode("utf-8")
        start, end = info.start, info.end
        if not (0 <= start <= end and found.data_start + end <= size):
            raise AssertionError(f"{key!r} lies outside of the file")
        if any(side < 0 for side in info.shape):
            raise AssertionError(f"{key!r} has a negative side")
    if sum(info.size for info in found.tensors.values()) > 2 * size:
        raise AssertionError("the tensors are larger than the file")


def _safetensors(chance: Random) -> bytes:
    table: dict[str, Any] = {"__metadata__": {"format": "pt", "a": "b"}}
    offset = 0
    for number in range(chance.randrange(1, 5)):
        shape = [chance.randrange(0, 4) for _ in range(chance.randrange(4))]
        size = 4
        for side in shape:
            size *= side
        dtype = "F32" if chance.random() < 0.9 else chance.choice(DTYPES)
        place = [offset, offset + size]
        table[f"unet.{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": place}
        offset += size
    if chance.random() < 0.7:
        table = mutate.tree(chance, table)
    text = mutate.deep(chance) if chance.random() < 0.05 else json.dumps(table)
    if chance.random() < 0.1:
        text = text.replace('"F32"', '"F32", "dtype": "F16"', 1)
    data = text.encode("utf-8", "surrogatepass")
    length = len(data) if chance.random() < 0.9 else chance.choice((0, 1, 2**31, 2**63, 99_999_999))
    whole = struct.pack("<Q", length) + data + bytes(offset)
    return mutate.raw(chance, whole) if chance.random() < 0.4 else whole


def _write_archive(chance: Random, path: Path) -> None:
    root = chance.choice(("archive", "x", "a/b", "..", "/abs", ""))
    parts = {f"{root}/data.pkl": _pickle(chance)}
    for number in range(chance.randrange(1, 4)):
        parts[f"{root}/data/{number}"] = bytes(chance.choice((0, 4, 16, 64)))
    if chance.random() < 0.2:
        parts[f"{root}/byteorder"] = chance.choice((b"little", b"big", b"", b"x" * 100))
    if chance.random() < 0.2:
        parts[chance.choice(("../evil", "/etc/evil", "C:\\evil", "x/data.pkl", "\u202e"))] = b"x"
    squeezed = zipfile.ZIP_DEFLATED if chance.random() < 0.15 else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", squeezed) as file:
        for name, data in parts.items():
            file.writestr(name, data)


def _pickle(chance: Random) -> bytes:
    """Return a state dict's pickle with some of its instructions changed."""
    made = bytearray(b"\x80\x02}(" if chance.random() < 0.9 else b"\x80\x04(")
    for number in range(chance.randrange(1, 4)):
        made += _text(f"key.{number}") + _tensor(chance, number)
        while chance.random() < 0.15:
            made += _odd(chance)
    made += b"u." if chance.random() < 0.95 else b"."
    if chance.random() < 0.05:
        made = bytearray(pickle.dumps(mutate.value(chance), chance.randrange(6)))
    return mutate.raw(chance, bytes(made)) if chance.random() < 0.4 else bytes(made)


def _tensor(chance: Random, number: int) -> bytes:
    storage = chance.choice(("torch.FloatStorage", "torch.HalfStorage", "torch.BoolStorage"))
    place = _global(storage) + _text(str(number)) + _text("cpu") + _number(chance)
    made = _global("torch._utils._rebuild_tensor_v2") + b"("
    made += b"(" + _text("storage") + place + b"tQ"
    made += _number(chance) + _counts(chance) + _counts(chance) + b"\x89"
    made += _global("collections.OrderedDict") + b")R" + b"tR"
    return made if chance.random() < 0.9 else _odd(chance)


def _odd(chance: Random) -> bytes:
    module, _, name = chance.choice(NAMES).rpartition(".")
    return chance.choice(
        (
            f"c{module}\n{name}\n".encode() + b"(" + _text("touch /tmp/fuzzed") + b"tR",
            _text(module) + _text(name) + b"\x93" + b")R",
            b"0",
            b"2",
            b"(",
            b"l",
            b"q\x00h\x00",
            b"h\xff",
            b"]" * 1000,
            b"\x8a\xff" + bytes(255),
            b"I01\n",
            b"\x95" + bytes(8),
            b"]" + b"q\x00h\x00a" * 3,
        )
    )


def _global(text: str) -> bytes:
    module, _, name = text.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _number(chance: Random) -> bytes:
    if chance.random() < 0.8:
        return b"K" + bytes([chance.choice((0, 0, 1, 2, 4))])
    huge = chance.choice((2**31 - 1, -1, -(2**31)))
    return b"J" + struct.pack("<i", huge) if chance.random() < 0.7 else b"\x8a\x09" + b"\xff" * 9


def _counts(chance: Random) -> bytes:
    return b"(" + b"".join(_number(chance) for _ in range(chance.randrange(4))) + b"t"
