"""The moving average: closed form, warm-up, and a swap that gives the live weights back exactly."""

from __future__ import annotations

import pytest
import torch

from dreambooth_core.errors import InputError
from dreambooth_core.optim.ema import ExponentialMovingAverage


def parameter(value: float, dtype: torch.dtype = torch.float32) -> torch.nn.Parameter:
    """Return a parameter of two equal numbers."""
    return torch.nn.Parameter(torch.full((2,), value, dtype=dtype))


def shadow(ema: ExponentialMovingAverage, name: str = "w") -> float:
    """Return the first number of a shadow."""
    return ema.state_dict()[name][0].item()


def test_warm_up_by_hand() -> None:
    """From 0 toward 1: 1 - 2/11 = 9/11, then 3/12 * 9/11 + 9/12 = 0.954545...; then held by d."""
    weight = parameter(0.0)
    ema = ExponentialMovingAverage({"w": weight}, decay=0.25)
    weight.data.fill_(1.0)
    ema.update(1)
    assert shadow(ema) == pytest.approx(9 / 11)
    ema.update(2)
    assert shadow(ema) == pytest.approx(0.25 * 9 / 11 + 0.75)
    assert ema.decay_at(3) == 0.25
    assert ema.decay_at(2) == 3 / 12


def test_closed_form_after_the_warm_up() -> None:
    """A constant target leaves decay^n of the distance: n = 100 steps from step 1000 on."""
    weight = parameter(0.0)
    ema = ExponentialMovingAverage({"w": weight}, decay=0.95)
    weight.data.fill_(1.0)
    for step in range(1000, 1100):
        ema.update(step)
    assert 1 - shadow(ema) == pytest.approx(0.95**100, rel=1e-3)


def test_every_k_steps_keeps_the_time_scale() -> None:
    """12 steps with k = 4 leave decay^12 of the distance, as every step does."""
    weight = parameter(0.0)
    each = ExponentialMovingAverage({"w": weight}, decay=0.9)
    fourth = ExponentialMovingAverage({"w": weight}, decay=0.9, every_steps=4)
    weight.data.fill_(1.0)
    for step in range(1001, 1013):
        each.update(step)
        before = shadow(fourth)
        fourth.update(step)
        assert (shadow(fourth) != before) == (step % 4 == 0)
    assert shadow(each) == pytest.approx(1 - 0.9**12, rel=1e-5)
    assert shadow(fourth) == pytest.approx(1 - 0.9**12, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_averaged_in_fp32(dtype: torch.dtype) -> None:
    """A 1 % drift at decay 0.999 is lost in bf16 arithmetic; the fp32 shadow follows it."""
    weight = parameter(1.0, dtype)
    ema = ExponentialMovingAverage({"w": weight}, decay=0.999)
    weight.data.fill_(1.0078125)  # the next bf16 number above 1
    for step in range(100_000, 101_000):
        ema.update(step)
    assert ema.state_dict()["w"].dtype == torch.float32
    assert shadow(ema) == pytest.approx(1 + 0.0078125 * (1 - 0.999**1000), rel=1e-5)


def test_the_shadow_is_memory_of_its_own() -> None:
    """It starts equal and does not move with the weights (fp32 on the same device included)."""
    weight = parameter(1.0)
    ema = ExponentialMovingAverage({"w": weight}, decay=0.9, device="cpu")
    weight.data.fill_(5.0)
    assert shadow(ema) == 1.0


def test_the_shadow_lies_where_it_is_asked_to() -> None:
    """Beside the weights by default; on another device (here one without memory) if told."""
    weight = parameter(1.0)
    beside = ExponentialMovingAverage({"w": weight}, decay=0.9)
    elsewhere = ExponentialMovingAverage({"w": weight}, decay=0.9, device="meta")
    assert beside.state_dict()["w"].device.type == "cpu"
    assert elsewhere.state_dict()["w"].device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swapped_in_shows_the_average_and_restores_exactly(dtype: torch.dtype) -> None:
    """Same storage, same bits, same shadow afterwards; twice in a row too."""
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 7).to(dtype))
    ema = ExponentialMovingAverage({"w": weight}, decay=0.9)
    weight.data.mul_(3.0).add_(0.1)
    live, address, average = (
        weight.detach().clone(),
        weight.data_ptr(),
        ema.state_dict()["w"].clone(),
    )
    for _ in range(2):
        with ema.swapped_in():
            assert torch.equal(weight, average.to(dtype))
            assert weight.data_ptr() == address
        assert torch.equal(weight, live)
        assert torch.equal(ema.state_dict()["w"], average)


def test_swapped_in_restores_when_the_block_raises() -> None:
    """A failed preview must not leave the average in the trained weights."""
    weight = parameter(1.0)
    ema = ExponentialMovingAverage({"w": weight}, decay=0.9)
    weight.data.fill_(2.0)
    with pytest.raises(KeyError), ema.swapped_in():
        raise KeyError
    assert weight.tolist() == [2.0, 2.0]


def test_changing_weights_inside_the_swap_does_not_reach_the_shadow() -> None:
    """The swap copies values; it lends no memory."""
    weight = parameter(1.0)
    ema = ExponentialMovingAverage({"w": weight}, decay=0.9)
    with ema.swapped_in():
        weight.data.fill_(9.0)
    assert shadow(ema) == 1.0
    assert weight.tolist() == [1.0, 1.0]


def test_gradients_flow_after_a_swap() -> None:
    """The parameter is still the optimizer's, with its gradient, and grad mode is as before."""
    weight = parameter(1.0)
    ema = ExponentialMovingAverage({"w": weight}, decay=0.9)
    with ema.swapped_in():
        assert torch.is_grad_enabled()
    weight.square().sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [2.0, 2.0]


def test_state_goes_through_a_save_bit_for_bit() -> None:
    """A loaded average continues as the saved one."""
    weight = parameter(0.0)
    ema = ExponentialMovingAverage({"w": weight}, decay=0.9)
    weight.data.fill_(1.0)
    ema.update(1)
    state = {name: tensor.clone() for name, tensor in ema.state_dict().items()}
    other = ExponentialMovingAverage({"w": weight}, decay=0.9)
    other.load_state_dict(state)
    for each in (ema, other):
        each.update(2)
    assert torch.equal(ema.state_dict()["w"], other.state_dict()["w"])
    state["w"].fill_(7.0)
    assert shadow(other) != 7.0


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"], ["a", "c"], []])
def test_a_state_of_other_weights_is_refused(names: list[str]) -> None:
    """Missing and unknown names are both errors that name them."""
    ema = ExponentialMovingAverage({"a": parameter(0.0), "b": parameter(0.0)}, decay=0.9)
    with pytest.raises(InputError, match="does not fit"):
        ema.load_state_dict({name: torch.zeros(2) for name in names})


def test_a_state_of_another_shape_is_refused() -> None:
    """No broadcasting into the shadow."""
    ema = ExponentialMovingAverage({"a": parameter(0.0)}, decay=0.9)
    with pytest.raises(InputError, match=r"average of a has shape \(1,\), the model has \(2,\)"):
        ema.load_state_dict({"a": torch.zeros(1)})
