"""Training on two processes equals training on their joint batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from dreambooth_core.world.build.fitting import Fit, Rates
from dreambooth_core.world.build.parallel import average_gradients, join, share


def test_alone_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    threads = torch.get_num_threads()
    try:
        assert join() == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    parameter = torch.ones(2, requires_grad=True)
    parameter.sum().backward()
    share([parameter])
    average_gradients([parameter])
    assert parameter.grad is not None and parameter.grad.tolist() == [1, 1]


def _one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=(Path(folder) / "meet").as_uri(), rank=rank, world_size=2
    )
    used = torch.full((2,), float(rank), requires_grad=True)
    unused = torch.full((1,), float(rank), requires_grad=True)

    def loss(step: int) -> Tensor:
        return ((1 + 2 * rank) * used).sum()

    fit = Fit([([used, unused], Rates(0.1, 0.1, 1))])
    started = used.detach().clone()
    loss(0).backward()
    average_gradients(fit.parameters)
    torch.save((started, used.grad, unused.grad), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_start_alike_and_average_their_gradients(tmp_path: Path) -> None:
    """Gradients 1 and 3 average to 2; a parameter without gradient keeps none."""
    mp.spawn(_one_of_two, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        started, used, unused = torch.load(tmp_path / f"{rank}.pt")
        assert started.tolist() == [0, 0]
        assert used.tolist() == [2, 2]
        assert unused is None
