"""Buckets: equal area, the model's quantum, nearest by the logarithm of the aspect."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_core.data.buckets import MAX_AREA_RATIO, assign, make_buckets
from dreambooth_core.errors import InputError


def test_buckets_at_512_by_hand() -> None:
    """512 sqrt(a) and 512 / sqrt(a) in units of 64, rounded.

    a: 1 8x8, 1.25 8.94x7.16, 1.5 9.80x6.53, 1.75 10.58x6.05, 2 11.3x5.66, 2.5 12.6x5.06,
    3 13.9x4.62, 3.5 14.97x4.28, 4 16x4. Rounded 3 gives 14x5 = 70 units, within 1.1 * 64 = 70.4.
    """
    wide = [(8, 8), (9, 7), (10, 7), (11, 6), (13, 5), (14, 5), (15, 4), (16, 4)]
    sizes = {(64 * w, 64 * h) for w, h in wide} | {(64 * h, 64 * w) for w, h in wide}
    assert set(make_buckets(512, 64)) == sizes
    assert len(make_buckets(512, 64)) == 15


def test_buckets_of_the_small_world() -> None:
    """64 in units of 16: 4x4, 4.47x3.58, 4.9x3.27, 5.3x3.02, 5.66x2.83, 6.3x2.5, 6.9x2.3, 7.5x2.1.

    6x3 = 18 units exceeds 17.6 and loses a column (5x3); 3.5 gives 7x2, 4 gives 8x2.
    """
    wide = [(4, 4), (5, 3), (7, 2), (8, 2)]
    sizes = {(16 * w, 16 * h) for w, h in wide} | {(16 * h, 16 * w) for w, h in wide}
    assert set(make_buckets(64, 16)) == sizes


@settings(deadline=None)
@given(st.integers(64, 2048), st.sampled_from([8, 16, 32, 64]))
def test_properties_of_every_list(resolution: int, quantum: int) -> None:
    """Multiples of the quantum, at most 1.1 times the area, no doubles, symmetric, sorted."""
    buckets = make_buckets(resolution, quantum)
    assert all(w % quantum == 0 and h % quantum == 0 and min(w, h) > 0 for w, h in buckets)
    assert all(w * h <= MAX_AREA_RATIO * resolution**2 for w, h in buckets)
    assert len(set(buckets)) == len(buckets)
    assert {(h, w) for w, h in buckets} == set(buckets)
    aspects = [w / h for w, h in buckets]
    assert aspects == sorted(aspects)
    assert any(w == h for w, h in buckets)


@pytest.mark.parametrize(("resolution", "quantum"), [(512, 64), (768, 64), (1024, 64), (512, 8)])
def test_areas_are_nearly_equal_at_real_sizes(resolution: int, quantum: int) -> None:
    """None below 0.9 of the area."""
    areas = [w * h / resolution**2 for w, h in make_buckets(resolution, quantum)]
    assert min(areas) >= 0.9


def test_a_fine_quantum_has_a_bucket_for_every_aspect() -> None:
    """1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5 and 4 to 1, each met within 3 % in units of 8."""
    aspects = [w / h for w, h in make_buckets(512, 8) if w >= h]
    wanted = [1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4]
    assert aspects == pytest.approx(wanted, rel=0.03)


def test_a_resolution_below_the_quantum_is_explained() -> None:
    """With the setting's path and the smallest value."""
    with pytest.raises(InputError, match="32 is below the 64 pixels") as caught:
        make_buckets(32, 64)
    assert caught.value.field == "images.resolution"


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1000, 1000), (512, 512)),
        ((4000, 3000), (576, 448)),
        ((3000, 4000), (448, 576)),
        ((1920, 1080), (704, 384)),
        ((100, 1000), (256, 1024)),
        ((5000, 10), (1024, 256)),
    ],
)
def test_pictures_find_their_bucket(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """4:3 is off 9:7 by ln 1.037 = 0.036 and off 10:7 by 0.069; 16:9 is off 11:6 by 0.031."""
    assert assign(size, make_buckets(512, 64)) == expected


def test_the_logarithm_treats_portrait_as_landscape() -> None:
    """Aspect 0.72 between 1 and 0.5: linearly nearer to 0.5, by factors nearer to 1."""
    buckets = [(64, 128), (64, 64), (128, 64)]
    assert assign((72, 100), buckets) == (64, 64)
    assert assign((100, 72), buckets) == (64, 64)
    assert assign((70, 100), buckets) == (64, 128)
    assert assign((100, 70), buckets) == (128, 64)


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000))
def test_a_turned_picture_gets_the_turned_bucket(width: int, height: int) -> None:
    """Except for exact ties, which fall to one side."""
    buckets = make_buckets(512, 64)
    size = assign((width, height), buckets)
    turned = assign((height, width), buckets)
    aspect = abs(math.log(width / height))
    near = sorted(abs(abs(math.log(w / h)) - aspect) for w, h in buckets if w >= h)
    if near[1] - near[0] > 1e-9:
        assert turned == (size[1], size[0])
