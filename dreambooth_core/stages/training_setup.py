"""What a training run is made of, put together before its first step or from a saved state."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.serialize import from_dict, to_dict
from dreambooth_core.data.dataset import Sample, StepBatch, TrainingSet
from dreambooth_core.data.loading import LatentSource
from dreambooth_core.diffusion.noise import stream
from dreambooth_core.families.base import Components
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import Notice
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.optim.build import looks_at_all_weights
from dreambooth_core.optim.ema import ExponentialMovingAverage
from dreambooth_core.optim.rounding import StochasticRounding, taken_for_fp32
from dreambooth_core.optim.spectral import SpectralNorms
from dreambooth_core.stages.device import resolve_device
from dreambooth_core.stages.full_disk import Room
from dreambooth_core.stages.health import Health
from dreambooth_core.stages.optimizer_setup import begins_anew, prepare_optimizer
from dreambooth_core.stages.prompt_encoder import PromptEncoder
from dreambooth_core.stages.requests import Requests
from dreambooth_core.stages.saved_states import Progress
from dreambooth_core.stages.session import Session
from dreambooth_core.stages.training_pictures import all_prompts
from dreambooth_core.stages.training_plan import TrainingPlan
from dreambooth_core.stages.training_state import Tensors, TrainingState
from dreambooth_core.stages.training_step import Objective

SPEED_WINDOW_STEPS = 50


@dataclass
class Trainer:
    """A run in progress. `parts` are the trained networks, in the order of their groups.

    `current` are the examples of the step that was begun last.
    """

    config: TrainConfig
    context: RunContext
    accelerator: Accelerator
    objective: Objective
    parts: dict[str, nn.Module]
    training_set: TrainingSet
    latents: LatentSource
    upcoming: Iterator[StepBatch]
    plan: TrainingPlan
    optimizer: AcceleratedOptimizer
    ema: ExponentialMovingAverage | None
    norms: SpectralNorms | None
    progress: Progress
    requests: Requests
    session: Session
    health: Health
    current: list[Sample] = field(default_factory=list)
    step_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=SPEED_WINDOW_STEPS))
    last_loss: float = 0.0

    @property
    def components(self) -> Components:
        """The model being trained."""
        return self.objective.components

    @property
    def checkpoints(self) -> dict[int, Path]:
        """The checkpoints that the session has written, by step."""
        return self.session.checkpoints

    @property
    def states(self) -> dict[int, Path]:
        """The training states that the session has written, by step."""
        return self.session.states

    @cached_property
    def room(self) -> Room:
        """Writes the run's files, and knows what to do when a disk is full."""
        return Room(self.config.saving.on_full_disk, self.context.emit, self.requests)

    @property
    def model(self) -> ModelFolder:
        """The model's folder."""
        return self.context.workspace.model(self.config.model)

    def live_weights(self) -> dict[str, Tensors]:
        """Return the trained weights as they are now, by component; not copies."""
        return {
            part: {key: p.detach() for key, p in module.named_parameters()}
            for part, module in self.parts.items()
        }


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Return Accelerate's handle on the device and precision; raises InputError."""
    device, precision = resolve_device(config.precision.device), config.precision.mixed_precision
    if device.index is not None:
        torch.cuda.set_device(device)
    return Accelerator(cpu=device.type == "cpu", mixed_precision=precision)


def prepare_prompts(
    accelerator: Accelerator,
    encode: PromptEncoder,
    parts: Mapping[str, nn.Module],
    components: Components,
    training_set: TrainingSet,
) -> None:
    """Encode all prompts now if the text encoders do not learn any more."""
    encoders = components.text_encoders()
    if any(p.requires_grad for encoder in encoders.values() for p in encoder.parameters()):
        return
    with accelerator.autocast():
        encode.freeze(all_prompts(training_set))
    for name, encoder in encoders.items():
        if name not in parts and encode.remembers:  # the EMA goes on reading one that has learnt
            encoder.to("cpu")


def prepare_rounding_optimizer(
    config: TrainConfig,
    accelerator: Accelerator,
    parts: Mapping[str, nn.Module],
    state: TrainingState | None,
    first_step: int,
) -> AcceleratedOptimizer:
    """Return the optimizer over what learns; weights in bf16 are rounded by chance after steps."""
    parameters = [p for part in parts.values() for p in part.parameters()]
    with taken_for_fp32(parameters):  # an optimizer's memory of fp32 weights is fp32
        optimizer = prepare_optimizer(config, accelerator, parts, state)
    if any(p.dtype == torch.bfloat16 for p in parameters):

        def generator_of(step: int) -> torch.Generator:
            return stream(config.seed, "rounding", step, accelerator.device)

        optimizer.optimizer = StochasticRounding(
            optimizer.optimizer,
            generator_of,
            first_step,
            all_at_once=looks_at_all_weights(config.optimizer),
        )
    return optimizer


def prepare_ema(
    config: TrainConfig, parts: Mapping[str, nn.Module], state: TrainingState | None
) -> ExponentialMovingAverage | None:
    """Return the average of the trained weights, with the values of `state` where it has them."""
    if not config.ema.enabled:
        return None
    ema = ExponentialMovingAverage(
        {
            f"{part}.{key}": p
            for part, module in parts.items()
            for key, p in module.named_parameters()
        },
        config.ema.decay,
        every_steps=config.ema.every_steps,
        device="cpu" if config.ema.device == "cpu" else None,
    )
    if state:
        ema.load_state_dict({**ema.state_dict(), **state.ema})
    return ema


def step_batches(training_set: TrainingSet, start: Progress) -> Iterator[StepBatch]:
    """Yield the batches of every step from `start` on, without end."""
    epoch, position = start.epoch, start.position
    while True:
        yield from training_set.epoch_batches(epoch)[position:]
        epoch, position = epoch + 1, 0


def changed_settings(config: TrainConfig, state: TrainingState) -> Notice | None:
    """Return a notice that names the settings that are not those of the state; None if none are."""
    known = to_dict(from_dict(TrainConfig, state.settings))  # of older versions too, filled up
    before, now = _flat(known), _flat(to_dict(config))
    names = [name for name in before | now if name != "resume"]
    changed = [
        f"{name} {before.get(name)!r} to {now.get(name)!r}"
        for name in names
        if before.get(name) != now.get(name)
    ]
    if not changed:
        return None
    anew = begins_anew(config, state.settings)
    memory = " The optimizer begins without memory." if anew else ""
    return Notice("warning", f"Changed since the state was saved: {', '.join(changed)}.{memory}")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
        flat.update(inner)
    return flat
