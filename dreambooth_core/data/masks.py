"""Random masks to train inpainting with. Shapes: B examples, H W pixels, h w latents."""

from __future__ import annotations

import torch
from torch import Tensor

WHOLE_SHARE = 0.25
"""How often everything is to be painted, so that the model does not unlearn to draw alone."""


def random_masks(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Return a mask for each example, (B,1,H,W), 1 where the picture is to be painted, else 0.

    A quarter of them are 1 everywhere, the others a rectangle or an ellipse of any size and place
    (the recipe of the inpainting models: large and small random shapes, Rombach et al. 2022, arXiv
    2112.10752, and their release notes).
    """
    numbers = torch.rand(count, 6, generator=generator, device=generator.device).cpu()
    return torch.stack([_mask(row, height, width) for row in numbers])


def _mask(numbers: Tensor, height: int, width: int) -> Tensor:
    """Return one mask (1,H,W) out of six uniform numbers."""
    kind, shape, down, across, tall, wide = numbers.tolist()
    if kind < WHOLE_SHARE:
        return torch.ones(1, height, width)
    half_height, half_width = _half(tall, height), _half(wide, width)
    y = (torch.arange(height) + 0.5 - down * height).abs()[:, None] / half_height  # (H,1)
    x = (torch.arange(width) + 0.5 - across * width).abs()[None, :] / half_width  # (1,W)
    inside = torch.maximum(y, x) <= 1 if shape < 0.5 else y**2 + x**2 <= 1  # (H,W)
    return inside.float()[None]


def _half(share: float, side: int) -> float:
    """Return half a side of a shape: at least a pixel, so that no shape is empty."""
    return max(1.0, share * side / 2)


def latent_masks(masks: Tensor, height: int, width: int) -> Tensor:
    """Return masks (B,1,H,W) at the size of the latents, (B,1,h,w), as the WebUI scales them."""
    return torch.nn.functional.interpolate(masks, size=(height, width), mode="nearest")
