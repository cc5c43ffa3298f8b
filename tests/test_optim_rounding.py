"""Tests of bf16 weights that are updated in fp32 and rounded by chance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lion_pytorch import Lion

from dreambooth_core.optim import rounding
from dreambooth_core.optim.rounding import StochasticRounding, stochastic_round, taken_for_fp32


def generator(step: int = 0) -> torch.Generator:
    """Random numbers of a step."""
    return torch.Generator().manual_seed(step)


def test_what_bf16_holds_stays_as_it_is() -> None:
    exact = torch.tensor([0.0, -0.0, 1.0, -2.5, 3.0e38, float("inf"), -1e-30]).bfloat16()
    assert torch.equal(stochastic_round(exact.float(), generator()), exact)


def test_a_value_becomes_one_of_its_two_neighbours_and_itself_on_average() -> None:
    # Above 1, bf16 has steps of 2^-7; 1 + 2^-7 / 4 lies a quarter of the way to the next.
    for value, share in ((1 + 2**-9, 0.25), (-(1 + 3 * 2**-9), 0.75)):
        rounded = stochastic_round(torch.full((40_000,), value), generator()).float()
        sign = 1 if value > 0 else -1
        assert set(rounded.tolist()) == {sign * 1.0, sign * (1 + 2**-7)}
        assert (rounded.abs() > 1).float().mean().item() == pytest.approx(share, abs=0.01)
        assert rounded.mean().item() == pytest.approx(value, abs=1e-4)


def test_the_same_random_numbers_give_the_same_result() -> None:
    values = torch.randn(1000, generator=generator(5))
    first, again, other = (stochastic_round(values, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def lion_walk(stochastic: bool, steps: int, rate: float) -> float:
    """How far Lion moves weights in bf16 on average, in its own steps, with gradient 1."""
    weights = torch.nn.Parameter(torch.full((200_000,), 0.02).bfloat16())
    start = weights.detach().float().mean()
    optimizer: Any = Lion([weights], lr=rate)
    if stochastic:
        optimizer = StochasticRounding(optimizer, generator, 0)
    for _ in range(steps):
        weights.grad = torch.ones_like(weights)
        optimizer.step()
    assert weights.dtype == torch.bfloat16
    return ((start - weights.detach().float().mean()) / (steps * rate)).item()


@pytest.mark.turns("train.precision.weights")
def test_lion_at_1e_7_moves_bf16_weights_on_average() -> None:
    # bf16's numbers about 0.02 lie 1.2e-4 apart, a thousand of these steps.
    assert lion_walk(stochastic=True, steps=20, rate=1e-7) == pytest.approx(1.0, rel=0.15)
    assert lion_walk(stochastic=False, steps=20, rate=1e-7) == 0.0


def network() -> torch.nn.Linear:
    """A small network with fixed weights in bf16."""
    torch.manual_seed(0)
    return torch.nn.Linear(8, 4).bfloat16()


def make(model: torch.nn.Module, **options: Any) -> StochasticRounding:
    """AdamW over two groups, its steps rounded by chance."""
    groups = [{"params": [p], "name": name} for name, p in model.named_parameters()]
    adamw = torch.optim.AdamW(groups, lr=1e-2)
    return StochasticRounding(adamw, generator, 0, **options)


def learn(model: torch.nn.Module, optimizer: StochasticRounding, steps: int) -> None:
    """Some updates."""
    for _ in range(steps):
        model(torch.ones(2, 8).bfloat16()).float().square().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def test_an_update_is_that_of_fp32_rounded() -> None:
    model, exact = network(), network().float()
    optimizer = make(model)
    reference = torch.optim.AdamW(exact.parameters(), lr=1e-2)
    model(torch.ones(2, 8).bfloat16()).float().square().sum().backward()
    for half, full in zip(model.parameters(), exact.parameters(), strict=True):
        assert half.grad is not None
        full.grad = half.grad.float()
    optimizer.step()
    reference.step()
    for half, full in zip(model.parameters(), exact.parameters(), strict=True):
        assert half.dtype == torch.bfloat16
        assert half.grad is not None and half.grad.dtype == torch.bfloat16
        spacing = full.abs() * 2**-7
        assert ((half.float() - full).abs() <= spacing).all()


def test_the_memory_is_fp32_and_belongs_to_every_group() -> None:
    model = network()
    optimizer = make(model)
    learn(model, optimizer, 2)
    assert [group["name"] for group in optimizer.param_groups] == ["weight", "bias"]
    for parameter in model.parameters():
        entry = optimizer.state[parameter]
        assert entry["step"] == 2
        assert entry["exp_avg"].dtype == entry["exp_avg_sq"].dtype == torch.float32


def test_portions_do_not_change_what_an_optimizer_does(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for at_once, numbers in ((True, 2**26), (False, 2**26), (False, 1)):
        monkeypatch.setattr(rounding, "NUMBERS_AT_ONCE", numbers)
        model = network()
        learn(model, make(model, all_at_once=at_once), 3)
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_an_optimizer_restored_taken_for_fp32_goes_on_to_the_bit() -> None:
    straight = network()
    learn(straight, make(straight), 4)

    model = network()
    first = make(model)
    learn(model, first, 2)
    memory = first.state_dict()
    second = make(model)
    with taken_for_fp32(list(model.parameters())):
        second.load_state_dict(memory)
    second._step = 2
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    learn(model, second, 2)
    for half, other in zip(model.parameters(), straight.parameters(), strict=True):
        assert torch.equal(half, other)


def test_weights_taken_for_fp32_are_not_rounded() -> None:
    model = network().float()
    plain = network().float()
    reference = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    optimizer = make(model)
    for each in (model, plain):
        each(torch.ones(2, 8)).square().sum().backward()
    optimizer.step()
    reference.step()
    for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, other)
