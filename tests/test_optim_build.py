"""Parameter groups and optimizers: the first updates against the papers' formulas."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dreambooth_core.config.sections.optimizer import (
    EIGHT_BIT_OPTIMIZERS,
    OPTIMIZER_CHOICES,
    OptimizerSection,
)
from dreambooth_core.optim.build import (
    OPTIMIZERS,
    build_optimizer,
    parameter_groups,
    set_learning_rates,
)


class OneWeight(nn.Module):
    """A module that is a single vector."""

    def __init__(self, values: list[float]) -> None:
        """Start at `values`."""
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(values, dtype=torch.float64))


def train(name: str, gradients: list[float], decay: float = 0.0, **settings: float) -> float:
    """Return a weight of 1 after updates with the given gradients at a rate of 0.1."""
    module = OneWeight([1.0])
    groups = parameter_groups({"unet": module}, {"unet": 0.1}, {"unet": decay})
    optimizer = build_optimizer(OptimizerSection(name=name, **settings), groups)
    for gradient in gradients:
        module.weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
    return module.weight.item()


def test_lion_by_hand() -> None:
    """m = 0: sign(.5 * 4) = 1, p = 0.9, m = .25 * 4 = 1; then .5 * 1 - .5 * 3 < 0, p = 1.0.

    beta1 0.5, beta2 0.75. A plain sign of the gradient would agree; the third step tells: m =
    .75 * 1 - .25 * 3 = 0, gradient 0.001 gives +1, p = 0.9, where the old momentum alone gives 0.
    """
    assert train("lion", [4.0, -3.0, 0.001], beta1=0.5, beta2=0.75) == pytest.approx(0.9)


def test_lion_momentum_can_outvote_the_gradient() -> None:
    """m = .5 * 8 = 4 after the first step; .9 * 4 - .1 * 5 > 0 although the gradient is -5."""
    assert train("lion", [8.0, -5.0], beta1=0.9, beta2=0.5) == pytest.approx(0.8)


def test_lion_decays_in_proportion_to_the_rate() -> None:
    """P (1 - 0.1 * 0.5) - 0.1 = 0.85."""
    assert train("lion", [1.0], decay=0.5) == pytest.approx(0.85)


def test_adamw_by_hand() -> None:
    """Bias correction makes the first step g / |g|: 1 (1 - .1 * .5) - .1 / (1 + eps)."""
    value = train("adamw", [3.0], decay=0.5, beta1=0.9, beta2=0.999, epsilon=1e-8)
    assert value == pytest.approx(0.95 - 0.1, abs=1e-7)


def test_adamw_on_the_cpu_updates_all_tensors_at_once() -> None:
    """The foreach implementation; fused is for CUDA alone (older torch lacks it on the CPU)."""
    groups = parameter_groups({"unet": OneWeight([1.0])}, {"unet": 0.1}, {"unet": 0.0})
    optimizer = build_optimizer(OptimizerSection(name="adamw"), groups)
    assert optimizer.defaults["foreach"] is True
    assert not optimizer.defaults["fused"]


def test_adamw_second_step_by_hand() -> None:
    """Gradients 1, 3 with betas .5: m = 1.75 / .75, v = 4.75 / .75, step .1 * 2.3333 / 2.5166."""
    value = train("adamw", [1.0, 3.0], beta1=0.5, beta2=0.5, epsilon=1e-12)
    assert value == pytest.approx(1 - 0.1 - 0.1 * (1.75 / 0.75) / (4.75 / 0.75) ** 0.5)


def test_adamw_epsilon_is_the_section_s() -> None:
    """Gradient 1 and epsilon 1: the first step is halved."""
    assert train("adamw", [1.0], epsilon=1.0) == pytest.approx(0.95)


def test_groups_keep_order_rates_and_only_trainable_parameters() -> None:
    """A frozen module has no group; a shared parameter is in the first group only."""
    shared = OneWeight([1.0, 2.0])
    second = nn.ModuleList([shared, OneWeight([3.0])])
    frozen = OneWeight([4.0]).requires_grad_(False)
    groups = parameter_groups(
        {"unet": shared, "text_encoder": second, "vae": frozen},
        {"unet": 1e-6, "text_encoder": 5e-7, "vae": 1.0},
        {"unet": 0.01, "text_encoder": 0.02, "vae": 1.0},
    )
    assert [group["name"] for group in groups] == ["unet", "text_encoder"]
    assert [group["lr"] for group in groups] == [1e-6, 5e-7]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.02]
    assert [[p.numel() for p in group["params"]] for group in groups] == [[2], [1]]


@pytest.mark.parametrize("name", ["adafactor", "adamw", "lion", "adamw_schedule_free", "sgd"])
def test_rates_and_decays_act_per_group(name: str) -> None:
    """Equal gradients move the two modules in the ratio of their rates, at any factor."""
    modules = {"unet": OneWeight([0.0]), "text_encoder": OneWeight([0.0])}
    rates, decays = {"unet": 0.2, "text_encoder": 0.05}, {"unet": 0.0, "text_encoder": 0.0}
    optimizer = build_optimizer(
        OptimizerSection(name=name), parameter_groups(modules, rates, decays)
    )
    used = set_learning_rates(optimizer, 0.5)
    assert used == {"unet": 0.1, "text_encoder": 0.025}
    for module in modules.values():
        module.weight.grad = torch.ones(1, dtype=torch.float64)
    optimizer.step()
    moved = {key: -module.weight.item() for key, module in modules.items()}
    assert moved == pytest.approx(used)
    assert set_learning_rates(optimizer, 1.0) == rates


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - set(EIGHT_BIT_OPTIMIZERS)))
def test_state_resumes_bit_for_bit(name: str) -> None:
    """Two steps straight equal one step, state saved and loaded into a new optimizer, one step."""

    def make(values: torch.Tensor) -> tuple[OneWeight, torch.optim.Optimizer]:
        module = OneWeight(values.tolist())
        groups = parameter_groups({"unet": module}, {"unet": 0.01}, {"unet": 0.1})
        return module, build_optimizer(OptimizerSection(name=name), groups)

    def step(module: OneWeight, optimizer: torch.optim.Optimizer, gradient: list[float]) -> None:
        module.weight.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()

    straight, optimizer = make(torch.tensor([1.0, -2.0]))
    step(straight, optimizer, [0.3, 0.7])
    resumed, second = make(straight.weight.detach().clone())
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch shares the tensors
    for module, each in ((straight, optimizer), (resumed, second)):
        step(module, each, [-0.2, 0.1])
    assert torch.equal(straight.weight, resumed.weight)


def test_every_choice_of_the_settings_exists() -> None:
    """The list that a person picks from and the table are one."""
    assert set(OPTIMIZER_CHOICES) == set(OPTIMIZERS)


def test_what_cannot_be_built_is_named() -> None:
    """An unknown name, and nothing to train."""
    groups = parameter_groups({"unet": OneWeight([1.0])}, {"unet": 1.0}, {"unet": 0.0})
    with pytest.raises(ValueError, match="'adam'; known are lion, adamw"):
        build_optimizer(OptimizerSection(name="adam"), groups)
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer(OptimizerSection(), [])
