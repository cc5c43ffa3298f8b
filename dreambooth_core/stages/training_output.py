"""What a training run writes while it goes: events, previews, checkpoints and states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import psutil
import torch
from PIL import Image

from dreambooth_core.checkpoint.file import WrittenFile
from dreambooth_core.config.serialize import to_kept
from dreambooth_core.errors import NonFiniteError
from dreambooth_core.families import FAMILIES
from dreambooth_core.job.events import (
    WARNING,
    CheckpointSaved,
    LoraSaved,
    Notice,
    PhaseProgress,
    PhaseStarted,
    SampleSaved,
    StateSaved,
    StepDone,
)
from dreambooth_core.job.lineage import runs_before
from dreambooth_core.job.memory_errors import during
from dreambooth_core.job.workspace import ModelInfo
from dreambooth_core.optim.schedule_free import learnt_weights
from dreambooth_core.stages.checkpoint_entries import Averages
from dreambooth_core.stages.disk import require_space
from dreambooth_core.stages.full_disk import tensor_bytes
from dreambooth_core.stages.lora_metadata import pictures_metadata, trained_lora_metadata
from dreambooth_core.stages.lora_training import save_lora
from dreambooth_core.stages.model_card import write_card
from dreambooth_core.stages.optimizer_setup import optimizer_memory
from dreambooth_core.stages.out_of_memory import SAVING_FILE, SAVING_STATE, left_out_if_short
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
CHECKPOINT_PHASE = "saving checkpoint"
STATE_PHASE = "saving training state"
STATE = "The training state"


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


def write_checkpoint_file(trainer: Trainer, *, last: bool = False) -> bool:
    """Write what has been learnt, or its EMA, as a checkpoint or LoRA for the WebUI.

    Returns whether it is written: `last` and a full disk decide it (`full_disk.Room`).
    """

    def write() -> None:
        trainer.context.emit(PhaseStarted(CHECKPOINT_PHASE))
        with during(SAVING_FILE), learnt_weights(trainer.optimizer):
            _write_checkpoint_file(trainer)

    what = "LoRA" if trainer.config.lora.enabled else "checkpoint"
    return trainer.room.write(f"The {what} of step {trainer.progress.step}", write, last=last)


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


def write_state(trainer: Trainer, *, last: bool = False) -> bool:
    """Write everything that a later run needs to go on from here; return whether it is written."""
    what = f"{STATE} of step {trainer.progress.step}"
    return trainer.room.write(what, lambda: _write_state(trainer), last=last)


@during(SAVING_STATE)
def _write_state(trainer: Trainer) -> None:
    trainer.context.emit(PhaseStarted(STATE_PHASE))
    scaler = trainer.accelerator.scaler
    state = TrainingState(
        progress=trainer.progress,
        seed=trainer.config.seed,
        settings=to_kept(trainer.config),
        weights=trainer.live_weights(),
        ema=trainer.ema.state_dict() if trainer.ema is not None else {},
        optimizer=optimizer_memory(trainer.optimizer),
        loss_scaler=scaler.state_dict() if scaler is not None else {},
        retreats=trainer.session.retreats,
    )
    run_id = trainer.context.run_id
    needed = tensor_bytes([state.weights, state.ema, state.optimizer])
    require_space(trainer.model.states_dir, needed, STATE)
    with learnt_weights(trainer.optimizer):
        path = save_state(trainer.model, run_id, state)
    before = runs_before(trainer.context.folder)
    keep_newest(trainer.model, run_id, trainer.config.saving.keep_states, before)
    trainer.states[trainer.progress.step] = path
    _remember_progress(trainer)
    trainer.context.emit(StateSaved(str(path), trainer.progress.step))


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
    with (
        left_out_if_short(trainer, PREVIEWS_PHASE),
        _ready_to_draw(trainer),
        _unless_drawn_as_nan(trainer),
    ):
        pictures = _draw(trainer, prompts)
        for seed, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True), first_seed):
            path = preview_file(folder, step, seed - first_seed)
            text = _picture_text(trainer, prompt, seed, picture)
            what = f"A preview of step {step}"
            if not trainer.room.write(what, partial(save_png, picture, path, text)):
                continue
            paths.append(path)
            emit(SampleSaved(str(path), prompt, seed, step))
            emit(PhaseProgress(PREVIEWS_PHASE, len(paths), len(prompts)))
    return paths


@contextmanager
def _unless_drawn_as_nan(trainer: Trainer) -> Iterator[None]:
    """Tell of a picture that holds NaN, and go on: it is not what is learnt from."""
    try:
        yield
    except NonFiniteError as error:
        trainer.context.emit(
            Notice(WARNING, f"A preview of step {trainer.progress.step} was not drawn: {error}")
        )


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
        try:
            for module in resting:
                module.to(device)
            yield
        finally:
            for module in resting:
                module.to("cpu")


def _remember_progress(trainer: Trainer) -> None:
    """Note in the model's `model.json` how far it is trained and by which run."""

    def note(info: ModelInfo) -> None:
        info.steps, info.epochs = trainer.progress.step, trainer.progress.epoch
        info.last_run = trainer.context.run_id

    trainer.model.change_info(note)


def _memory_mb(device: torch.device) -> float:
    """Return the most memory that was in use on the GPU, or what the process uses on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    resident: int = psutil.Process().memory_info().rss
    return resident / 2**20
