"""The formulas of LoRA and DoRA against hand-computed values and against plain einsum."""

from __future__ import annotations

import pytest
import torch

from dreambooth_core.adapters.weights import (
    LowRank,
    applied,
    column_norms,
    delta,
    nearest_low_rank,
    with_columns_of_length,
)
from tests.lora_reference import changed_weight

SHAPES = [(6, 4), (6, 4, 1, 1), (6, 4, 3, 3)]


def low_rank(shape: tuple[int, ...], rank: int = 2, dora: bool = False) -> LowRank:
    """A random LoRA of a layer with this weight shape."""
    generator = torch.Generator().manual_seed(0)
    ones = [1] * (len(shape) - 2)
    scale = torch.rand(1, shape[1], *ones, generator=generator) + 0.5
    return LowRank(
        down=torch.randn(rank, *shape[1:], generator=generator),
        up=torch.randn(shape[0], rank, *ones, generator=generator),
        alpha=3.0,
        dora_scale=scale if dora else None,
    )


def as_file(layer: LowRank) -> dict[str, torch.Tensor]:
    """The layer as a file would hold it under the name x."""
    tensors = {"x.lora_down.weight": layer.down, "x.lora_up.weight": layer.up}
    if layer.dora_scale is not None:
        tensors["x.dora_scale"] = layer.dora_scale
    return {**tensors, "x.alpha": torch.tensor(layer.alpha)}


def test_a_delta_by_hand() -> None:
    layer = LowRank(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]), alpha=0.5)
    assert layer.rank == 1
    assert delta(layer).tolist() == [[1.5, 3.0], [2.0, 4.0]]


def test_column_norms_by_hand() -> None:
    assert column_norms(torch.tensor([[3.0, 0.0], [4.0, 2.0]])).tolist() == [[5.0, 2.0]]
    kernel = torch.ones(2, 3, 2, 2)
    assert column_norms(kernel).shape == (1, 3, 1, 1)
    assert column_norms(kernel).flatten().tolist() == pytest.approx([8**0.5] * 3)


def test_columns_get_their_lengths_and_keep_their_directions() -> None:
    weight = torch.tensor([[3.0, 0.0], [4.0, 2.0]], requires_grad=True)
    lengths = torch.tensor([[10.0, 1.0]], requires_grad=True)
    changed = with_columns_of_length(weight, lengths)
    assert changed.tolist() == [[6.0, 0.0], [8.0, 1.0]]
    changed.sum().backward()
    assert lengths.grad is not None and weight.grad is not None
    assert lengths.grad.tolist()[0] == pytest.approx([1.4, 1.0])
    assert weight.grad.tolist() == [[2.0, 0.5], [2.0, 0.5]]  # as if the present length were fixed


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("strength", [1.0, 0.4, 0.0])
def test_applying_is_what_the_webui_does(
    shape: tuple[int, ...], dora: bool, strength: float
) -> None:
    weight, layer = torch.randn(shape), low_rank(shape, dora=dora)
    expected = changed_weight(weight, as_file(layer), "x", strength)
    assert torch.allclose(applied(weight, layer, strength), expected, atol=1e-5)
    if strength == 0:
        assert torch.equal(applied(weight, layer, strength), weight)


def test_a_matrix_takes_the_lora_of_a_convolution_of_one_pixel() -> None:
    weight, layer = torch.randn(6, 4), low_rank((6, 4, 1, 1), dora=True)
    flat = applied(weight, layer)
    assert flat.shape == (6, 4)
    assert torch.equal(flat, applied(weight[..., None, None], layer)[..., 0, 0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_nearest_of_full_rank_is_the_change_itself(shape: tuple[int, ...]) -> None:
    change = torch.randn(shape)
    nearest = nearest_low_rank(change, 100)
    assert nearest.rank == min(shape[0], change[0].numel())
    assert nearest.down.shape[1:] == shape[1:]
    assert torch.allclose(delta(nearest), change, atol=1e-5)


def test_the_nearest_of_low_rank_loses_the_smallest_singular_values() -> None:
    change = torch.randn(8, 5)
    values = torch.linalg.svdvals(change)
    for rank in (1, 2, 4):
        error = (delta(nearest_low_rank(change, rank)) - change).square().sum()
        assert error.item() == pytest.approx(values[rank:].square().sum().item(), rel=1e-4)
