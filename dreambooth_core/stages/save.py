"""From a model to a checkpoint file: trained tensors laid over the base, in the source's layout."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreambooth_core.checkpoint.file import WrittenFile, write_checkpoint
from dreambooth_core.checkpoint.metadata import flat_metadata
from dreambooth_core.config.schema import SaveConfig, TrainConfig
from dreambooth_core.config.serialize import from_dict
from dreambooth_core.errors import InputError
from dreambooth_core.families.base import Weights
from dreambooth_core.job.checkpoint_files import checkpoint_path, side_path
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import CheckpointSaved
from dreambooth_core.job.workspace import ModelFolder, ModelInfo
from dreambooth_core.stages.checkpoint_entries import Averages, checkpoint_entries
from dreambooth_core.stages.disk import require_space
from dreambooth_core.stages.lora_training import is_lora_state
from dreambooth_core.stages.model_card import write_card
from dreambooth_core.stages.run_metadata import model_metadata, run_metadata
from dreambooth_core.stages.save_lora import save_lora_of_state
from dreambooth_core.stages.saved_states import (
    EMA_FILE,
    Progress,
    latest_state,
    read_intact,
    state_progress,
)
from dreambooth_core.stages.side_settings import side_settings
from dreambooth_core.stages.training_state import trained_weights


def run(config: SaveConfig, context: RunContext) -> dict[str, Any]:
    """Write the asked-for state of the model, or its base if it was not trained yet."""
    folder = context.workspace.model(config.model)
    folder.require()
    state = latest_state(folder, config.run, config.step, tell=context.warn)
    if state is not None and is_lora_state(state):
        return save_lora_of_state(config, context, state)
    trained = _trained(folder, config, state)
    step, epoch = trained.progress.step, trained.progress.epoch
    path = checkpoint_path(
        context.workspace.checkpoints_dir, config.name or folder.name, step, config.subfolder
    )
    metadata: dict[str, str] = {}
    zero_snr = trained.settings is not None and trained.settings.loss.zero_terminal_snr
    if trained.settings is not None:
        averaged = config.use_ema and trained.settings.ema.enabled
        metadata = run_metadata(trained.settings, trained.progress, averaged)
    written = save_checkpoint(
        folder, path, trained.weights, config.dtype, metadata, trained.averages, zero_snr
    )
    remember_checkpoint(folder, path)
    if trained.settings is not None:
        write_card(folder, path, trained.settings, trained.progress)
    context.emit(CheckpointSaved(str(path), step, epoch, written.sha256, written.size))
    return {
        "model": folder.name,
        "path": str(path),
        "step": step,
        "sha256": written.sha256,
        "size": written.size,
    }


def save_checkpoint(
    folder: ModelFolder,
    path: Path,
    weights: Mapping[str, Weights],
    dtype: str,
    metadata: Mapping[str, str] | None = None,
    averages: Averages | None = None,
    zero_snr: bool = False,
) -> WrittenFile:
    """Write the base with `weights` (component, then name) laid over it, all or nothing.

    `dtype` is "fp16", "bf16", "fp32", or "source" for each tensor's dtype in the source file;
    `metadata` is added to what every checkpoint says about itself; `averages` are written beside
    the weights; `zero_snr` marks a schedule that training made end in pure noise. The `.yaml` that
    belongs to it, if any, is written first. Raises NonFiniteError naming a weight that is NaN or
    infinite.
    """
    header = {**model_metadata(folder, path), **flat_metadata(metadata or {})}
    side, settings = side_path(path), side_settings(folder, zero_snr)
    with ExitStack() as stack:
        entries = checkpoint_entries(folder, weights, dtype, stack, averages, zero_snr)
        require_space(path.parent, sum(entry.size for entry in entries), "The checkpoint")
        beside = {} if settings is None else {side: settings}
        return write_checkpoint(path, entries, header, beside)


def remember_checkpoint(folder: ModelFolder, path: Path) -> None:
    """Add a checkpoint to those that the model's record lists."""

    def note(info: ModelInfo) -> None:
        if str(path) not in info.checkpoints:
            info.checkpoints.append(str(path))

    folder.change_info(note)


@dataclass(frozen=True)
class _Trained:
    """What is laid over the base, and the training that made it; a base has none."""

    weights: Mapping[str, Weights]
    progress: Progress = field(default_factory=Progress)
    settings: TrainConfig | None = None
    averages: Averages | None = None


def _trained(folder: ModelFolder, config: SaveConfig, state: Path | None) -> _Trained:
    if state is not None:
        settings = from_dict(TrainConfig, read_intact(state)["settings"])
        averages = _averages(state, settings) if config.ema_keys else None
        weights = trained_weights(state, config.use_ema)
        return _Trained(weights, state_progress(state), settings, averages)
    if config.run or config.step:
        wanted = f" of the run {config.run!r}" if config.run else ""
        wanted += f" at step {config.step}" if config.step else ""
        raise InputError(
            f"The model {folder.name} has no training state{wanted}.",
            remedy="Leave run and step empty for the newest.",
            field="step" if config.step else "run",
        )
    return _Trained({})


def _averages(state: Path, settings: TrainConfig) -> Averages:
    if not (state / EMA_FILE).exists():
        raise InputError(
            f"The training state {state} has no running average to write beside the weights.",
            remedy="Switch off ema_keys, or train with EMA switched on.",
            field="ema_keys",
        )
    weights = trained_weights(state, use_ema=True)
    return Averages(weights, settings.ema.decay, state_progress(state).step)
