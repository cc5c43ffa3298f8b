"""Training on several processes of one thread each, which on shared cores beats several threads."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def join() -> int:
    """Take one thread and, under torchrun, meet the other processes; returns this one's rank."""
    torch.set_num_threads(1)
    if "RANK" not in os.environ:
        return 0
    dist.init_process_group("gloo")
    return dist.get_rank()


def share(parameters: Sequence[Tensor]) -> None:
    """Give every process the first one's values."""
    if dist.is_initialized():
        for parameter in parameters:
            dist.broadcast(parameter.data, 0)


def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace the gradients by their mean over the processes; a missing one counts as zero."""
    if not dist.is_initialized():
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        if parameter.grad is not None:
            parameter.grad.copy_(part.view_as(parameter))
