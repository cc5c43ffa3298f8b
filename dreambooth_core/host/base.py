"""What the tabs, the API and the conductor need of the program that they run in."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from dreambooth_core.job.interpreter import WorkerPython
from dreambooth_core.job.overlay import Overlay
from dreambooth_core.job.workspace import Workspace


class Host(Protocol):
    """A WebUI, or our own page where there is none."""

    @property
    def name(self) -> str:
        """Return "a1111", "forge" (reForge too) or "standalone"."""

    def workspace(self) -> Workspace:
        """Return where models, checkpoints and runs lie."""

    def checkpoint_names(self) -> list[str]:
        """Return the checkpoint files, as paths in the checkpoints folder where they are in it."""

    def lora_dir(self) -> Path:
        """Return the folder of LoRA files."""

    def overlay(self) -> Overlay | None:
        """Return the trainer's own packages; None where the Python has all that is needed."""

    def worker(self) -> WorkerPython:
        """Return the Python that jobs run in; its overlay may still have to be made."""

    def release_memory(self) -> None:
        """Unload the host's model, when it is not generating."""

    def reclaim_memory(self) -> None:
        """Let the host's model come back when it is needed."""

    def checkpoint_saved(self, path: Path, sha256: str) -> None:
        """Make a new checkpoint file known to all parts of the host."""

    def generation_allowed(self) -> bool:
        """Whether the host may make pictures while a job runs."""

    def hold_generation(self) -> AbstractContextManager[None]:
        """Wait for the host's turn and keep it until the end, so that generation waits."""

    def api_credentials(self) -> Mapping[str, str]:
        """Return the passwords of the users who may call the API, by name; none: everybody may."""

    def allows_origin(self, origin: str) -> bool:
        """Whether pages of another site ("https://a.example") may use the API."""


_CHOSEN: list[Host] = []


def set_host(host: Host) -> None:
    """Say which program this is; done once, before anything asks."""
    _CHOSEN[:] = [host]


def current_host() -> Host:
    """Return the program that we run in."""
    if not _CHOSEN:
        raise RuntimeError("set_host was not called: scripts/dreambooth.py or ui.app does")
    return _CHOSEN[0]


def has_host() -> bool:
    """Whether set_host was called."""
    return bool(_CHOSEN)


def names_of_checkpoints(workspace: Workspace, others: list[Path]) -> list[str]:
    """Return the names of the files in the checkpoints folder and of others, which keep their path.

    `Workspace.find_checkpoint` finds the file of each name again.
    """
    folder = workspace.checkpoints_dir
    names = set()
    for path in [*workspace.checkpoints(), *others]:
        if path.stem.endswith(".vae"):
            continue
        inside = path.is_relative_to(folder)
        names.add(path.relative_to(folder).as_posix() if inside else str(path))
    return sorted(names, key=str.lower)
