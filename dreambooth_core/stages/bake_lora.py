"""Putting a LoRA into a checkpoint: a file that acts as the two do together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dreambooth_core.adapters.lora_file import read_lora
from dreambooth_core.adapters.targets import WEIGHT
from dreambooth_core.adapters.weights import LowRank, applied
from dreambooth_core.checkpoint.carried import as_it_is, cast_to
from dreambooth_core.checkpoint.file import TORCH_DTYPES, CheckpointReader, Entry
from dreambooth_core.checkpoint.header import TensorInfo
from dreambooth_core.checkpoint.metadata import told_name
from dreambooth_core.checkpoint.recognise import EMA_PREFIX
from dreambooth_core.checkpoint.stream import Buffer, Buffers, bytes_of
from dreambooth_core.config.control import number_text
from dreambooth_core.config.lora import BakeLoraConfig
from dreambooth_core.errors import CheckpointError
from dreambooth_core.families.base import KeyPair
from dreambooth_core.families.noise_schedule import ZERO_SNR_KEY
from dreambooth_core.job.checkpoint_files import checkpoint_path
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import CheckpointSaved, Notice
from dreambooth_core.stages.derived import (
    Original,
    read_original,
    saved_dtype,
    tell_saved,
    until_stopped,
    write_derived,
)
from dreambooth_core.stages.run_metadata import ZERO_SNR_METADATA

PHASE = "writing"

Layers = Mapping[tuple[str, str], LowRank]
"""LoRA layers by component and by the name of the weight that they change."""


def run(config: BakeLoraConfig, context: RunContext) -> dict[str, Any]:
    """Write the checkpoint; a LoRA of which nothing fits is an error before that."""
    workspace = context.workspace
    original = read_original(workspace.find_checkpoint(config.checkpoint))
    lora = workspace.find_lora(config.lora)
    with CheckpointReader(lora) as reader:
        layers = _placed(read_lora(reader), original, lora, context)
        ends_in_noise = reader.header.metadata.get(ZERO_SNR_METADATA) == str(True)

    def bake() -> dict[str, Any]:
        path = checkpoint_path(workspace.checkpoints_dir, config.name, 0, config.subfolder)
        told = baking_metadata(config, original, lora)
        with CheckpointReader(original.path) as reader:
            entries = baked_entries(original, reader, layers, config)
            entries += zero_snr_mark(original) if ends_in_noise else []
            written = write_derived(original, path, entries, told, PHASE, context)
        return tell_saved(
            CheckpointSaved, config.name, original, written, context, layers=len(layers)
        )

    return until_stopped(config.name, bake)


def baking_metadata(config: BakeLoraConfig, original: Original, lora: Path) -> dict[str, str]:
    """Return what a checkpoint with a LoRA in it says about how it was made."""
    return {
        "modelspec.merged_from": f"{told_name(original.path)}, {told_name(lora)}",
        "dreambooth.baked_checkpoint": told_name(original.path),
        "dreambooth.baked_lora": told_name(lora),
        "dreambooth.baked_strength": number_text(config.strength),
        "dreambooth.baked_text_encoder_strength": number_text(config.text_encoder_strength),
    }


def baked_entries(
    original: Original, reader: CheckpointReader, layers: Layers, config: BakeLoraConfig
) -> list[Entry]:
    """Return the entries of the checkpoint with the LoRA in it, in the original's order.

    Weights that no layer changes are cast only; what belongs to no network passes as it is. Moving
    averages are left out, since they would be those of other weights.
    """
    entries, buffers = [], Buffers()
    for key, info in original.header.tensors.items():
        pairs = original.pairs.get(key, ())
        if key.startswith(EMA_PREFIX):
            continue
        if not pairs:
            entries.append(as_it_is(reader, key))
        elif any(_acts(pair, layers, config) for pair in pairs):
            dtype = saved_dtype(info, config.dtype)
            entries.append(_changed(reader, key, info, dtype, pairs, layers, config))
        else:
            entries.append(cast_to(reader, key, saved_dtype(info, config.dtype), buffers))
    return entries


def zero_snr_mark(original: Original) -> list[Entry]:
    """Return the empty key that tells hosts of a noise schedule that ends in noise, if it lacks."""
    if ZERO_SNR_KEY in original.header.tensors:
        return []
    return [Entry(ZERO_SNR_KEY, "F32", (0,), lambda: torch.empty(0))]


def _strength(component: str, config: BakeLoraConfig) -> float:
    return config.strength if component == "unet" else config.text_encoder_strength


def _acts(pair: KeyPair, layers: Layers, config: BakeLoraConfig) -> bool:
    return (pair.component, pair.target) in layers and _strength(pair.component, config) != 0


def _changed(
    reader: CheckpointReader,
    key: str,
    info: TensorInfo,
    dtype: str,
    pairs: Sequence[KeyPair],
    layers: Layers,
    config: BakeLoraConfig,
) -> Entry:
    """Return the entry of a tensor, some of whose parts a layer changes; computed in fp32."""

    def load() -> Iterator[Buffer]:
        source = reader.read(key).float()
        for pair in pairs:
            weight = pair.to_target(source)
            layer = layers.get((pair.component, pair.target))
            if layer is not None:
                weight = applied(weight, layer, _strength(pair.component, config))
            yield bytes_of(pair.to_source(weight).to(TORCH_DTYPES[dtype]).contiguous())

    return Entry(key, dtype, info.shape, load)


def _placed(
    lora: Mapping[str, LowRank], original: Original, path: Path, context: RunContext
) -> dict[tuple[str, str], LowRank]:
    """Return the LoRA's layers by the weights that they change, and tell of those without one."""
    shapes = {
        (component, key): shape
        for component in ("unet", *original.family.text_encoders)
        for key, shape in original.shapes(component).items()
        if key.endswith(WEIGHT) and len(shape) > 1
    }
    names = {original.lora_name(c, key.removesuffix(WEIGHT)): (c, key) for c, key in shapes}
    placed = {names[name]: layer for name, layer in lora.items() if name in names}
    for place, layer in placed.items():
        _require_fit(shapes[place], layer, place[1], path)
    strangers = [name for name in lora if name not in names]
    if not placed:
        raise CheckpointError(
            f"{path} fits no layer of {original.path}: it names {strangers[0]}, for instance.",
            remedy=f"Give a LoRA for {original.family.label}.",
        )
    if strangers:
        words = f"{len(strangers)} layers of {path.name} are not in the checkpoint"
        context.emit(Notice("warning", f"{words} and are left out: {strangers[0]}, for instance."))
    return placed


def _require_fit(shape: Sequence[int], layer: LowRank, key: str, path: Path) -> None:
    has = torch.Size((layer.up.shape[0], *layer.down.shape[1:]))
    if has.numel() != torch.Size(shape).numel() or tuple(has[:2]) != tuple(shape[:2]):
        raise CheckpointError(
            f"{path} is for a model of another size: {key} has the shape {list(shape)}, and the"
            f" LoRA's layer {list(has)}.",
            remedy="Give a LoRA that was trained on a checkpoint of this form.",
        )
