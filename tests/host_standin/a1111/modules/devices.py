"""Memory of the GPU."""

from __future__ import annotations

from modules.seen import note


def torch_gc():
    note("torch_gc")
