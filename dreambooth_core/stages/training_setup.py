"""What a training run is made of, put together before its first step or from a saved state."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.serialize import to_dict
from dreambooth_core.data.dataset import StepBatch, TrainingSet
from dreambooth_core.data.loading import LatentSource
from dreambooth_core.errors import CheckpointError, ConfigError, Problem
from dreambooth_core.families.base import Components
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import Notice
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.optim.build import build_optimizer, parameter_groups
from dreambooth_core.optim.ema import ExponentialMovingAverage
from dreambooth_core.stages.device import resolve_device
from dreambooth_core.stages.lora_training import add_adapters
from dreambooth_core.stages.prompt_encoder import PromptEncoder
from dreambooth_core.stages.requests import Requests
from dreambooth_core.stages.saved_states import Progress
from dreambooth_core.stages.training_pictures import all_prompts
from dreambooth_core.stages.training_plan import TrainingPlan
from dreambooth_core.stages.training_state import Tensors, TrainingState
from dreambooth_core.stages.training_step import Objective

SPEED_WINDOW_STEPS = 50


@dataclass
class Trainer:
    """A run in progress. `parts` are the trained networks, in the order of their groups."""

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
    progress: Progress
    requests: Requests
    started: float = field(default_factory=time.monotonic)
    step_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=SPEED_WINDOW_STEPS))
    checkpoints: dict[int, Path] = field(default_factory=dict)
    states: dict[int, Path] = field(default_factory=dict)
    last_loss: float = 0.0

    @property
    def components(self) -> Components:
        """The model being trained."""
        return self.objective.components

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
    """Return Accelerate's handle on the device and precision; raises ConfigError, InputError."""
    device, precision = resolve_device(config.precision.device), config.precision.mixed_precision
    if precision == "fp16" and device.type == "cpu":
        problem = "is fp16, but training runs on the cpu here."
        raise ConfigError([Problem("precision.mixed_precision", problem, "Choose no or bf16.")])
    if device.index is not None:
        torch.cuda.set_device(device)
    return Accelerator(cpu=device.type == "cpu", mixed_precision=precision)


def trained_parts(
    config: TrainConfig, components: Components, plan: TrainingPlan, state: TrainingState | None
) -> dict[str, nn.Module]:
    """Return the networks whose weights differ from the base's during this run or before it."""
    encoders = dict.fromkeys(components.text_encoders(), plan.text_encoder_steps > 0)
    learn = {"unet": config.unet.train, **encoders}
    learnt = state.weights if state else {}
    modules = components.modules()
    return {name: modules[name] for name in learn if learn[name] or name in learnt}


def prepare_networks(
    config: TrainConfig,
    components: Components,
    plan: TrainingPlan,
    state: TrainingState | None,
    device: torch.device,
) -> dict[str, nn.Module]:
    """Put the saved weights in, mark what learns from here on, and return the trained parts."""
    parts = trained_parts(config, components, plan, state)
    if config.lora.enabled:
        parts = dict(add_adapters(config.lora, config.seed, components, parts))
    for name, weights in (state.weights if state else {}).items():
        _put_weights(parts[name], weights, name)
    encoders = components.text_encoders()
    learning = {
        "unet": config.unet.train,
        **dict.fromkeys(encoders, plan.start.step < plan.text_encoder_steps),
    }
    for name, module in components.modules().items():
        module.requires_grad_(False)
        module.train(learning.get(name, False))
    for name, part in parts.items():
        part.requires_grad_(learning[name])
    if config.batch.gradient_checkpointing:
        _checkpoint_gradients(components, learning)
    for module in (components.unet, *encoders.values()):
        module.to(device)
    components.vae.to(device if components.paints_into_pictures() else "cpu")
    return parts


def _checkpoint_gradients(components: Components, learning: Mapping[str, bool]) -> None:
    components.unet.enable_gradient_checkpointing()
    for name, encoder in components.text_encoders().items():
        if learning[name]:
            encoder.gradient_checkpointing_enable({"use_reentrant": False})


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
        if name not in parts:  # the EMA goes on reading a text encoder that has learnt
            encoder.to("cpu")


def prepare_optimizer(
    config: TrainConfig,
    accelerator: Accelerator,
    parts: Mapping[str, nn.Module],
    state: TrainingState | None,
) -> AcceleratedOptimizer:
    """Return the optimizer over what learns, with its memory of `state` and its loss scale."""
    rates, decay = learning_rates(config, parts), config.optimizer
    decays = {
        name: decay.weight_decay if name == "unet" else decay.text_encoder_weight_decay
        for name in parts
    }
    optimizer = build_optimizer(config.optimizer, parameter_groups(parts, rates, decays))
    if state and state.settings["optimizer"]["name"] == config.optimizer.name:
        restore_optimizer(optimizer, state.optimizer)
    if state and state.loss_scaler and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(state.loss_scaler)
    return accelerator.prepare_optimizer(optimizer)


def learning_rates(config: TrainConfig, parts: Iterable[str]) -> dict[str, float]:
    """Return the learning rate of each part: of the model's weights, or of the LoRA's."""
    rates, lora = config.learning_rate, config.lora
    unet, text_encoder = rates.unet, rates.text_encoder
    if lora.enabled:
        unet, text_encoder = lora.unet_learning_rate, lora.text_encoder_learning_rate
    return {part: unet if part == "unet" else text_encoder for part in parts}


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
    )
    if state:
        ema.load_state_dict({**ema.state_dict(), **state.ema})
    return ema


def optimizer_memory(optimizer: torch.optim.Optimizer) -> dict[str, list[dict[str, Any]]]:
    """Return what an optimizer remembers: by group name, one entry for each parameter in order.

    Rates, betas and decays are left out: they are settings, and a resumed run takes today's.
    """
    full = optimizer.state_dict()
    return {
        group["name"]: [full["state"].get(index, {}) for index in group["params"]]
        for group in full["param_groups"]
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, memory: Mapping[str, list[dict[str, Any]]]
) -> None:
    """Give the groups their memory back; a group that `memory` does not know begins without."""
    full = optimizer.state_dict()
    known = [group for group in full["param_groups"] if group["name"] in memory]
    full["state"] = {
        index: remembered
        for group in known
        for index, remembered in zip(group["params"], memory[group["name"]], strict=True)
        if remembered
    }
    optimizer.load_state_dict(full)


def step_batches(training_set: TrainingSet, start: Progress) -> Iterator[StepBatch]:
    """Yield the batches of every step from `start` on, without end."""
    epoch, position = start.epoch, start.position
    while True:
        yield from training_set.epoch_batches(epoch)[position:]
        epoch, position = epoch + 1, 0


def changed_settings(config: TrainConfig, state: TrainingState) -> Notice | None:
    """Return a notice that names the settings that are not those of the state; None if none are."""
    before, now = _flat(state.settings), _flat(to_dict(config))
    names = [name for name in before | now if name != "resume"]
    changed = [
        f"{name} {before.get(name)!r} to {now.get(name)!r}"
        for name in names
        if before.get(name) != now.get(name)
    ]
    if not changed:
        return None
    lost = state.settings["optimizer"]["name"] != config.optimizer.name
    memory = " The new optimizer begins without memory." if lost else ""
    return Notice("warning", f"Changed since the state was saved: {', '.join(changed)}.{memory}")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
        flat.update(inner)
    return flat


@torch.no_grad()
def _put_weights(module: nn.Module, weights: Mapping[str, torch.Tensor], name: str) -> None:
    parameters = dict(module.named_parameters())
    if parameters.keys() != weights.keys() or any(
        parameters[key].shape != tensor.shape for key, tensor in weights.items()
    ):
        raise CheckpointError(
            f"The training state's {name} is of another model than {name} in the model's folder.",
            remedy="Resume the model that the state was saved from, or start a new run.",
        )
    for key, tensor in weights.items():
        parameters[key].copy_(tensor)
