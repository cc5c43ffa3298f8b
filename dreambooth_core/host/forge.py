"""Forge and reForge: A1111's WebUI with a memory manager of their own."""

from __future__ import annotations

import importlib
from typing import Any

from dreambooth_core.host.a1111 import A1111Host, lock_of

MANAGERS = ("backend.memory_management", "ldm_patched.modules.model_management")
"""The module that moves models between memories, in Forge and in reForge."""


class ForgeHost(A1111Host):
    """The WebUI of the process that we are in, whose models are loaded for each use."""

    name = "forge"

    def reclaim_memory(self) -> None:
        """Do nothing: a generation puts the models back on the GPU."""

    def _unload(self) -> None:
        from modules import sd_models

        manager = _memory_manager()
        with lock_of(sd_models.model_data):
            manager.unload_all_models()
        manager.soft_empty_cache()


def _memory_manager() -> Any:
    for name in MANAGERS:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith(error.name or "?"):
                raise
    raise ModuleNotFoundError(f"This Forge has none of {', '.join(MANAGERS)}.")
