"""What a training run writes while it goes: events, previews, checkpoints and states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psutil
import torch
from PIL import Image

from dreambooth_core.checkpoint.file import WrittenFile
from dreambooth_core.config.serialize import to_dict
from dreambooth_core.families import FAMILIES
from dreambooth_core.job.events import (
    CheckpointSaved,
    LoraSaved,
    PhaseProgress,
    PhaseStarted,
    SampleSaved,
    StateSaved,
    StepDone,
)
from dreambooth_core.optim.schedule_free import learnt_weights
from dreambooth_core.stages.checkpoint_entries import Averages
from dreambooth_core.stages.lora_metadata import pictures_metadata, trained_lora_metadata
from dreambooth_core.stages.lora_training import save_lora
from dreambooth_core.stages.model_card import write_card
from dreambooth_core.stages.optimizer_setup import optimizer_memory
from dreambooth_core.stages.png import save_png
from dreambooth_core.stages.run_metadata import run_metadata
from dreambooth_core.stages.sampling import generate, picture_info
from dreambooth_core.stages.save import remember_checkpoint, save_checkpoint
from dreambooth_core.stages.saved_states import keep_newest
from dreambooth_core.stages.training_plan import checkpoint_file, preview_file, preview_prompts
from dreambooth_core.stages.training_setup import Trainer
from dreambooth_core.stages.training_state import (
    Tensors,
    TrainingState,
    by_component,
    save_state,
)
from dreambooth_core.stages.training_step import StepResult

PREVIEWS_PHASE = "previews"


def report_step(
    trainer: Trainer, epoch: int, result: StepResult, rates: dict[str, float], seconds: float
) -> None:
    """Emit what the step just made has to say; `seconds` is how long it took."""
    trainer.step_seconds.append(seconds)
    trainer.last_loss = result.loss
    speed = len(trainer.step_seconds) / max(sum(trainer.step_seconds), 1e-9)
    step, total_steps = trainer.progress.step, trainer.plan.total_steps
    trainer.context.emit(
        StepDone(
            step=step,
            total_steps=total_steps,
            epoch=epoch,
            loss=result.loss,
            loss_instance=result.loss_instance,
            loss_class=result.loss_class,
            learning_rates=rates,
            grad_norm=result.grad_norm,
            steps_per_second=speed,
            eta_seconds=(total_steps - step) / speed,
            memory_mb=_memory_mb(trainer.objective.device),
        )
    )


def write_checkpoint_file(trainer: Trainer) -> Path:
    """Write what has been learnt, or its EMA, as a checkpoint or LoRA for the WebUI."""
    with learnt_weights(trainer.optimizer):
        return _write_checkpoint_file(trainer)


def _write_checkpoint_file(trainer: Trainer) -> Path:
    config, step, epoch = trainer.config, trainer.progress.step, trainer.progress.epoch
    path = checkpoint_file(config, trainer.context.workspace, step)
    averaged = trainer.ema is not None and config.saving.use_ema
    if config.lora.enabled:
        written = _write_lora(trainer, path, averaged)
    else:
        metadata = run_metadata(config, trainer.progress, averaged)
        weights = _weights_to_save(trainer)
        written = save_checkpoint(
            trainer.model,
            path,
            weights,
            config.saving.dtype,
            metadata,
            _averages(trainer),
            config.loss.zero_terminal_snr,
        )
        remember_checkpoint(trainer.model, path)
    trainer.checkpoints[step] = path
    write_card(trainer.model, path, config, trainer.progress)
    saved = LoraSaved if config.lora.enabled else CheckpointSaved
    trainer.context.emit(saved(str(path), step, epoch, written.sha256, written.size))
    return path


def _write_lora(trainer: Trainer, path: Path, averaged: bool) -> WrittenFile:
    config, model, progress = trainer.config, trainer.model, trainer.progress
    told = trained_lora_metadata(model, path, config, progress, averaged)
    metadata = {**told, **pictures_metadata(trainer.plan)}
    return save_lora(model, path, config, _weights_to_save(trainer), metadata)


def _weights_to_save(trainer: Trainer) -> dict[str, Tensors]:
    if trainer.ema is not None and trainer.config.saving.use_ema:
        return by_component(trainer.ema.state_dict())
    return trainer.live_weights()


def _averages(trainer: Trainer) -> Averages | None:
    """Return the running average if it is to be written beside the weights."""
    if trainer.ema is None or not trainer.config.saving.ema_keys:
        return None
    weights = by_component(trainer.ema.state_dict())
    return Averages(weights, trainer.config.ema.decay, trainer.progress.step)


def write_state(trainer: Trainer) -> Path:
    """Write everything that a later run needs to go on from here."""
    scaler = trainer.accelerator.scaler
    state = TrainingState(
        progress=trainer.progress,
        seed=trainer.config.seed,
        settings=to_dict(trainer.config),
        weights=trainer.live_weights(),
        ema=trainer.ema.state_dict() if trainer.ema is not None else {},
        optimizer=optimizer_memory(trainer.optimizer),
        loss_scaler=scaler.state_dict() if scaler is not None else {},
    )
    run_id = trainer.context.run_id
    with learnt_weights(trainer.optimizer):
        path = save_state(trainer.model, run_id, state)
    keep_newest(trainer.model, run_id, trainer.config.saving.keep_states)
    trainer.states[trainer.progress.step] = path
    _remember_progress(trainer)
    trainer.context.emit(StateSaved(str(path), trainer.progress.step))
    return path


def write_previews(trainer: Trainer) -> list[Path]:
    """Draw one picture per preview prompt with the present weights, or their EMA."""
    step, emit, first_seed = (
        trainer.progress.step,
        trainer.context.emit,
        trainer.config.previews.seed,
    )
    prompts = preview_prompts(trainer.config)
    folder = trainer.model.samples_dir / trainer.context.run_id
    paths = []
    emit(PhaseStarted(PREVIEWS_PHASE, len(prompts), "images"))
    with _ready_to_draw(trainer):
        pictures = _draw(trainer, prompts)
        for seed, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True), first_seed):
            path = preview_file(folder, step, seed - first_seed)
            save_png(picture, path, _picture_text(trainer, prompt, seed, picture))
            paths.append(path)
            emit(SampleSaved(str(path), prompt, seed, step))
            emit(PhaseProgress(PREVIEWS_PHASE, len(paths), len(prompts)))
    return paths


def _draw(trainer: Trainer, prompts: Sequence[str]) -> Iterator[Image.Image]:
    settings = trainer.config.previews
    quantum = FAMILIES[trainer.components.family].quantum(trainer.components)
    size = trainer.config.images.resolution // quantum * quantum
    return generate(
        trainer.components,
        prompts,
        [settings.negative_prompt] * len(prompts),
        width=size,
        height=size,
        steps=settings.steps,
        cfg_scale=settings.cfg_scale,
        sampler=settings.sampler,
        seeds=range(settings.seed, settings.seed + len(prompts)),
        clip_skip=trainer.config.text_encoder.clip_skip,
    )


def _picture_text(trainer: Trainer, prompt: str, seed: int, picture: Image.Image) -> str:
    settings = trainer.config.previews
    return picture_info(
        prompt,
        settings.negative_prompt,
        steps=settings.steps,
        sampler=settings.sampler,
        cfg_scale=settings.cfg_scale,
        seed=seed,
        size=picture.size,
        model=f"{trainer.config.model}_{trainer.progress.step}",
    )


@contextmanager
def _ready_to_draw(trainer: Trainer) -> Iterator[None]:
    """Bring the whole model to the device for the block, with the EMA in it if asked for."""
    device, ema = trainer.objective.device, trainer.ema
    modules = trainer.components.modules().values()
    resting = [m for m in modules if next(m.parameters()).device.type != device.type]
    averaged = ema is not None and trainer.config.previews.use_ema
    weights = ema.swapped_in() if ema is not None and averaged else nullcontext()
    with learnt_weights(trainer.optimizer), weights, trainer.accelerator.autocast():
        for module in resting:
            module.to(device)
        try:
            yield
        finally:
            for module in resting:
                module.to("cpu")


def _remember_progress(trainer: Trainer) -> None:
    """Note in the model's `model.json` how far it is trained and by which run."""
    info = trainer.model.read_info()
    info.steps, info.epochs = trainer.progress.step, trainer.progress.epoch
    info.last_run = trainer.context.run_id
    trainer.model.write_info(info)


def _memory_mb(device: torch.device) -> float:
    """Return the most memory that was in use on the GPU, or what the process uses on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    resident: int = psutil.Process().memory_info().rss
    return resident / 2**20
