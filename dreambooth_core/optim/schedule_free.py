"""Schedule-free training: the weights that learn, and their average that is saved and drawn.

The network holds y, where the gradient is taken; what has been learnt is the average x, which is
computed from y and the optimizer's z. Source: Defazio et al. 2024 (arXiv 2405.15682), section 2.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dreambooth_core.job.memory_errors import during


def is_schedule_free(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer trains other weights than those that it has learnt."""
    return any("train_mode" in group for group in optimizer.param_groups)


@contextmanager
def learnt_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Put what has been learnt into the network for the block, then what learns, bit for bit.

    For all but schedule-free optimizers these are the same, and nothing is done.
    """
    if not is_schedule_free(optimizer):
        yield
        return
    learning = [(p, p.detach().clone()) for g in optimizer.param_groups for p in g["params"]]
    try:
        _settle(optimizer)
        yield
    finally:
        with torch.no_grad(), during("", changes_weights=True):
            for parameter, value in learning:
                parameter.copy_(value)
        for group in optimizer.param_groups:
            group["train_mode"] = True


def retire(optimizer: torch.optim.Optimizer, names: Collection[str]) -> None:
    """Take groups out of an optimizer, with its memory of them; their weights stay as learnt."""
    leaving = [group for group in optimizer.param_groups if group["name"] in names]
    staying = [group for group in optimizer.param_groups if group["name"] not in names]
    if is_schedule_free(optimizer):
        optimizer.param_groups[:] = leaving
        _settle(optimizer)
    optimizer.param_groups[:] = staying
    for group in leaving:
        for parameter in group["params"]:
            optimizer.state.pop(parameter, None)
            parameter.grad = None


def _settle(optimizer: Any) -> None:
    """Let a schedule-free optimizer put the average into the network."""
    optimizer.eval()
