"""Random masks: what share of them is whole, that shapes are shapes, that the stream decides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dreambooth_core.data.masks import latent_masks, random_masks
from dreambooth_core.diffusion.noise import stream


def masks_of(count: int, height: int = 48, width: int = 32, step: int = 0) -> Tensor:
    """Masks from a stream of their own."""
    return random_masks(count, height, width, stream(1, "masks", step))


def is_rectangle(mask: Tensor) -> bool:
    """Whether what is to be painted fills the smallest box around it."""
    rows, columns = mask.any(dim=1).nonzero().flatten(), mask.any(dim=0).nonzero().flatten()
    return bool(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all())


def test_a_quarter_of_the_masks_is_whole_and_the_rest_are_parts() -> None:
    masks = masks_of(2000)
    assert masks.shape == (2000, 1, 48, 32)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    shares = masks.mean(dim=(1, 2, 3))
    whole = (shares == 1).float().mean().item()
    assert whole == pytest.approx(0.25, abs=0.03)
    assert shares.min() > 0
    parts = masks[shares < 1][:, 0].bool()
    rectangles = sum(is_rectangle(mask) for mask in parts) / len(parts)
    assert 0.45 < rectangles < 0.75  # half of them, and ellipses that are small or at the border
    ellipses = [mask for mask in parts if not is_rectangle(mask)]
    assert all(_has_no_gaps(mask) for mask in ellipses[:50])


def _has_no_gaps(mask: Tensor) -> bool:
    """Whether each row is one run: the shape is convex."""
    steps = mask.int().diff(dim=1).abs().sum(dim=1)
    return bool((steps <= 2).all())


def test_the_stream_alone_decides() -> None:
    first = masks_of(8)
    torch.manual_seed(5)
    assert torch.equal(first, masks_of(8))
    assert not torch.equal(first, masks_of(8, step=1))
    assert torch.equal(first[:3], masks_of(3))


def test_latents_see_the_mask_at_their_size() -> None:
    masks = torch.zeros(1, 1, 16, 16)
    masks[..., :8] = 1
    small = latent_masks(masks, 2, 2)
    assert small.tolist() == [[[[1.0, 0.0], [1.0, 0.0]]]]
    assert set(latent_masks(masks_of(50), 6, 4).unique().tolist()) == {0.0, 1.0}
