"""The optimizer of a training run: its groups, its rates, and its memory of a saved state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from dreambooth_core.config.schema import TextEncoderSection, TrainConfig, UnetSection
from dreambooth_core.config.sections.optimizer import EIGHT_BIT_OPTIMIZERS
from dreambooth_core.errors import InputError
from dreambooth_core.optim.build import OPTIMIZERS, build_optimizer, parameter_groups
from dreambooth_core.optim.eight_bit import require_eight_bit
from dreambooth_core.optim.schedule_free import is_schedule_free
from dreambooth_core.stages.training_state import TrainingState

Memory = dict[str, list[dict[str, Any]]]

LEARNING = "learning"
"""The weights that learn, beside those that have been learnt and stand in the state's weights."""

WHOLE = ":whole"
"""What the name ends in under which a group's own memory stands."""

GROUP_MEMORY = sorted({name for kind in OPTIMIZERS.values() for name in kind.remembers})


def require_optimizer(config: TrainConfig, device: torch.device) -> None:
    """Raise ConfigError, before any work, if the optimizer cannot run on this machine."""
    if config.optimizer.name in EIGHT_BIT_OPTIMIZERS:
        require_eight_bit(config.optimizer.name, device)


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
    if state and not begins_anew(config, state.settings):
        restore_optimizer(optimizer, state.optimizer)
    if state and state.loss_scaler and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(state.loss_scaler)
    return accelerator.prepare_optimizer(optimizer)


def begins_anew(config: TrainConfig, before: Mapping[str, Any]) -> bool:
    """Return whether an optimizer begins without memory: of another kind, or over other weights.

    `before` are the settings of the state that a run goes on from.
    """
    return any(
        before.get(section, {}).get(name, default) != value
        for section, name, default, value in (
            ("optimizer", "name", "", config.optimizer.name),
            ("unet", "parts", UnetSection.parts, config.unet.parts),
            (
                "text_encoder",
                "freeze_norm_layers",
                TextEncoderSection.freeze_norm_layers,
                config.text_encoder.freeze_norm_layers,
            ),
        )
    )


def learning_rates(config: TrainConfig, parts: Iterable[str]) -> dict[str, float]:
    """Return the learning rate of each part: of the model's weights, or of the LoRA's."""
    rates, lora = config.learning_rate, config.lora
    unet, text_encoder = rates.unet, rates.text_encoder
    if lora.enabled:
        unet, text_encoder = lora.unet_learning_rate, lora.text_encoder_learning_rate
    return {part: unet if part == "unet" else text_encoder for part in parts}


def optimizer_memory(optimizer: torch.optim.Optimizer) -> Memory:
    """Return what an optimizer remembers: by group name, one entry for each parameter in order.

    Rates, betas and decays are left out: they are settings, and a resumed run takes today's. What
    it remembers of a group as a whole, such as its estimate of the rate, has an entry of its own;
    the weights that a schedule-free optimizer trains are among what it remembers of each.
    """
    full = optimizer.state_dict()
    memory: Memory = {}
    for group in full["param_groups"]:
        entries = [dict(full["state"].get(index, {})) for index in group["params"]]
        whole = {name: group[name] for name in GROUP_MEMORY if name in group}
        memory[group["name"]] = entries
        if whole:
            memory[group["name"] + WHOLE] = [whole]
    if is_schedule_free(optimizer):
        for group in optimizer.param_groups:
            for parameter, entry in zip(group["params"], memory[group["name"]], strict=True):
                entry[LEARNING] = parameter.detach().to("cpu", copy=True)
    return memory


def restore_optimizer(optimizer: torch.optim.Optimizer, memory: Memory) -> None:
    """Give the groups their memory back; a group that `memory` does not know begins without.

    Raises InputError if it is of other weights than those that learn now.
    """
    _require_same_weights(optimizer.param_groups, memory)
    full = optimizer.state_dict()
    full["state"] = {
        index: {name: value for name, value in remembered.items() if name != LEARNING}
        for group in full["param_groups"]
        for index, remembered in zip(group["params"], memory.get(group["name"], []), strict=False)
        if remembered
    }
    optimizer.load_state_dict(full)
    for group in optimizer.param_groups:
        if group["name"] in memory:
            _restore_group(optimizer, group, memory)


def _require_same_weights(groups: Sequence[Mapping[str, Any]], memory: Memory) -> None:
    for group in groups:
        learning = len(group["params"])
        remembered = len(memory.get(group["name"], group["params"]))
        if learning != remembered:
            raise InputError(
                f"The training state is of a run that trained {remembered} tensors of the"
                f" {group['name']}; this one trains {learning}.",
                remedy="Train the same parts and resume, or another optimizer, which begins"
                " without memory.",
                field="resume",
            )


@torch.no_grad()
def _restore_group(optimizer: torch.optim.Optimizer, group: dict[str, Any], memory: Memory) -> None:
    """Put back what torch leaves out: the group's own memory, number formats, learning weights."""
    device = group["params"][0].device
    for name, value in memory.get(group["name"] + WHOLE, [{}])[0].items():
        group[name] = value.to(device) if torch.is_tensor(value) else value
    for parameter, entry in zip(group["params"], memory[group["name"]], strict=True):
        if LEARNING in entry:
            parameter.copy_(entry[LEARNING])
        present = optimizer.state.get(parameter, {})
        for name, saved in entry.items():
            if torch.is_tensor(saved) and name in present and present[name].dtype != saved.dtype:
                present[name] = saved.to(present[name].device)
