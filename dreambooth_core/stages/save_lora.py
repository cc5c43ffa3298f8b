"""The files and networks of a LoRA's training state: what `save` writes and `sample` draws with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreambooth_core.config.schema import SaveConfig, TrainConfig
from dreambooth_core.config.serialize import from_dict
from dreambooth_core.errors import InputError
from dreambooth_core.families import load_components
from dreambooth_core.families.base import Components
from dreambooth_core.families.loading import end_in_noise
from dreambooth_core.job.checkpoint_files import checkpoint_path
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import LoraSaved
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.stages.lora_metadata import trained_lora_metadata
from dreambooth_core.stages.lora_training import is_lora_state, load_with_adapters, save_lora
from dreambooth_core.stages.model_card import write_card
from dreambooth_core.stages.model_shape import SOURCE_DTYPE
from dreambooth_core.stages.saved_states import EMA_FILE, read_intact, state_progress
from dreambooth_core.stages.training_state import trained_weights


def save_lora_of_state(config: SaveConfig, context: RunContext, state: Path) -> dict[str, Any]:
    """Write the LoRA of a training state; raises InputError for what a LoRA cannot have."""
    _require_possible(config)
    workspace = context.workspace
    folder, trained = workspace.model(config.model), _settings(state)
    trained.saving.dtype = config.dtype
    progress = state_progress(state)
    path = checkpoint_path(
        workspace.lora_dir, config.name or folder.name, progress.step, config.subfolder
    )
    averaged = config.use_ema and (state / EMA_FILE).exists()
    metadata = trained_lora_metadata(folder, path, trained, progress, averaged)
    weights = trained_weights(state, config.use_ema)
    written = save_lora(folder, path, trained, weights, metadata)
    write_card(folder, path, trained, progress)
    context.emit(LoraSaved(str(path), progress.step, progress.epoch, written.sha256, written.size))
    return {
        "model": folder.name,
        "path": str(path),
        "step": progress.step,
        "sha256": written.sha256,
        "size": written.size,
    }


def load_state_components(folder: ModelFolder, state: Path, use_ema: bool) -> Components:
    """Load a model as a training state has it: with its trained weights, or with its LoRA."""
    weights = trained_weights(state, use_ema)
    if is_lora_state(state):
        components = load_with_adapters(folder, _settings(state).lora, weights)
    else:
        components = load_components(folder, weights=weights)
    if read_intact(state)["settings"].get("loss", {}).get("zero_terminal_snr", False):
        end_in_noise(components)
    return components


def _settings(state: Path) -> TrainConfig:
    return from_dict(TrainConfig, read_intact(state)["settings"])


def _require_possible(config: SaveConfig) -> None:
    if config.dtype == SOURCE_DTYPE:
        raise InputError(
            "A LoRA has no source whose number format it could keep.",
            remedy="Choose fp16, bf16 or fp32.",
            field="dtype",
        )
    if config.ema_keys:
        raise InputError(
            "A LoRA has no place for the running average beside its weights.",
            remedy="Switch off ema_keys; use_ema writes the average in their place.",
            field="ema_keys",
        )
