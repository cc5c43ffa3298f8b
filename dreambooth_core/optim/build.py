"""From named modules and the optimizer section of the configuration to a torch optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lion_pytorch import Lion
from torch import nn

if TYPE_CHECKING:
    from dreambooth_core.config.schema import OptimizerSection

ParameterGroup = dict[str, Any]


def parameter_groups(
    modules: Mapping[str, nn.Module],
    learning_rates: Mapping[str, float],
    weight_decays: Mapping[str, float],
) -> list[ParameterGroup]:
    """Return one group per module that has trainable parameters, in the order of `modules`.

    A group holds "name", "params", "lr", "base_lr" (the rate a schedule multiplies) and
    "weight_decay". A parameter that two modules share goes to the first of them.
    """
    groups: list[ParameterGroup] = []
    seen: set[int] = set()
    for name, module in modules.items():
        trainable = [p for p in module.parameters() if p.requires_grad and id(p) not in seen]
        seen.update(id(p) for p in trainable)
        if trainable:
            rate = learning_rates[name]
            group = {"name": name, "params": trainable, "lr": rate, "base_lr": rate}
            groups.append({**group, "weight_decay": weight_decays[name]})
    return groups


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Set each group's rate to its base rate times `factor` and return the rates by group name."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


def _lion(section: OptimizerSection, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
    """Return Lion: u = sign(b1 m + (1-b1) g), p -= lr (u + wd p), m = b2 m + (1-b2) g.

    Source: Chen et al. 2023 (arXiv 2302.06675), program 1.
    """
    lion: torch.optim.Optimizer = Lion(list(groups), betas=(section.beta1, section.beta2))
    return lion


def _adamw(section: OptimizerSection, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
    """Return AdamW, Loshchilov & Hutter 2019 (arXiv 1711.05101); fused where all is on CUDA."""
    on_cuda = all(p.is_cuda for group in groups for p in group["params"])
    implementation = {"fused": True} if on_cuda else {"foreach": True}
    betas = (section.beta1, section.beta2)
    return torch.optim.AdamW(list(groups), betas=betas, eps=section.epsilon, **implementation)


OPTIMIZERS: dict[
    str, Callable[[OptimizerSection, Sequence[ParameterGroup]], torch.optim.Optimizer]
] = {"lion": _lion, "adamw": _adamw}


def build_optimizer(
    section: OptimizerSection, groups: Sequence[ParameterGroup]
) -> torch.optim.Optimizer:
    """Return the optimizer that `section.name` names, over `groups` from `parameter_groups`."""
    if section.name not in OPTIMIZERS:
        raise ValueError(f"optimizer is {section.name!r}; known are {', '.join(OPTIMIZERS)}")
    if not groups:
        raise ValueError("nothing to train: no module has a trainable parameter")
    return OPTIMIZERS[section.name](section, groups)
