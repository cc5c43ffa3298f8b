"""What a saved checkpoint holds: the source's tensors in their order, and what hosts look for.

A tensor that was not trained and keeps its dtype passes byte for byte; so do all extras, whose
dtypes matter (a noise schedule rounded to fp16 would spoil the host's).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from dreambooth_core.checkpoint.contents import Header, TensorInfo
from dreambooth_core.checkpoint.file import TORCH_DTYPES, CheckpointReader, Entry, cast_chunks
from dreambooth_core.checkpoint.stored import shapes_of
from dreambooth_core.checkpoint.stream import Buffer, Buffers, bytes_of
from dreambooth_core.errors import CheckpointError
from dreambooth_core.families import family_of
from dreambooth_core.families.base import Family, KeyPair, Weights, pairs_by_source
from dreambooth_core.families.loading import read_configs, weights_file
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.stages.model_shape import (
    EMA_COUNTERS,
    SAVED_DTYPES,
    SOURCE_DTYPE,
    host_keys,
    read_layout,
)

Parts = Sequence[tuple[KeyPair, Weights]]
"""The component's tensors that make one tensor of the file, each with its component's trained ones.

These may lie in files, and are asked for when their turn comes.
"""


@dataclass(frozen=True)
class Averages:
    """A running average of the trained weights, for hosts that look for one beside the weights."""

    weights: Mapping[str, Weights]
    decay: float
    updates: int


def checkpoint_entries(
    folder: ModelFolder,
    weights: Mapping[str, Weights],
    dtype: str,
    stack: ExitStack,
    averages: Averages | None = None,
    zero_snr: bool = False,
) -> list[Entry]:
    """Return the entries of a checkpoint; `stack` keeps the files open that they are read from.

    The source's tensors come first in its order, then the keys by which hosts tell the prediction
    type and, with `zero_snr`, a schedule that ends in noise, then the averages. Raises
    CheckpointError for trained weights of another model.
    """
    family, layout = family_of(folder), read_layout(folder)
    pairs = pairs_by_source(family.key_map(layout, read_configs(folder, family)))
    for trained in (weights, averages.weights if averages else {}):
        _check_fit(trained, layout, [pair for each in pairs.values() for pair in each])
    base = _Base(folder, family, stack)
    entries = []
    for key, info in layout.tensors.items():
        if key in pairs:
            target = _saved_dtype(info, dtype)
            entries.append(_entry(key, info, target, _parts(pairs[key], weights), base))
        else:
            entries.append(base.extra(key, info))
    marks = host_keys(folder, zero_snr)
    entries += [Entry(key, "F32", (0,), lambda: torch.empty(0)) for key in marks]
    return entries + _averaged(family, layout, pairs, dtype, base, averages)


class _Base:
    """The open weights of the model as it was created, and what belongs to no component."""

    def __init__(self, folder: ModelFolder, family: Family, stack: ExitStack) -> None:
        self._readers = {
            component: stack.enter_context(CheckpointReader(weights_file(folder, component)))
            for component in family.networks
        }
        self._extras = stack.enter_context(CheckpointReader(folder.extras_path))
        self._buffers = Buffers()

    def chunks(self, pair: KeyPair, source: str, target: str) -> Iterator[Buffer]:
        """Yield the bytes of a weight in the file's order, cast from one dtype to another."""
        reader = self._readers[pair.component]
        if pair.transform == "transposed":
            weight = pair.to_source(reader.read(pair.target))
            yield bytes_of(weight.to(TORCH_DTYPES[target]))
        elif source == target:
            yield from reader.chunks(pair.target)
        else:
            chunks = reader.chunks(pair.target)
            yield from cast_chunks(chunks, source, target, self._buffers)

    def extra(self, key: str, info: TensorInfo) -> Entry:
        """Return the entry of a tensor that passes as it is."""
        return Entry(key, info.dtype, info.shape, lambda: self._extras.chunks(key), verbatim=True)


def _saved_dtype(info: TensorInfo, dtype: str) -> str:
    return info.dtype if dtype == SOURCE_DTYPE else SAVED_DTYPES[dtype]


def _parts(pairs: Sequence[KeyPair], weights: Mapping[str, Weights]) -> Parts:
    return [(pair, weights.get(pair.component, {})) for pair in pairs]


def _entry(key: str, info: TensorInfo, dtype: str, parts: Parts, base: _Base) -> Entry:
    """Return the entry of a tensor of the file: its parts in their order, trained or not."""

    def load() -> Iterator[Buffer]:
        for pair, trained in parts:
            if pair.target in trained:
                weight = pair.to_source(trained[pair.target].detach().cpu())
                yield bytes_of(weight.to(TORCH_DTYPES[dtype]).contiguous())
            else:
                yield from base.chunks(pair, info.dtype, dtype)

    return Entry(key, dtype, info.shape, load)


def _averaged(
    family: Family,
    layout: Header,
    pairs: Mapping[str, Sequence[KeyPair]],
    dtype: str,
    base: _Base,
    averages: Averages | None,
) -> list[Entry]:
    """Return the averages of the UNet's weights under the original code's names, and counters."""
    if averages is None:
        return []
    entries = []
    for key, info in layout.tensors.items():
        if key in pairs and pairs[key][0].component == "unet":
            parts, target = _parts(pairs[key], averages.weights), _saved_dtype(info, dtype)
            entries.append(_entry(family.ema_key(key), info, target, parts, base))
    values = (torch.tensor(averages.decay), torch.tensor(averages.updates, dtype=torch.int32))
    return entries + [
        Entry(key, name, (), lambda value=value: value)  # type: ignore[misc]
        for (key, name), value in zip(EMA_COUNTERS.items(), values, strict=True)
    ]


def _check_fit(weights: Mapping[str, Weights], layout: Header, pairs: Sequence[KeyPair]) -> None:
    expected = {
        (pair.component, pair.target): pair.target_shape(layout.tensors[pair.source].shape)
        for pair in pairs
    }
    for component, tensors in weights.items():
        for target, shape in shapes_of(tensors).items():
            if expected.get((component, target)) != shape:
                raise CheckpointError(
                    f"The trained weight {target} of {component}, of shape {list(shape)}, does not"
                    " fit the model.",
                    remedy="It belongs to another model.",
                )
