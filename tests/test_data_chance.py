"""Addressed randomness: pinned, uniform, independent of order."""

from __future__ import annotations

from collections import Counter

import pytest

from dreambooth_core.data.chance import draw, permutation


def test_a_draw_is_pinned() -> None:
    r"""Golden: (sha256(b"7\0flip\0class\x000\x003")[:8] little-endian >> 11) / 2^53 by hashlib.

    A change here would change every epoch of a run that is resumed.
    """
    assert draw(7, "flip", "class", 0, 3) == 0.790677896991963


def test_draws_are_uniform() -> None:
    """10,000 draws lie in 0..1, each tenth holds 1000 within 5 standard deviations (150)."""
    draws = [draw(1, "flip", index) for index in range(10_000)]
    assert all(0 <= value < 1 for value in draws)
    counts = Counter(int(value * 10) for value in draws)
    assert max(abs(counts[tenth] - 1000) for tenth in range(10)) < 150


@pytest.mark.parametrize("other", [(2, "a", "x"), (1, "b", "x"), (1, "a", "y"), (11, "", "ax")])
def test_each_part_of_the_address_matters(other: tuple[int, str, str]) -> None:
    """Another seed, purpose or address is another number and another order."""
    assert draw(*other) != draw(1, "a", "x")
    assert permutation(*other, 20) != permutation(1, "a", "x", 20)


def test_a_permutation_holds_each_index_once() -> None:
    """At every length from none on."""
    for count in (0, 1, 2, 57):
        assert sorted(permutation(3, "order", "0", count)) == list(range(count))


def test_permutations_are_uniform() -> None:
    """Each of the 6 orders of 3 comes 500 times in 3000, within 5 standard deviations (102)."""
    counts = Counter(permutation(0, "order", str(epoch), 3) for epoch in range(3000))
    assert len(counts) == 6
    assert max(abs(count - 500) for count in counts.values()) < 102
