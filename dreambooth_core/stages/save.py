"""From a model to a checkpoint file: trained tensors laid over the base, in the source's layout.

A tensor that was not trained and keeps its dtype passes byte for byte; so do all extras, whose
dtypes matter (a noise schedule rounded to fp16 would spoil the host's).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dreambooth_core.checkpoint.file import (
    TORCH_DTYPES,
    CheckpointReader,
    Data,
    Entry,
    WrittenFile,
    cast_chunks,
    write_checkpoint,
)
from dreambooth_core.checkpoint.header import Header, TensorInfo
from dreambooth_core.checkpoint.metadata import (
    Description,
    checkpoint_metadata,
    flat_metadata,
    training_metadata,
)
from dreambooth_core.checkpoint.stream import Buffers
from dreambooth_core.config.schema import SaveConfig
from dreambooth_core.errors import CheckpointError, InputError
from dreambooth_core.families import family_of
from dreambooth_core.families.base import KeyPair, Weights
from dreambooth_core.families.loading import read_configs, weights_file
from dreambooth_core.job.checkpoint_files import checkpoint_path, side_path
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import CheckpointSaved
from dreambooth_core.job.storage import atomic_write_bytes
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.stages.disk import require_space
from dreambooth_core.stages.model_shape import SAVED_DTYPES, SOURCE_DTYPE, read_layout
from dreambooth_core.stages.saved_states import EMA_FILE, latest_state, state_progress
from dreambooth_core.stages.training_state import trained_weights


def run(config: SaveConfig, context: RunContext) -> dict[str, Any]:
    """Write the asked-for state of the model, or its base if it was not trained yet."""
    folder = context.workspace.model(config.model)
    folder.require()
    trained = _trained(folder, config)
    path = checkpoint_path(
        context.workspace.checkpoints_dir,
        config.name or folder.name,
        trained.step,
        config.subfolder,
    )
    written = save_checkpoint(folder, path, trained.weights, config.dtype, trained.metadata)
    remember_checkpoint(folder, path)
    context.emit(
        CheckpointSaved(str(path), trained.step, trained.epoch, written.sha256, written.size)
    )
    return {
        "model": folder.name,
        "path": str(path),
        "step": trained.step,
        "sha256": written.sha256,
        "size": written.size,
    }


def save_checkpoint(
    folder: ModelFolder,
    path: Path,
    weights: Mapping[str, Weights],
    dtype: str,
    metadata: Mapping[str, str] | None = None,
) -> WrittenFile:
    """Write the base with `weights` (component, then name) laid over it, all or nothing.

    `dtype` is "fp16", "bf16", "fp32", or "source" for each tensor's dtype in the source file;
    `metadata` is added to what every checkpoint says about itself. The source's `.yaml`, if it had
    one, is written first. Raises NonFiniteError naming a weight that is NaN or infinite.
    """
    header = {**_describe(folder, path), **flat_metadata(metadata or {})}
    side = side_path(path)
    kept = folder.kept_side_file
    try:
        with ExitStack() as stack:
            entries = _entries(folder, weights, dtype, stack)
            require_space(path.parent, sum(entry.size for entry in entries), "The checkpoint")
            if kept.exists():
                atomic_write_bytes(side, kept.read_bytes())
            return write_checkpoint(path, entries, header)
    except BaseException:
        if kept.exists() and not path.exists():
            side.unlink(missing_ok=True)
        raise


def remember_checkpoint(folder: ModelFolder, path: Path) -> None:
    """Add a checkpoint to those that the model's record lists."""
    info = folder.read_info()
    if str(path) not in info.checkpoints:
        info.checkpoints.append(str(path))
        folder.write_info(info)


@dataclass(frozen=True)
class _Trained:
    """What is laid over the base, and how far the run that made it was."""

    weights: Mapping[str, Weights]
    step: int = 0
    epoch: int = 0
    metadata: Mapping[str, str] | None = None


def _trained(folder: ModelFolder, config: SaveConfig) -> _Trained:
    state = latest_state(folder, config.run, config.step)
    if state is not None:
        progress = state_progress(state)
        averaged = config.use_ema and (state / EMA_FILE).exists()
        metadata = training_metadata(progress.step, progress.epoch, uses_ema=averaged)
        weights = trained_weights(state, config.use_ema)
        return _Trained(weights, progress.step, progress.epoch, metadata)
    if config.run or config.step:
        wanted = f" of the run {config.run!r}" if config.run else ""
        wanted += f" at step {config.step}" if config.step else ""
        raise InputError(
            f"The model {folder.name} has no training state{wanted}.",
            remedy="Leave run and step empty for the newest.",
            field="step" if config.step else "run",
        )
    return _Trained({})


def _describe(folder: ModelFolder, path: Path) -> dict[str, str]:
    info = folder.read_info()
    return checkpoint_metadata(
        Description(
            title=path.stem,
            architecture=family_of(folder).architecture,
            resolution=info.resolution,
            prediction_type=info.prediction_type,
            source_sha256=info.source_sha256,
        )
    )


def _entries(
    folder: ModelFolder, weights: Mapping[str, Weights], dtype: str, stack: ExitStack
) -> list[Entry]:
    """Return an entry for every tensor of the source, in its order."""
    family = family_of(folder)
    layout = read_layout(folder)
    pairs = {pair.source: pair for pair in family.key_map(layout, read_configs(folder, family))}
    _check_fit(weights, layout, list(pairs.values()))
    readers = {
        component: stack.enter_context(CheckpointReader(weights_file(folder, component)))
        for component in family.networks
    }
    extras = stack.enter_context(CheckpointReader(folder.extras_path))
    entries, buffers = [], Buffers()
    for key, info in layout.tensors.items():
        if key not in pairs:
            entries.append(_verbatim(key, info, extras, key))
            continue
        pair = pairs[key]
        target = info.dtype if dtype == SOURCE_DTYPE else SAVED_DTYPES[dtype]
        weight = weights.get(pair.component, {}).get(pair.target)
        if weight is not None:
            entries.append(_trained_entry(key, info, target, weight))
        else:
            reader = readers[pair.component]
            entries.append(_base_entry(key, info, target, reader, pair.target, buffers))
    return entries


def _verbatim(key: str, info: TensorInfo, reader: CheckpointReader, name: str) -> Entry:
    return Entry(key, info.dtype, info.shape, lambda: reader.chunks(name), verbatim=True)


def _trained_entry(key: str, info: TensorInfo, dtype: str, weight: Tensor) -> Entry:
    return Entry(key, dtype, info.shape, lambda: weight.detach().to(TORCH_DTYPES[dtype]))


def _base_entry(
    key: str, info: TensorInfo, dtype: str, reader: CheckpointReader, name: str, buffers: Buffers
) -> Entry:
    def load() -> Data:
        chunks = reader.chunks(name)
        return chunks if dtype == info.dtype else cast_chunks(chunks, info.dtype, dtype, buffers)

    return Entry(key, dtype, info.shape, load)


def _check_fit(weights: Mapping[str, Weights], layout: Header, pairs: Sequence[KeyPair]) -> None:
    expected = {
        (pair.component, pair.target): pair.target_shape(layout.tensors[pair.source].shape)
        for pair in pairs
    }
    for component, tensors in weights.items():
        for target, weight in tensors.items():
            shape = tuple(weight.shape)
            if expected.get((component, target)) != shape:
                raise CheckpointError(
                    f"The trained weight {target} of {component}, of shape {list(shape)}, does not"
                    " fit the model.",
                    remedy="It belongs to another model.",
                )
