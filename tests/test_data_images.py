"""Pictures as tensors: fitted to a bucket without blur, mirrored, normalized."""

from __future__ import annotations

import numpy
import pytest
import torch
from PIL import Image

from dreambooth_core.data.images import fit_to_bucket, normalized


def test_fit_gives_pixels_in_minus_1_to_1() -> None:
    """Black is -1, white 1, gray 128 is 128 / 127.5 - 1; channels come first."""
    image = Image.new("RGB", (20, 10), (0, 128, 255))
    result = fit_to_bucket(image, (16, 8))
    assert result.shape == (3, 8, 16)
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    torch.testing.assert_close(result[:, 3, 5], torch.tensor([-1.0, 128 / 127.5 - 1, 1.0]))


def test_fit_keeps_the_asked_part_and_flips_it() -> None:
    """Left half red, right half blue; a square from the left is red, flipping mirrors."""
    image = Image.new("RGB", (64, 32), "red")
    image.paste("blue", (32, 0, 64, 32))
    red, blue = torch.tensor([1.0, -1.0, -1.0]), torch.tensor([-1.0, -1.0, 1.0])
    left, right = fit_to_bucket(image, (8, 8), 0.0), fit_to_bucket(image, (8, 8), 1.0)
    assert torch.equal(left[:, 4, 0], red)
    assert torch.equal(right[:, 4, 7], blue)
    whole, flipped = fit_to_bucket(image, (16, 8)), fit_to_bucket(image, (16, 8), flip=True)
    assert torch.equal(flipped, whole.flip(2))
    assert not torch.equal(flipped, whole)


def test_fit_of_the_exact_size_changes_nothing() -> None:
    """No resampling blur where none is needed."""
    values = numpy.random.default_rng(0).integers(0, 256, (16, 24, 3), "uint8")
    result = fit_to_bucket(Image.fromarray(values), (24, 16))
    restored = ((result + 1) * 127.5).round().permute(1, 2, 0).to(torch.uint8).numpy()
    assert (restored == values).all()


def test_shrinking_averages_instead_of_picking() -> None:
    """A one-pixel checkerboard becomes gray: downscaling is free of aliasing."""
    board = (numpy.indices((128, 128)).sum(axis=0) % 2 * 255).astype("uint8")
    result = fit_to_bucket(Image.fromarray(board).convert("RGB"), (16, 16))
    assert result.abs().max() < 0.05


def test_odd_sizes_stay_inside_the_picture() -> None:
    """Rounding in the box must never reach past the edge (Pillow would raise)."""
    for width in (33, 101, 333):
        for height in (7, 49, 1001):
            for position in (0.0, 1.0):
                shape = fit_to_bucket(Image.new("RGB", (width, height)), (24, 40), position).shape
                assert shape == (3, 40, 24)


def test_normalized_pixels_have_mean_0_and_deviation_1() -> None:
    """The extension's Normalize(mean, std) of pixels in 0..1 gives the same numbers."""
    pixels = torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.1
    result = normalized(pixels * 2 - 1)
    assert result.mean().item() == pytest.approx(0, abs=1e-5)
    assert result.std().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(result, (pixels - pixels.mean()) / pixels.std(), atol=1e-4, rtol=0)
    assert not normalized(torch.full((3, 4, 4), 0.5)).any()
