"""LoRA files as the WebUI reads them: layers' weights by name, alphas, hashes and metadata.

A file holds for each layer `<name>.lora_down.weight`, `<name>.lora_up.weight`, `<name>.alpha` and,
for DoRA, `<name>.dora_scale`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dreambooth_core.adapters.weights import LowRank
from dreambooth_core.checkpoint.file import (
    TORCH_DTYPES,
    CheckpointReader,
    Entry,
    WrittenFile,
    write_checkpoint,
)
from dreambooth_core.checkpoint.header import TensorInfo, encode_header
from dreambooth_core.checkpoint.metadata import flat_metadata
from dreambooth_core.checkpoint.stored import shapes_of
from dreambooth_core.checkpoint.stream import bytes_of
from dreambooth_core.errors import CheckpointError

DOWN, UP = ".lora_down.weight", ".lora_up.weight"
ALPHA, DORA_SCALE = ".alpha", ".dora_scale"
KNOWN = (DOWN, UP, ALPHA, DORA_SCALE)
TRAINING_PREFIX = "ss_"
LEGACY_START, LEGACY_LENGTH, LEGACY_DIGITS = 0x100000, 0x10000, 8
"""Which bytes of a file its legacy hash is made of, and how many digits of it are shown."""


def lora_entries(
    tensors: Mapping[str, Tensor], alphas: Mapping[str, float], dtype: str
) -> list[Entry]:
    """Return what to write: the tensors in a format ("F16"), each layer's alpha in fp32."""
    scalars = [
        Entry(name + ALPHA, "F32", (), partial(torch.tensor, alpha, dtype=torch.float32))
        for name, alpha in sorted(alphas.items())
    ]
    return scalars + [
        Entry(key, dtype, shape, partial(_as_saved, tensors, key, dtype))
        for key, shape in sorted(shapes_of(tensors).items())
    ]


def low_rank_entries(layers: Mapping[str, LowRank], dtype: str) -> list[Entry]:
    """Return what to write of layers by their names."""
    alphas = {name: layer.alpha for name, layer in layers.items()}
    return lora_entries(layer_tensors(layers), alphas, dtype)


def layer_tensors(layers: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """Return the tensors of layers by their names in a file, but for the alphas."""
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        tensors |= {name + DOWN: layer.down, name + UP: layer.up}
        if layer.dora_scale is not None:
            tensors[name + DORA_SCALE] = layer.dora_scale
    return tensors


def write_lora(path: Path, entries: list[Entry], metadata: Mapping[str, str]) -> WrittenFile:
    """Write a LoRA file, all or nothing, with the hashes by which pictures name it.

    Raises NonFiniteError naming a tensor that holds NaN or infinity.
    """
    told = flat_metadata(metadata)
    return write_checkpoint(path, entries, {**told, **_hashes(entries, told)})


def read_lora(reader: CheckpointReader) -> dict[str, LowRank]:
    """Return the layers of an open LoRA file by name, in fp32; small enough to be held together.

    Without an alpha a layer's scale is 1, as in the WebUI. Raises CheckpointError for kinds of
    LoRA that are none: LoHa, LoKr and others, or DoRA of the rows.
    """
    keys = reader.header.tensors
    path = reader.header.path
    for key in keys:
        if not key.endswith(KNOWN):
            raise CheckpointError(
                f"{path} is a LoRA of a kind that cannot be used here: it holds {key}.",
                remedy="LoRA, LoCon and DoRA files in the WebUI's naming can be used.",
            )
    names = sorted({key.removesuffix(DOWN) for key in keys if key.endswith(DOWN)})
    if not names:
        raise CheckpointError(f"{path} holds no LoRA.", remedy="Give a LoRA file.")
    return {name: _read_layer(reader, name) for name in names}


def _read_layer(reader: CheckpointReader, name: str) -> LowRank:
    keys = reader.header.tensors
    down, up = reader.read(name + DOWN).float(), reader.read(name + UP).float()
    alpha = float(reader.read(name + ALPHA)) if name + ALPHA in keys else float(len(down))
    dora_scale = reader.read(name + DORA_SCALE).float() if name + DORA_SCALE in keys else None
    if up.shape[1] != len(down):
        raise CheckpointError(
            f"{reader.header.path} is damaged: the two halves of {name} do not fit each other.",
            remedy="Download or copy it again.",
        )
    if dora_scale is not None and not _are_of_inputs(dora_scale, down.shape[1]):
        raise CheckpointError(
            f"{reader.header.path} is a DoRA whose scales belong to the outputs ({name}).",
            remedy="The WebUI reads scales of the inputs; this file works in other programs only.",
        )
    return LowRank(down, up, alpha, dora_scale)


def _are_of_inputs(dora_scale: Tensor, inputs: int) -> bool:
    leads = dora_scale.dim() > 1 and dora_scale.shape[0] != 1
    return dora_scale.numel() == inputs and not leads


def _as_saved(tensors: Mapping[str, Tensor], key: str, dtype: str) -> Tensor:
    return tensors[key].detach().to("cpu", TORCH_DTYPES[dtype])


def _hashes(entries: Iterable[Entry], metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the two hashes that LoRA files carry, so that the WebUI need not read them whole.

    `sshs_model_hash` is the SHA-256 of everything after the header; `sshs_legacy_hash` is that of
    64 KiB from the first MiB on, in a file with only the `ss_` metadata.
    """
    entries = list(entries)
    training = {key: value for key, value in metadata.items() if key.startswith(TRAINING_PREFIX)}
    position = len(encode_header(_infos(entries), training))
    whole, legacy = hashlib.sha256(), hashlib.sha256()
    for data in _contents(entries):
        whole.update(data)
        start, end = (LEGACY_START - position, LEGACY_START + LEGACY_LENGTH - position)
        legacy.update(data[max(0, start) : max(0, end)])
        position += len(data)
    digits = legacy.hexdigest()[:LEGACY_DIGITS]
    return {"sshs_model_hash": whole.hexdigest(), "sshs_legacy_hash": digits}


def _contents(entries: Iterable[Entry]) -> Iterator[memoryview]:
    for entry in entries:
        data = entry.load()
        if not isinstance(data, Tensor):
            raise TypeError(f"{entry.key} of a LoRA comes as bytes")
        yield bytes_of(data.contiguous())


def _infos(entries: Iterable[Entry]) -> dict[str, TensorInfo]:
    infos, end = {}, 0
    for entry in entries:
        start, end = end, end + entry.size
        infos[entry.key] = TensorInfo(entry.dtype, entry.shape, start, end)
    return infos
