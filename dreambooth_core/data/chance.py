"""Random choices that depend on what they decide, never on the order in which they are asked for.

Each is a hash of (seed, purpose, address), so an epoch, a step or one example can be looked up
directly: resuming needs no replay, and no library version changes the outcome.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache


def draw(seed: int, purpose: str, *address: object) -> float:
    """Return a number uniform in 0 <= x < 1 that belongs to (seed, purpose, address)."""
    text = "\0".join(map(str, (seed, purpose, *address)))
    digest = hashlib.sha256(text.encode()).digest()
    return (int.from_bytes(digest[:8], "little") >> 11) / 2**53


@lru_cache(maxsize=64)
def permutation(seed: int, purpose: str, address: str, count: int) -> tuple[int, ...]:
    """Return 0 .. count-1 in the random order that belongs to (seed, purpose, address)."""
    return tuple(sorted(range(count), key=lambda index: draw(seed, purpose, address, index)))
