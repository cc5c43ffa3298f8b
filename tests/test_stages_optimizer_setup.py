"""What an optimizer remembers goes through a file and comes back to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from dreambooth_core.config.schema import OPTIMIZER_CHOICES, TrainConfig
from dreambooth_core.config.sections.optimizer import EIGHT_BIT_OPTIMIZERS, OptimizerSection
from dreambooth_core.config.serialize import from_dict, to_dict
from dreambooth_core.errors import ConfigError, InputError
from dreambooth_core.optim.build import build_optimizer, parameter_groups, set_learning_rates
from dreambooth_core.optim.schedule_free import learnt_weights
from dreambooth_core.stages.optimizer_file import read_memory, write_memory
from dreambooth_core.stages.optimizer_setup import (
    begins_anew,
    optimizer_memory,
    prepare_optimizer,
    require_optimizer,
    restore_optimizer,
)

ON_THE_CPU = [name for name in OPTIMIZER_CHOICES if name not in EIGHT_BIT_OPTIMIZERS]
FACTORS = (0.0, 0.5, 1.0, 0.75, 0.5, 0.25)
DTYPES = (torch.float32, torch.bfloat16)


def make_layers(dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    """Two layers whose weights are alike every time."""
    torch.manual_seed(5)
    return {
        "unet": nn.Conv2d(2, 3, 3).to(dtype),
        "text_encoder": nn.Linear(4, 3).to(dtype),
    }


def make(name: str, layers: dict[str, nn.Module]) -> torch.optim.Optimizer:
    """An optimizer over the layers, at one rate and two decays."""
    rates, decays = dict.fromkeys(layers, 0.5), {"unet": 0.01, "text_encoder": 0.1}
    section = OptimizerSection(name=name, d0=1e-3)
    return build_optimizer(section, parameter_groups(layers, rates, decays))


def step(layers: dict[str, nn.Module], optimizer: torch.optim.Optimizer, number: int) -> None:
    """Make the step of a number, with gradients that belong to it."""
    generator = torch.Generator().manual_seed(number)
    for layer in layers.values():
        for parameter in layer.parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = (gradient + 0.3).to(parameter.dtype)
    set_learning_rates(optimizer, FACTORS[number])
    optimizer.step()


def through_a_file(memory: Any, folder: Path) -> Any:
    """Write the memory as a training state does and read it."""
    write_memory(folder / "optimizer.safetensors", memory)
    return read_memory(folder / "optimizer.safetensors")


def weights_of(layers: dict[str, nn.Module]) -> list[torch.Tensor]:
    """The layers' weights in order."""
    return [p.detach().clone() for layer in layers.values() for p in layer.parameters()]


def saved_copy(
    layers: dict[str, nn.Module], optimizer: torch.optim.Optimizer
) -> dict[str, nn.Module]:
    """Layers that hold what a state would hold of these."""
    copy = make_layers(next(layers["unet"].parameters()).dtype)
    with learnt_weights(optimizer):
        for name, layer in layers.items():
            copy[name].load_state_dict(layer.state_dict())
    return copy


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ON_THE_CPU)
def test_six_steps_are_three_and_three_resumed(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    if dtype == torch.bfloat16 and name == "adamw_schedule_free":
        pytest.skip("is refused together with weights in bf16")
    layers = make_layers(dtype)
    optimizer = make(name, layers)
    for number in range(3):
        step(layers, optimizer, number)
    resumed = saved_copy(layers, optimizer)
    second = make(name, resumed)
    restore_optimizer(second, through_a_file(optimizer_memory(optimizer), tmp_path))
    for number in range(3, 6):
        step(layers, optimizer, number)
        step(resumed, second, number)
    assert all(map(torch.equal, weights_of(layers), weights_of(resumed)))
    assert set_learning_rates(optimizer, 1.0) == set_learning_rates(second, 1.0)


def test_a_memory_keeps_its_number_format() -> None:
    """Torch would bring what is remembered in fp32 into the format of bf16 weights."""
    layers = make_layers(torch.bfloat16)
    optimizer = make("adafactor", layers)
    step(layers, optimizer, 1)
    memory = optimizer_memory(optimizer)
    assert memory["unet"][0]["exp_avg_sq_row"].dtype == torch.float32
    second = make("adafactor", make_layers(torch.bfloat16))
    restore_optimizer(second, memory)
    assert optimizer_memory(second)["unet"][0]["exp_avg_sq_row"].dtype == torch.float32


def test_settings_are_not_remembered() -> None:
    """A resumed run takes today's rates and decays, also of what is remembered of a group."""
    layers = make_layers()
    optimizer = make("prodigy", layers)
    step(layers, optimizer, 1)
    rates = dict.fromkeys(layers, 0.25)
    decays = dict.fromkeys(layers, 0.5)
    section = OptimizerSection(name="prodigy", d_coef=2.0, beta1=0.5)
    second = build_optimizer(section, parameter_groups(layers, rates, decays))
    restore_optimizer(second, optimizer_memory(optimizer))
    group = second.param_groups[0]
    assert (group["base_lr"], group["weight_decay"], group["d_coef"]) == (0.25, 0.5, 2.0)
    assert group["betas"] == (0.5, 0.99)
    assert group["k"] == 1


def test_memory_of_other_weights_is_refused() -> None:
    layers = make_layers()
    optimizer = make("adamw", layers)
    step(layers, optimizer, 1)
    memory = optimizer_memory(optimizer)
    layers["unet"].bias.requires_grad_(False)  # type: ignore[union-attr]
    with pytest.raises(InputError, match="trained 2 tensors of the unet; this one trains 1"):
        restore_optimizer(make("adamw", layers), memory)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"optimizer": {"name": "adamw"}}, True),
        ({"unet": {"parts": "attention"}}, True),
        ({"text_encoder": {"freeze_norm_layers": True}}, True),
        ({"optimizer": {"beta1": 0.5}}, False),
    ],
)
def test_an_optimizer_of_another_kind_or_of_other_weights_begins_anew(
    changes: dict[str, Any], expected: bool
) -> None:
    before = to_dict(TrainConfig(model="ada"))
    config = from_dict(TrainConfig, {"model": "ada", **changes})
    assert begins_anew(config, before) is expected


def test_a_state_of_an_older_version_that_lacks_settings_is_of_the_same_weights() -> None:
    before = to_dict(TrainConfig(model="ada"))
    before["unet"].pop("parts")
    before["text_encoder"].pop("freeze_norm_layers")
    assert not begins_anew(TrainConfig(model="ada"), before)


def test_decay_and_rate_are_those_of_the_part() -> None:
    config = from_dict(
        TrainConfig,
        {
            "model": "ada",
            "optimizer": {
                "name": "sgd",
                "weight_decay": 0.25,
                "text_encoder_weight_decay": 0.5,
            },
            "learning_rate": {"unet": 1e-3, "text_encoder": 1e-4},
        },
    )
    optimizer = prepare_optimizer(config, Accelerator(cpu=True), make_layers(), None)
    found = {g["name"]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups}
    assert found == {"unet": (1e-3, 0.25), "text_encoder": (1e-4, 0.5)}


@pytest.mark.parametrize("name", EIGHT_BIT_OPTIMIZERS)
def test_8_bits_are_refused_where_there_is_no_gpu(name: str) -> None:
    config = from_dict(TrainConfig, {"model": "ada", "optimizer": {"name": name}})
    with pytest.raises(ConfigError) as caught:
        require_optimizer(config, torch.device("cpu"))
    (problem,) = caught.value.problems
    assert problem.field == "optimizer.name"
    assert problem.message == (
        f"is {name}, which needs an NVIDIA GPU, and training runs on the cpu here."
    )
    assert problem.remedy == f"Choose {'adamw' if 'adamw' in name else 'lion'}."


@pytest.mark.parametrize("name", ON_THE_CPU)
def test_the_others_run_anywhere(name: str) -> None:
    config = from_dict(TrainConfig, {"model": "ada", "optimizer": {"name": name}})
    require_optimizer(config, torch.device("cpu"))
