"""What a stage is given besides its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.job.commands import CommandReader
from dreambooth_core.job.events import WARNING, Event, Notice
from dreambooth_core.job.workspace import Workspace


@dataclass(frozen=True)
class RunContext:
    """One run: where its files are, how it reports and where it looks for commands."""

    workspace: Workspace
    run_id: str
    folder: Path
    emit: Callable[[Event], None]
    commands: CommandReader

    def warn(self, sentence: str) -> None:
        """Report something worth reading."""
        self.emit(Notice(WARNING, sentence))
