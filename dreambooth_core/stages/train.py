"""Training, from the first picture to the last checkpoint. Read it from top to bottom.

`run` is the story: `prepare`, the loop `train`, and `finish`. The loss is in `training_step.py`,
the arithmetic of steps and epochs in `training_plan.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.data.dataset import TrainingSet
from dreambooth_core.data.examples import Example
from dreambooth_core.data.loading import Batch, LatentSource
from dreambooth_core.families import FAMILIES, load_components
from dreambooth_core.families.base import Components
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import Notice, PhaseStarted, PlanMade, Resumed
from dreambooth_core.job.memory_errors import during
from dreambooth_core.optim.build import set_learning_rates
from dreambooth_core.optim.lr import lr_factor
from dreambooth_core.optim.schedule_free import learnt_weights, retire
from dreambooth_core.stages.class_images import ensure_class_images
from dreambooth_core.stages.dataset_setup import cache_latents
from dreambooth_core.stages.device import (
    apply_precision,
    place,
    require_support,
    resolve_device,
)
from dreambooth_core.stages.gradients import GradientLimits
from dreambooth_core.stages.health import Health
from dreambooth_core.stages.lora_start import Start, begin_with, lora_to_start_from
from dreambooth_core.stages.lora_training import require_same_adapters
from dreambooth_core.stages.network_setup import first_norms, keep_norms, prepare_networks
from dreambooth_core.stages.noise_setup import check_schedule, training_schedule
from dreambooth_core.stages.optimizer_setup import require_optimizer
from dreambooth_core.stages.out_of_memory import finished_steps_kept
from dreambooth_core.stages.pausing import pause
from dreambooth_core.stages.plan import refuse_or_warn
from dreambooth_core.stages.prompt_encoder import make_prompt_encoder
from dreambooth_core.stages.recovery import watched, with_retreats
from dreambooth_core.stages.requests import Requests, StopRequested
from dreambooth_core.stages.saved_states import Progress
from dreambooth_core.stages.session import Session
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
    TrainingPlan,
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
    prepare_prompts,
    prepare_rounding_optimizer,
    step_batches,
)
from dreambooth_core.stages.training_state import TrainingState, load_newest
from dreambooth_core.stages.training_step import (
    Objective,
    StepResult,
    non_finite,
    train_step,
    weighed_in_epoch,
)


def run(config: TrainConfig, context: RunContext) -> dict[str, Any]:
    """Train a model as `config` says and return a summary; ends early when told to."""
    requests, session = Requests(context.commands), Session()
    require_support(config.precision, resolve_device(config.precision.device))

    def attempt() -> dict[str, Any]:
        trainer = prepare(config, context, requests, session=session)
        keep = partial(save_state_if_new, trainer)
        with finished_steps_kept(trainer, keep), watched(trainer, keep):
            return finish(trainer, train(trainer))

    try:
        refuse_or_warn(config, context, requests)
        return with_retreats(config, context, session, attempt)
    except StopRequested:
        steps = session.step
        return {"model": config.model, "run_id": context.run_id, "steps": steps, "stopped": True}


def find_pictures(
    config: TrainConfig,
    context: RunContext,
    components: Components,
    instances: Sequence[Example],
    requests: Requests,
) -> tuple[TrainingSet, LatentSource]:
    """Return a run's pictures and latents; the untouched model paints the class images it lacks."""
    quantum = FAMILIES[components.family].quantum(components)
    class_images = ensure_class_images(config, context, components, requests)
    if class_images.stopped:
        raise StopRequested
    training_set = arrange(config, instances, find_class_images(config, quantum, class_images))
    return training_set, cache_latents(config, context, components, training_set, requests)


def prepare(
    config: TrainConfig,
    context: RunContext,
    requests: Requests,
    find: Callable[..., tuple[TrainingSet, LatentSource]] = find_pictures,
    session: Session | None = None,
) -> Trainer:
    """Put a run together up to its first step; raises StopRequested if told to end before it.

    `find` takes what `find_pictures` does. A session that went back tells where to go on from.
    """
    session = session or Session()
    # -- load
    accelerator = make_accelerator(config)
    device = accelerator.device
    require_optimizer(config, device)
    state = find_state(config, context, session)
    components = load_components(context.workspace.model(config.model))
    apply_precision(config.precision, components)
    check_schedule(config.loss, components)
    place(components, device)
    start = Start({}) if state else lora_to_start_from(config, context, components)

    # -- plan
    quantum = FAMILIES[components.family].quantum(components)
    instances = find_instances(config, quantum)
    plan = session.begin(plan_run(config, instances, state.progress if state else Progress()))
    context.emit(PlanMade(plan_lines(config, plan, context.workspace)))

    # -- pictures: class images, dataset and cache
    training_set, latents = find(config, context, components, instances, requests)

    # -- networks, optimizer, EMA, with what the state remembers of them
    norms = first_norms(config, components)
    parts = prepare_networks(config, components, plan, state, device)
    begin_with(start, parts)
    optimizer = prepare_rounding_optimizer(config, accelerator, parts, state, plan.start.step)
    ema = prepare_ema(config, parts, state)
    encode = make_prompt_encoder(config, components)
    prepare_prompts(accelerator, encode, parts, components, training_set)
    alphas_cumprod = training_schedule(config.loss, components).to(device)
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
        norms=norms,
        progress=plan.start,
        requests=requests,
        session=session,
        health=Health.of(parts),
    )


def plan_run(config: TrainConfig, instances: Sequence[Example], start: Progress) -> TrainingPlan:
    """Return how long a run on these instance images is."""
    epoch = arrange(config, instances)
    return make_plan(
        config,
        instance_images=len(instances),
        class_images=count_class_images(config),
        shown_images=epoch.shown_per_epoch,
        steps_per_epoch=epoch.steps_per_epoch,
        start=start,
    )


def train(trainer: Trainer) -> bool:
    """Step to the end of the plan and return True, or False if it is not reached by this run."""
    trainer.session.start_clock()
    trainer.context.emit(PhaseStarted("training", trainer.plan.total_steps, "steps"))
    while trainer.progress.step < trainer.plan.last_step:
        if answer_commands(trainer):
            return False
        take_step(trainer)
        write_what_is_due(trainer)
        pause_if_due(trainer)
    return trainer.plan.last_step == trainer.plan.total_steps


def take_step(trainer: Trainer) -> None:
    """Make the next step of the plan and report it; nothing is written."""
    freeze_text_encoder_if_due(trainer)
    began, epoch = time.monotonic(), trainer.progress.epoch
    batches = next_batches(trainer)
    factor = trainer.session.retreats.factor * learning_rate_factor(trainer)
    rates = set_learning_rates(trainer.optimizer, factor)
    if not all(map(math.isfinite, rates.values())):
        raise non_finite("learning rate", trainer.progress.step)
    result = make_step(trainer, batches)
    with during("", changes_weights=True):
        if trainer.norms is not None:
            keep_norms(trainer.norms, trainer.components.unet)
        trainer.progress = trainer.plan.after(trainer.progress)
        if trainer.ema is not None:
            with learnt_weights(trainer.optimizer):
                trainer.ema.update(trainer.progress.step)
    report_step(trainer, epoch, result, rates, time.monotonic() - began)
    step, loss, norm = trainer.progress.step, result.loss, result.grad_norm
    for warning in trainer.health.after_step(step, loss, rates, norm):
        trainer.context.warn(warning)


def finish(trainer: Trainer, finished: bool) -> dict[str, Any]:
    """Save what the run ends with and return its summary."""
    saving, step = trainer.config.saving, trainer.progress.step
    if step > trainer.session.first_step:
        wanted = saving.save_at_end if finished else saving.save_on_stop
        finished = save_state_if_new(trainer, last=True) and finished
        if wanted and step not in trainer.checkpoints:
            finished = write_checkpoint_file(trainer, last=True) and finished
    summary = summary_of(trainer)
    return summary if finished else {**summary, "stopped": True}


def summary_of(trainer: Trainer) -> dict[str, Any]:
    """Return what a run came to, after a warning of each network that has not changed."""
    step, still = trainer.progress.step, trainer.health.stillness()
    for sentence in still:
        trainer.context.warn(sentence)
    return {
        "model": trainer.config.model,
        "run_id": trainer.context.run_id,
        "steps": step,
        "epochs": trainer.progress.epoch,
        "total_steps": trainer.plan.total_steps,
        "loss": trainer.last_loss,
        "loras" if trainer.config.lora.enabled else "checkpoints": [
            str(path) for path in (*trainer.session.left_behind, *trainer.checkpoints.values())
        ],
        "state": str(trainer.states[step]) if step in trainer.states else "",
        "seconds": round(time.monotonic() - trainer.session.began, 3),
        **({"unchanged": still} if still else {}),
    }


def save_state_if_new(trainer: Trainer, *, last: bool = False) -> bool:
    """Write the state after the last step unless it is written or was gone on from.

    Returns False if there is no room for it, and the run goes on or ends without.
    """
    step = trainer.progress.step
    is_new = step > trainer.plan.start.step and step not in trainer.states
    return write_state(trainer, last=last) if is_new else True


def find_state(config: TrainConfig, context: RunContext, session: Session) -> TrainingState | None:
    """Return the state that the run is to go on from, if any: the newest intact one."""
    if session.went_back:
        return session.take_state()
    if not config.resume:
        return None
    path, state = load_newest(context.workspace.model(config.model), tell=context.warn)
    require_same_adapters(config, state.settings)
    context.emit(Resumed(path.parent.name, state.progress.step))
    context.emit(Notice("info", f"Goes on from {path}, step {state.progress.step}."))
    changed = changed_settings(config, state)
    if changed:
        context.emit(changed)
    session.retreats = state.retreats.under(config, state.settings)
    if session.retreats.steps:
        context.emit(Notice("info", session.retreats.in_words()))
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
    retire(trainer.optimizer.optimizer, trained)
    for name in trained:
        trainer.parts[name].requires_grad_(False)
        encoders[name].eval()
    with trainer.accelerator.autocast():
        trainer.objective.encode.freeze(all_prompts(trainer.training_set))


def next_batches(trainer: Trainer) -> list[Batch]:
    """Return the next step's micro-batches, their latents from the cache."""
    step = next(trainer.upcoming)
    trainer.current = step.samples
    batches = (trainer.latents.batch(part) for part in step.micro_batches)
    return [weighed_in_epoch(batch, trainer.config.loss, step.epoch) for batch in batches]


def learning_rate_factor(trainer: Trainer) -> float:
    """Return what the schedule multiplies the next step's learning rates by."""
    settings = trainer.config.learning_rate
    return lr_factor(
        settings.schedule,
        trainer.progress.step,
        trainer.plan.total_steps,
        warmup_steps=settings.warmup_steps,
        min_factor=settings.min_factor,
        cycles=settings.cycles,
        power=settings.power,
        decay_share=settings.decay_share,
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
        limits=GradientLimits.of(trainer.config),
        set_to_none=trainer.config.batch.set_to_none,
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


def pause_if_due(trainer: Trainer) -> None:
    """Rest after the epochs that the settings say; commands are answered, a stop ends the rest."""
    intervals, progress = trainer.config.intervals, trainer.progress
    every, is_over = intervals.pause_every_epochs, progress.step >= trainer.plan.last_step
    if every and not is_over and progress.position == 0 and progress.epoch % every == 0:
        pause(intervals.pause_seconds, lambda: answer_commands(trainer), trainer.context.emit)
