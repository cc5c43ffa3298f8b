"""Fitting: rates warm up and fall, the average of weights ends in the parameters, snapshots."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dreambooth_core.world.build.fitting import Fit, Rates, keep


def test_the_rate_warms_up_and_then_falls_along_a_cosine() -> None:
    rates = Rates(first=1.0, last=0.2, warmup_steps=4)
    assert [rates.at(step, 10**9) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert rates.at(50, 100) == pytest.approx(0.6)
    assert rates.at(100, 100) == pytest.approx(0.2)


def test_a_fit_finds_the_minimum_and_leaves_the_averages_in_the_parameters() -> None:
    parameter = torch.zeros(3, requires_grad=True)
    goal = torch.tensor([1.0, -2.0, 0.5])
    fit = Fit([([parameter], Rates(0.1, 0.001, 5))], ema_decay=0.9)
    fit.run(300, lambda step: (parameter - goal).square().sum(), "toy")
    assert torch.allclose(parameter.detach(), goal, atol=0.02)
    assert torch.equal(parameter.detach(), fit.averages[0])


def test_the_average_follows_slowly() -> None:
    """One step of AdamW moves by the rate, 0.5; the average takes 1 - 1/10 of it at step 0."""
    parameter = torch.zeros(1, requires_grad=True)
    fit = Fit([([parameter], Rates(0.5, 0.5, 1))], ema_decay=0.9)
    fit.run(1, lambda step: (parameter - 10).square().sum(), "toy")
    assert parameter.item() == pytest.approx(0.45, abs=1e-4)


def test_each_group_has_its_own_rate() -> None:
    slow, fast = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    fit = Fit([([slow], Rates(0.01, 0.01, 1)), ([fast], Rates(0.1, 0.1, 1))])
    fit.run(5, lambda step: (slow - 10).square().sum() + (fast - 10).square().sum(), "toy")
    assert fast.item() == pytest.approx(10 * slow.item(), rel=0.05)


def test_the_log_tells_the_step_and_the_loss(capsys: pytest.CaptureFixture[str]) -> None:
    parameter = torch.zeros(1, requires_grad=True)
    Fit([([parameter], Rates(1e-9, 1e-9))]).run(100, lambda step: (parameter - 2) ** 2, "toy")
    assert capsys.readouterr().out.startswith("toy step 100/100 loss 4.0000")


def test_a_snapshot_is_written_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    keep(tmp_path / "a.pt", {"weight": torch.ones(2)})
    keep(tmp_path / "a.pt", {"weight": torch.zeros(2)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    assert torch.load(tmp_path / "a.pt", weights_only=True)["weight"].tolist() == [0, 0]
