"""From named modules and the optimizer section of the configuration to a torch optimizer.

Every optimizer is a library's; a package that only one of them needs is imported when it is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lion_pytorch import Lion
from torch import nn

from dreambooth_core.optim import eight_bit

if TYPE_CHECKING:
    from dreambooth_core.config.schema import OptimizerSection

ParameterGroup = dict[str, Any]
Build = Callable[["OptimizerSection", list[ParameterGroup]], Any]

ESTIMATE = "d"
"""The rate that an optimizer has estimated by itself, in each of its groups."""


@dataclass(frozen=True)
class OptimizerKind:
    """How an optimizer is made, and what its groups remember besides their parameters' state."""

    build: Build
    remembers: tuple[str, ...] = ()


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
    """Set each group's rate to its base rate times `factor`; return the next step's rates by name.

    Where an optimizer estimates the rate d by itself, the rate of a step is d times the set one.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return {
        group["name"]: group["lr"] * float(group.get(ESTIMATE, 1.0))
        for group in optimizer.param_groups
    }


def looks_at_all_weights(section: OptimizerSection) -> bool:
    """Return whether a step of this optimizer depends on all weights of a group together."""
    return bool(OPTIMIZERS[section.name].remembers)


def _on_cuda(groups: Sequence[ParameterGroup]) -> bool:
    return all(p.is_cuda for group in groups for p in group["params"])


def _foreach(groups: Sequence[ParameterGroup]) -> bool | None:
    """Return whether to update many tensors at once: as the library likes, but not on a CPU.

    There it gains nothing, and torch 2.1 lacks some of what it needs.
    """
    return None if _on_cuda(groups) else False


def _lion(section: OptimizerSection, groups: list[ParameterGroup]) -> Any:
    """Return Lion: u = sign(b1 m + (1-b1) g), p -= lr (u + wd p), m = b2 m + (1-b2) g.

    Source: Chen et al. 2023 (arXiv 2302.06675), program 1.
    """
    return Lion(groups, betas=(section.beta1, section.beta2))


def _adamw(section: OptimizerSection, groups: list[ParameterGroup]) -> Any:
    """Return AdamW, Loshchilov & Hutter 2019 (arXiv 1711.05101); fused where all is on CUDA."""
    implementation = {"fused": True} if _on_cuda(groups) else {"foreach": True}
    betas = (section.beta1, section.beta2)
    return torch.optim.AdamW(groups, betas=betas, eps=section.epsilon, **implementation)


def _eight_bit(section: OptimizerSection, groups: list[ParameterGroup]) -> Any:
    """Return an optimizer of bitsandbytes, Dettmers et al. 2021 (arXiv 2110.02861).

    Tensors of fewer than 4096 numbers keep a memory of 32 bits.
    """
    name = eight_bit.CLASSES[section.name]
    options = {"eps": section.epsilon} if "Adam" in name else {}
    betas = (section.beta1, section.beta2)
    return getattr(eight_bit.load().optim, name)(groups, betas=betas, **options)


def _adafactor(section: OptimizerSection, groups: list[ParameterGroup]) -> Any:
    """Return Adafactor at a rate that is given, Shazeer & Stern 2018 (arXiv 1804.04235)."""
    from transformers import Adafactor

    options = {"relative_step": False, "warmup_init": False}
    return Adafactor(groups, scale_parameter=section.scale_parameter, **options)


def _prodigy(section: OptimizerSection, groups: list[ParameterGroup]) -> Any:
    """Return Prodigy, Mishchenko & Defazio 2023 (arXiv 2306.06101), with decoupled decay."""
    from prodigyopt import Prodigy

    return Prodigy(
        groups,
        betas=(section.beta1, section.beta2),
        eps=section.epsilon,
        d0=section.d0,
        d_coef=section.d_coef,
        use_bias_correction=section.bias_correction,
        safeguard_warmup=section.safeguard_warmup,
    )


def _dadapt_adam(section: OptimizerSection, groups: list[ParameterGroup]) -> Any:
    """Return Adam with D-Adaptation, Defazio & Mishchenko 2023 (arXiv 2301.07733), algorithm 5."""
    from pytorch_optimizer import DAdaptAdam

    return DAdaptAdam(
        groups,
        betas=(section.beta1, section.beta2),
        eps=section.epsilon,
        d0=section.d0,
        bias_correction=section.bias_correction,
        weight_decouple=True,
        foreach=_foreach(groups),
    )


def _came(section: OptimizerSection, groups: list[ParameterGroup]) -> Any:
    """Return CAME, Luo et al. 2023 (arXiv 2307.02047), algorithm 2, with decoupled decay."""
    from pytorch_optimizer import CAME

    betas = (section.beta1, section.beta2, section.beta3)
    return CAME(groups, betas=betas, foreach=_foreach(groups))


def _adamw_schedule_free(section: OptimizerSection, groups: list[ParameterGroup]) -> Any:
    """Return schedule-free AdamW, Defazio et al. 2024 (arXiv 2405.15682), ready to train."""
    from schedulefree import AdamWScheduleFree

    betas = (section.beta1, section.beta2)
    optimizer = AdamWScheduleFree(groups, betas=betas, eps=section.epsilon)
    optimizer.train()
    return optimizer


def _sgd(section: OptimizerSection, groups: list[ParameterGroup]) -> Any:
    """Return SGD with momentum; its decay is added to the gradient and so gathers momentum too."""
    return torch.optim.SGD(groups, lr=1.0, momentum=section.momentum, foreach=True)


OPTIMIZERS: dict[str, OptimizerKind] = {
    "lion": OptimizerKind(_lion),
    "adamw": OptimizerKind(_adamw),
    **dict.fromkeys(eight_bit.CLASSES, OptimizerKind(_eight_bit)),
    "adafactor": OptimizerKind(_adafactor),
    "prodigy": OptimizerKind(_prodigy, (ESTIMATE, "d_max", "d_numerator", "k")),
    "dadapt_adam": OptimizerKind(_dadapt_adam, (ESTIMATE, "numerator_weighted", "step")),
    "came": OptimizerKind(_came, ("step",)),
    "adamw_schedule_free": OptimizerKind(_adamw_schedule_free, ("k", "weight_sum", "lr_max")),
    "sgd": OptimizerKind(_sgd),
}


def build_optimizer(
    section: OptimizerSection, groups: Sequence[ParameterGroup]
) -> torch.optim.Optimizer:
    """Return the optimizer that `section.name` names, over `groups` from `parameter_groups`."""
    if section.name not in OPTIMIZERS:
        raise ValueError(f"optimizer is {section.name!r}; known are {', '.join(OPTIMIZERS)}")
    if not groups:
        raise ValueError("nothing to train: no module has a trainable parameter")
    optimizer: torch.optim.Optimizer = OPTIMIZERS[section.name].build(section, list(groups))
    return optimizer
