"""What was done to the stand-in, in order; tests read it."""

from __future__ import annotations

CALLS: list[str] = []


def note(call: str) -> None:
    CALLS.append(call)
