"""Focal crops lie around the detail of a picture, and in the center where there is none."""

from __future__ import annotations

import numpy
import pytest
from PIL import Image

from dreambooth_core.data.focus import focal_position


def lines(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    """A gray picture with a checkerboard in a box (left, top, right, bottom)."""
    pixels = numpy.full((height, width, 3), 128, numpy.uint8)
    left, top, right, bottom = box
    board = (numpy.indices((bottom - top, right - left)) // 8).sum(axis=0) % 2 * 255
    pixels[top:bottom, left:right] = board[..., None]
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("picture", "size", "expected"),
    [
        # The board's middle is at 264 of 1056; a crop of 512 around it begins at 8 of 544.
        (lines(1056, 512, (200, 100, 328, 400)), (512, 512), 0.0),
        (lines(1056, 512, (464, 100, 592, 400)), (512, 512), 0.5),
        (lines(1056, 512, (728, 100, 856, 400)), (512, 512), 1.0),
        # At 664 of 1056 the crop begins at 408 of 544, which is 0.75.
        (lines(1056, 512, (600, 100, 728, 400)), (512, 512), 0.75),
        (lines(512, 1056, (100, 600, 400, 728)), (512, 512), 0.75),
        (lines(1056, 512, (600, 100, 728, 400)), (1056, 512), 0.5),
        (Image.new("RGB", (1056, 512), "red"), (512, 512), 0.5),
    ],
    ids=["left", "middle", "right", "three quarters", "down", "no slack", "even"],
)
def test_a_focal_crop_is_around_the_edges(
    picture: Image.Image, size: tuple[int, int], expected: float
) -> None:
    """By hand, to a 32nd of the slack; what has no slack or no edges stays in the center."""
    assert focal_position(picture, size) == pytest.approx(expected, abs=1 / 32)


def test_a_focal_crop_does_not_follow_faint_grain() -> None:
    """Strong edges on one side, fine noise all over."""
    picture = numpy.asarray(lines(1056, 512, (728, 100, 856, 400))).astype(int)
    grain = numpy.random.default_rng(0).integers(-20, 20, picture.shape)
    noisy = Image.fromarray((picture + grain).clip(0, 255).astype(numpy.uint8))
    assert focal_position(noisy, (512, 512)) == pytest.approx(1.0, abs=1 / 16)
    assert focal_position(noisy, (512, 512)) == focal_position(noisy.copy(), (512, 512))


def test_a_mirrored_picture_has_the_mirrored_focus() -> None:
    picture = lines(1056, 512, (600, 100, 728, 400))
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    expected = 1 - focal_position(picture, (512, 512))
    assert focal_position(mirrored, (512, 512)) == pytest.approx(expected, abs=1 / 32)


def test_a_tiny_picture_has_a_focus() -> None:
    assert focal_position(Image.new("RGB", (3, 1)), (64, 64)) == 0.5
