"""What the API needs of the host and of the conductor; both are given to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dreambooth_core.config.schema import JobConfig
from dreambooth_core.errors import DreamboothError
from dreambooth_core.job.launcher import Job
from dreambooth_core.job.workspace import Workspace


class ApiHost(Protocol):
    """The part of a host that the API uses."""

    def workspace(self) -> Workspace:
        """Return where models, checkpoints and runs lie."""

    def checkpoint_names(self) -> list[str]:
        """Return the checkpoints that a model can be made from."""

    def lora_dir(self) -> Path:
        """Return the folder of LoRA files."""

    def api_credentials(self) -> Mapping[str, str]:
        """Return the passwords of the users who may call, by name; none lets everybody call."""

    def allows_origin(self, origin: str) -> bool:
        """Whether pages of another site ("https://a.example") may use the API."""


class ApiConductor(Protocol):
    """The part of the conductor that the API uses."""

    @property
    def problem(self) -> DreamboothError | None:
        """Why the last job could not be started."""

    def start(self, kind: str, config: JobConfig) -> Job:
        """Start a job; raises ConfigError or BusyError."""

    def job(self) -> Job | None:
        """Return the running job, else the newest."""

    def preparing(self) -> str:
        """Return what is being done before the worker starts, or ""."""


@dataclass(frozen=True)
class Services:
    """The host and the conductor."""

    host: ApiHost
    conductor: ApiConductor

    @property
    def workspace(self) -> Workspace:
        """Where models, checkpoints and runs lie."""
        return self.host.workspace()
