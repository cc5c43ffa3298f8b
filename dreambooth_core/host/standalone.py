"""No WebUI: our own page, in a Python that has everything."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from dreambooth_core.host.base import names_of_checkpoints
from dreambooth_core.job.interpreter import WorkerPython
from dreambooth_core.job.overlay import Overlay
from dreambooth_core.job.workspace import Workspace


class StandaloneHost:
    """A folder to work in; there is no other model in memory and no other user of it."""

    name = "standalone"

    def __init__(self, workspace: Workspace, credentials: Mapping[str, str] | None = None) -> None:
        """Work in a folder; `credentials` are passwords by user name, where one is asked for."""
        self._workspace = workspace
        self._credentials = dict(credentials or {})

    def workspace(self) -> Workspace:
        """Return the folder."""
        return self._workspace

    def checkpoint_names(self) -> list[str]:
        """Return the files in the checkpoints folder."""
        return names_of_checkpoints(self._workspace, [])

    def lora_dir(self) -> Path:
        """Return the folder of LoRA files, as a WebUI would name it."""
        return self._workspace.lora_dir

    def overlay(self) -> Overlay | None:
        """Return None: this Python was made for us."""
        return None

    def worker(self) -> WorkerPython:
        """Return this Python."""
        return WorkerPython()

    def release_memory(self) -> None:
        """Do nothing: there is no other model."""

    def reclaim_memory(self) -> None:
        """Do nothing: there is no other model."""

    def checkpoint_saved(self, path: Path, sha256: str) -> None:
        """Do nothing: whoever lists checkpoints reads the folder."""

    def generation_allowed(self) -> bool:
        """Return True: nobody else generates."""
        return True

    def hold_generation(self) -> AbstractContextManager[None]:
        """Hold nothing."""
        return nullcontext()

    def api_credentials(self) -> Mapping[str, str]:
        """Return the passwords that the page asks for."""
        return self._credentials

    def allows_origin(self, origin: str) -> bool:
        """Return False: only our own page uses the API from a browser."""
        return False
