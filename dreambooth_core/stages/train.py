"""Training, from the first picture to the last checkpoint. Read it from top to bottom.

`run` is the story: `prepare`, the loop `train`, and `finish`. The loss is in `training_step.py`,
the arithmetic of steps and epochs in `training_plan.py`.
"""

from __future__ import annotations

import time
from typing import Any

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.data.loading import Batch
from dreambooth_core.families import FAMILIES, load_components
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import Notice, PhaseStarted, PlanMade
from dreambooth_core.optim.build import set_learning_rates
from dreambooth_core.optim.lr import lr_factor
from dreambooth_core.stages.class_images import ensure_class_images
from dreambooth_core.stages.dataset_setup import cache_latents
from dreambooth_core.stages.device import place
from dreambooth_core.stages.lora_training import require_same_adapters
from dreambooth_core.stages.prompt_encoder import PromptEncoder
from dreambooth_core.stages.requests import Requests, StopRequested
from dreambooth_core.stages.saved_states import Progress, state_to_resume
from dreambooth_core.stages.training_output import (
    report_step,
    write_checkpoint_file,
    write_previews,
    write_state,
)
from dreambooth_core.stages.training_pictures import (
    all_prompts,
    arrange,
    count_class_images,
    find_class_images,
    find_instances,
)
from dreambooth_core.stages.training_plan import (
    make_plan,
    plan_lines,
    preview_prompts,
    what_is_due,
)
from dreambooth_core.stages.training_setup import (
    Trainer,
    changed_settings,
    make_accelerator,
    prepare_ema,
    prepare_networks,
    prepare_optimizer,
    prepare_prompts,
    step_batches,
)
from dreambooth_core.stages.training_state import TrainingState, load_state
from dreambooth_core.stages.training_step import Objective, StepResult, train_step


def run(config: TrainConfig, context: RunContext) -> dict[str, Any]:
    """Train a model as `config` says and return a summary; ends early when told to."""
    try:
        trainer = prepare(config, context, Requests(context.commands))
    except StopRequested:
        return {"model": config.model, "run_id": context.run_id, "steps": 0, "stopped": True}
    finished = train(trainer)
    return finish(trainer, finished)


def prepare(config: TrainConfig, context: RunContext, requests: Requests) -> Trainer:
    """Put a run together up to its first step; raises StopRequested if told to end before it."""
    # -- load
    accelerator = make_accelerator(config)
    device = accelerator.device
    state = find_state(config, context)
    components = load_components(context.workspace.model(config.model))
    place(components, device)

    # -- plan
    quantum = FAMILIES[components.family].quantum(components)
    instances = find_instances(config, quantum)
    plan = make_plan(
        config,
        instance_images=len(instances),
        class_images=count_class_images(config),
        steps_per_epoch=arrange(config, instances).steps_per_epoch,
        start=state.progress if state else Progress(),
    )
    context.emit(PlanMade(plan_lines(config, plan, context.workspace)))

    # -- class images, painted by the untouched model where they are short
    class_images = ensure_class_images(config, context, components)
    if class_images.stopped:
        raise StopRequested

    # -- dataset and cache
    classes = find_class_images(config, quantum, class_images)
    training_set = arrange(config, instances, classes)
    latents = cache_latents(config, context, components, training_set, requests)

    # -- networks, optimizer, EMA, with what the state remembers of them
    parts = prepare_networks(config, components, plan, state, device)
    optimizer = prepare_optimizer(config, accelerator, parts, state)
    ema = prepare_ema(config, parts, state)
    encode = PromptEncoder(components, config.text_encoder.clip_skip)
    prepare_prompts(accelerator, encode, parts, components, training_set)
    alphas_cumprod = components.noise_scheduler.alphas_cumprod.to(device)
    return Trainer(
        config=config,
        context=context,
        accelerator=accelerator,
        objective=Objective(components, encode, alphas_cumprod, config.loss, device),
        parts=parts,
        training_set=training_set,
        latents=latents,
        upcoming=step_batches(training_set, plan.start),
        plan=plan,
        optimizer=optimizer,
        ema=ema,
        progress=plan.start,
        requests=requests,
    )


def train(trainer: Trainer) -> bool:
    """Step to the end of the plan and return True, or False if a command ended it before."""
    trainer.context.emit(PhaseStarted("training", trainer.plan.total_steps, "steps"))
    while trainer.progress.step < trainer.plan.total_steps:
        if answer_commands(trainer):
            return False
        freeze_text_encoder_if_due(trainer)
        began, epoch = time.monotonic(), trainer.progress.epoch
        batches = next_batches(trainer)
        rates = set_learning_rates(trainer.optimizer, learning_rate_factor(trainer))
        result = make_step(trainer, batches)
        trainer.progress = trainer.plan.after(trainer.progress)
        if trainer.ema is not None:
            trainer.ema.update(trainer.progress.step)
        report_step(trainer, epoch, result, rates, time.monotonic() - began)
        write_what_is_due(trainer)
    return True


def finish(trainer: Trainer, finished: bool) -> dict[str, Any]:
    """Save what the run ends with and return its summary."""
    saving, step = trainer.config.saving, trainer.progress.step
    if step > trainer.plan.start.step:
        if step not in trainer.states:
            write_state(trainer)
        wanted = saving.save_at_end if finished else saving.save_on_stop
        if wanted and step not in trainer.checkpoints:
            write_checkpoint_file(trainer)
    summary: dict[str, Any] = {
        "model": trainer.config.model,
        "run_id": trainer.context.run_id,
        "steps": step,
        "epochs": trainer.progress.epoch,
        "total_steps": trainer.plan.total_steps,
        "loss": trainer.last_loss,
        "loras" if trainer.config.lora.enabled else "checkpoints": [
            str(path) for path in trainer.checkpoints.values()
        ],
        "state": str(trainer.states[step]) if step in trainer.states else "",
        "seconds": round(time.monotonic() - trainer.started, 3),
    }
    return summary if finished else {**summary, "stopped": True}


def find_state(config: TrainConfig, context: RunContext) -> TrainingState | None:
    """Return the newest intact state if the run is to go on from it."""
    if not config.resume:
        return None
    path = state_to_resume(context.workspace.model(config.model))
    state = load_state(path)
    require_same_adapters(config, state.settings)
    context.emit(Notice("info", f"Goes on from {path}, step {state.progress.step}."))
    changed = changed_settings(config, state)
    if changed:
        context.emit(changed)
    return state


def answer_commands(trainer: Trainer) -> bool:
    """Do what was asked since the last step; return whether the run is to end here."""
    requests, progress = trainer.requests, trainer.progress
    requests.look()
    if requests.take("sample"):
        sample_now(trainer)
    if requests.take("save") and progress.step not in trainer.checkpoints:
        write_checkpoint_file(trainer)
    epoch_ended = progress.position == 0 and progress.step > trainer.plan.start.step
    return requests.wants("stop") or (requests.wants("stop_after_epoch") and epoch_ended)


def sample_now(trainer: Trainer) -> None:
    """Draw the previews that were asked for, or say why there are none."""
    if preview_prompts(trainer.config):
        write_previews(trainer)
    else:
        trainer.context.emit(Notice("warning", "There are no preview prompts to draw."))


def freeze_text_encoder_if_due(trainer: Trainer) -> None:
    """End the text encoders' training after their share: out of the optimizer, prompts cached."""
    encoders = trainer.components.text_encoders()
    trained = [name for name in encoders if name in trainer.parts]
    due = trainer.progress.step == trainer.plan.text_encoder_steps
    if not trained or not due or trainer.plan.start == trainer.progress:
        return
    optimizer = trainer.optimizer.optimizer
    for group in [g for g in optimizer.param_groups if g["name"] in trained]:
        optimizer.param_groups.remove(group)
        for parameter in group["params"]:
            optimizer.state.pop(parameter, None)
    for name in trained:
        trainer.parts[name].requires_grad_(False)
        encoders[name].eval()
    with trainer.accelerator.autocast():
        trainer.objective.encode.freeze(all_prompts(trainer.training_set))


def next_batches(trainer: Trainer) -> list[Batch]:
    """Return the next step's micro-batches, their latents from the cache."""
    return [trainer.latents.batch(part) for part in next(trainer.upcoming).micro_batches]


def learning_rate_factor(trainer: Trainer) -> float:
    """Return what the next step's learning rates are multiplied by."""
    settings = trainer.config.learning_rate
    return lr_factor(
        settings.schedule,
        trainer.progress.step,
        trainer.plan.total_steps,
        warmup_steps=settings.warmup_steps,
        min_factor=settings.min_factor,
        cycles=settings.cycles,
        power=settings.power,
    )


def make_step(trainer: Trainer, batches: list[Batch]) -> StepResult:
    """Lower the loss of the batches by one update of the weights."""
    return train_step(
        trainer.accelerator,
        trainer.optimizer,
        trainer.objective,
        batches,
        seed=trainer.config.seed,
        step=trainer.progress.step,
        max_grad_norm=trainer.config.batch.max_grad_norm,
    )


def write_what_is_due(trainer: Trainer) -> None:
    """Write the previews, checkpoint and state that the intervals ask for after this step."""
    due = what_is_due(trainer.config, trainer.progress)
    if due.preview:
        write_previews(trainer)
    if due.checkpoint:
        write_checkpoint_file(trainer)
    if due.state:
        write_state(trainer)
