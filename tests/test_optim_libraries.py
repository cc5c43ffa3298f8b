"""The optimizers of libraries against their papers' formulas, written down by themselves."""

from __future__ import annotations

import copy
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dreambooth_core.config.sections.optimizer import EIGHT_BIT_OPTIMIZERS, OptimizerSection
from dreambooth_core.optim.build import build_optimizer, parameter_groups, set_learning_rates
from dreambooth_core.optim.schedule_free import learnt_weights, retire
from tests import optimizer_reference as reference

STEPS = 12
SHAPE = (3, 4)


class Layer(nn.Module):
    """A matrix."""

    def __init__(self, weight: Tensor) -> None:
        """Start at a copy of `weight`."""
        super().__init__()
        self.weight = nn.Parameter(weight.clone())


@pytest.fixture
def first() -> Tensor:
    """A matrix of numbers around 0."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def gradients() -> list[Tensor]:
    """Gradients that mostly agree, so that the estimates of a rate rise."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn((STEPS, *SHAPE), generator=generator, dtype=torch.float64)
    return list(noise * 0.3 + noise[0])


def make(
    first: Tensor, name: str, *, rate: float, decay: float = 0.0, **settings: Any
) -> tuple[Layer, torch.optim.Optimizer]:
    """Return a layer and its optimizer."""
    layer = Layer(first)
    groups = parameter_groups({"unet": layer}, {"unet": rate}, {"unet": decay})
    return layer, build_optimizer(OptimizerSection(name=name, **settings), groups)


def follow(
    first: Tensor, gradients: list[Tensor], name: str, **settings: Any
) -> tuple[list[Tensor], list[float]]:
    """Return the weights after each step, and the rates of the steps as they are reported."""
    layer, optimizer = make(first, name, **settings)
    path, rates = [], []
    for gradient in gradients:
        rates.append(set_learning_rates(optimizer, 1.0)["unet"])
        layer.weight.grad = gradient.clone()
        optimizer.step()
        path.append(layer.weight.detach().clone())
    return path, rates


def assert_same(ours: list[Tensor], theirs: list[Tensor], rel: float = 1e-9) -> None:
    """Compare two paths step by step, by how far they have moved."""
    for step, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.allclose(one, other, rtol=rel, atol=rel), f"step {step}"


@pytest.mark.turns("train.optimizer.momentum")
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd(first: Tensor, gradients: list[Tensor], momentum: float) -> None:
    ours, _ = follow(first, gradients, "sgd", rate=0.1, momentum=momentum)
    assert_same(ours, reference.sgd(first, gradients, 0.1, momentum))


def test_sgd_s_decay_is_added_to_the_gradient(first: Tensor) -> None:
    ours, _ = follow(first, [torch.zeros(SHAPE).double()], "sgd", rate=0.1, decay=0.5)
    assert_same(ours, [first * (1 - 0.1 * 0.5)])


@pytest.mark.turns("train.optimizer.scale_parameter")
@pytest.mark.parametrize("scaled", [False, True])
def test_adafactor(first: Tensor, gradients: list[Tensor], scaled: bool) -> None:
    ours, _ = follow(first, gradients, "adafactor", rate=0.1, scale_parameter=scaled)
    assert_same(ours, reference.adafactor(first, gradients, 0.1, scaled=scaled))


@pytest.mark.turns("train.optimizer.beta3")
@pytest.mark.parametrize("beta3", [0.5, 0.95])
def test_came(first: Tensor, gradients: list[Tensor], beta3: float) -> None:
    betas = {"beta1": 0.8, "beta2": 0.9, "beta3": beta3}
    ours, _ = follow(first, gradients, "came", rate=0.1, **betas)
    assert_same(ours, reference.came(first, gradients, 0.1, (0.8, 0.9, beta3)))


@pytest.mark.turns("train.optimizer.d_coef", "train.optimizer.bias_correction")
@pytest.mark.parametrize(("coefficient", "corrected"), [(1.0, False), (2.0, False), (1.0, True)])
def test_prodigy(
    first: Tensor, gradients: list[Tensor], coefficient: float, corrected: bool
) -> None:
    """The weights, and the reported rates: d0 first, then each step's estimate a step later."""
    ours, rates = follow(
        first,
        gradients,
        "prodigy",
        rate=1.0,
        beta2=0.9,
        d0=1e-3,
        d_coef=coefficient,
        bias_correction=corrected,
        safeguard_warmup=False,
    )
    path, estimates = reference.prodigy(
        first,
        gradients,
        betas=(0.9, 0.9),
        d0=1e-3,
        coefficient=coefficient,
        corrected=corrected,
    )
    assert_same(ours, path)
    assert rates == pytest.approx([1e-3, *estimates[:-1]], rel=1e-9)
    assert rates[-1] > 2e-3


@pytest.mark.turns("train.optimizer.d0")
@pytest.mark.parametrize("name", ["prodigy", "dadapt_adam"])
def test_the_first_guess_is_what_it_begins_with(
    first: Tensor, gradients: list[Tensor], name: str
) -> None:
    """A larger one moves the weights farther in the first step, in proportion."""
    small, rates = follow(first, gradients[:1], name, rate=1.0, d0=1e-4)
    large, more = follow(first, gradients[:1], name, rate=1.0, d0=3e-4)
    assert (rates, more) == ([1e-4], [pytest.approx(3e-4)])
    assert torch.allclose(large[0] - first, 3 * (small[0] - first), rtol=1e-6)


@pytest.mark.turns("train.optimizer.bias_correction")
def test_without_bias_correction_dadapt_adam_s_first_steps_are_smaller(
    first: Tensor, gradients: list[Tensor]
) -> None:
    """Its first step is by sqrt(1 - b2) / (1 - b1) smaller, with betas of 0.5 sqrt(2)."""
    settings = {"rate": 1.0, "beta1": 0.5, "beta2": 0.5, "d0": 1e-3}
    plain, _ = follow(first, gradients[:1], "dadapt_adam", bias_correction=False, **settings)
    corrected, _ = follow(first, gradients[:1], "dadapt_adam", bias_correction=True, **settings)
    ratio = (corrected[0] - first) / (plain[0] - first)
    assert torch.allclose(ratio, torch.full_like(ratio, 2**0.5), rtol=1e-6)


@pytest.mark.turns("train.optimizer.safeguard_warmup")
def test_the_safeguard_keeps_a_warm_up_from_raising_the_estimate(
    first: Tensor, gradients: list[Tensor]
) -> None:
    """A rate that rises from 0.1: without it the divisor is small too, the estimate large."""

    def estimate(safeguard: bool) -> float:
        layer, optimizer = make(
            first,
            "prodigy",
            rate=1.0,
            d0=1e-3,
            beta2=0.9,
            bias_correction=False,
            safeguard_warmup=safeguard,
        )
        for step, gradient in enumerate(gradients):
            set_learning_rates(optimizer, min(1.0, 0.1 * (step + 1)))
            layer.weight.grad = gradient.clone()
            optimizer.step()
        return float(optimizer.param_groups[0]["d"])

    assert estimate(True) < 0.6 * estimate(False)


def test_dadapt_adam(first: Tensor, gradients: list[Tensor]) -> None:
    """The library adds the estimate up in 32 bits."""
    settings = {"beta2": 0.9, "d0": 1e-3, "bias_correction": False}
    ours, rates = follow(first, gradients, "dadapt_adam", rate=1.0, **settings)
    path, estimates = reference.dadapt_adam(first, gradients, betas=(0.9, 0.9), d0=1e-3)
    assert_same(ours, path, rel=1e-6)
    assert rates == pytest.approx([1e-3, *estimates[:-1]], rel=1e-5)
    assert rates[-1] > 1.5e-3


@pytest.mark.parametrize("name", ["adafactor", "came", "prodigy", "dadapt_adam"])
def test_decay_is_in_proportion_to_the_rate_and_not_part_of_the_gradient(
    first: Tensor, gradients: list[Tensor], name: str
) -> None:
    """One step with and one without decay differ by rate x decay x weight."""
    settings = {"rate": 1.0, "d0": 0.1, "beta1": 0.9, "beta2": 0.9}
    plain, rates = follow(first, gradients[:1], name, **settings)
    decayed, _ = follow(first, gradients[:1], name, decay=0.5, **settings)
    correction = (1 - 0.9) ** 0.5 / (1 - 0.9) if name in ("prodigy", "dadapt_adam") else 1.0
    pull = rates[0] * correction * 0.5 * first
    assert torch.allclose(plain[0] - decayed[0], pull, rtol=1e-9, atol=1e-12)


# -- schedule-free


def test_adamw_schedule_free(first: Tensor, gradients: list[Tensor]) -> None:
    """The network holds y; x is there for the block, and y comes back bit for bit."""
    layer, optimizer = make(first, "adamw_schedule_free", rate=0.1, decay=0.2, beta2=0.9)
    rates = [0.1 * min(1.0, step / 4) for step in range(STEPS)]
    learning, learnt = reference.adamw_schedule_free(
        first, gradients, rates, betas=(0.9, 0.9), decay=0.2
    )
    for step, gradient in enumerate(gradients):
        set_learning_rates(optimizer, rates[step] / 0.1)
        layer.weight.grad = gradient.clone()
        optimizer.step()
        before = layer.weight.detach().clone()
        with learnt_weights(optimizer):
            seen = layer.weight.detach().clone()
        assert torch.equal(layer.weight, before)
        assert torch.allclose(before, learning[step], rtol=1e-9, atol=1e-12)
        assert torch.allclose(seen, learnt[step], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(learning[-1], learnt[-1], rtol=1e-3)


def look_and_fail(optimizer: torch.optim.Optimizer) -> None:
    """Raise where the learnt weights are looked at."""
    with learnt_weights(optimizer):
        raise RuntimeError("in the block")


def test_what_learns_comes_back_after_an_error(first: Tensor, gradients: list[Tensor]) -> None:
    layer, optimizer = make(first, "adamw_schedule_free", rate=0.1)
    for gradient in gradients[:3]:
        layer.weight.grad = gradient.clone()
        optimizer.step()
    before = layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match="in the block"):
        look_and_fail(optimizer)
    assert torch.equal(layer.weight, before)
    layer.weight.grad = gradients[3].clone()
    optimizer.step()  # it would refuse if it were not told that it trains again


def test_other_optimizers_learn_what_they_train(first: Tensor, gradients: list[Tensor]) -> None:
    layer, optimizer = make(first, "adamw", rate=0.1)
    layer.weight.grad = gradients[0].clone()
    optimizer.step()
    before = layer.weight.detach().clone()
    with learnt_weights(optimizer):
        assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("name", ["adamw", "adamw_schedule_free"])
def test_a_group_that_retires_stays_as_learnt(
    first: Tensor, gradients: list[Tensor], name: str
) -> None:
    """The other group goes on as if nothing had happened."""
    layers = {"unet": Layer(first), "text_encoder": Layer(first)}
    rates, decays = dict.fromkeys(layers, 0.1), dict.fromkeys(layers, 0.0)
    optimizer = build_optimizer(
        OptimizerSection(name=name), parameter_groups(layers, rates, decays)
    )
    for gradient in gradients[:4]:
        for layer in layers.values():
            layer.weight.grad = gradient.clone()
        optimizer.step()
    with learnt_weights(optimizer):
        learnt = layers["text_encoder"].weight.detach().clone()
    before = layers["unet"].weight.detach().clone()
    retire(optimizer, ["text_encoder"])
    assert torch.equal(layers["text_encoder"].weight, learnt)
    assert torch.equal(layers["unet"].weight, before)
    assert [group["name"] for group in optimizer.param_groups] == ["unet"]
    assert list(optimizer.state) == [layers["unet"].weight]
    straight, _ = follow(first, gradients[:5], name, rate=0.1)
    layers["unet"].weight.grad = gradients[4].clone()
    optimizer.step()
    assert torch.equal(layers["unet"].weight, straight[-1])


# -- 8 bits


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Stand in for bitsandbytes: note which class is made and how."""
    seen: list[tuple[str, dict[str, Any]]] = []

    class Classes:
        def __getattr__(self, name: str) -> Any:
            def made(groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
                seen.append((name, options))
                return torch.optim.SGD(groups, lr=1.0)

            return made

    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=Classes()))  # type: ignore[arg-type]
    return seen


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adamw_8bit", ("AdamW8bit", {"betas": (0.8, 0.7), "eps": 1e-6})),
        ("paged_adamw_8bit", ("PagedAdamW8bit", {"betas": (0.8, 0.7), "eps": 1e-6})),
        ("lion_8bit", ("Lion8bit", {"betas": (0.8, 0.7)})),
        ("paged_lion_8bit", ("PagedLion8bit", {"betas": (0.8, 0.7)})),
    ],
)
def test_8_bit_optimizers_are_bitsandbytes_s(
    first: Tensor, asked_for: list[tuple[str, dict[str, Any]]], name: str, expected: Any
) -> None:
    _, optimizer = make(first, name, rate=0.25, decay=0.5, beta1=0.8, beta2=0.7, epsilon=1e-6)
    assert asked_for == [expected]
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (
        0.25,
        0.5,
    )


@pytest.mark.parametrize("name", EIGHT_BIT_OPTIMIZERS)
def test_8_bit_optimizers_step_and_remember_in_8_bits(name: str) -> None:
    """Where bitsandbytes is installed and can compute on this machine."""
    pytest.importorskip("bitsandbytes")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    first = torch.ones(64, 64, device=device)
    layer, optimizer = make(first, name, rate=0.01)
    for _ in range(3):
        layer.weight.grad = torch.ones_like(first)
        optimizer.step()
    assert torch.allclose(layer.weight, torch.full_like(first, 0.97), atol=2e-3)
    state = copy.deepcopy(optimizer.state[layer.weight])
    assert state["state1"].dtype == torch.uint8
