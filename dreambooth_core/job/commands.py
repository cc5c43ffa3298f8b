"""What a person asks of a running job: one JSON line per command in the run's `commands.jsonl`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreambooth_core.errors import InputError
from dreambooth_core.job.full_disk import told_if_full
from dreambooth_core.job.json_lines import read_lines
from dreambooth_core.job.storage import append_line

COMMANDS_FILE = "commands.jsonl"

COMMANDS = {
    "stop": "stop after the current step and save as the settings say",
    "stop_after_epoch": "stop at the end of the current epoch and save as the settings say",
    "save": "save a checkpoint now and go on",
    "sample": "make preview pictures now and go on",
}


@dataclass(frozen=True)
class Command:
    """A request to a running job."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


def send(run_folder: Path, command: Command) -> None:
    """Append the command to the run's file; raises InputError for a name that is not known."""
    if command.name not in COMMANDS:
        raise InputError(
            f"There is no command {command.name!r}.", remedy=f"Known: {', '.join(COMMANDS)}."
        )
    line = json.dumps({"command": command.name, "arguments": command.arguments}, allow_nan=False)
    with told_if_full(f"The command {command.name}"):
        append_line(Path(run_folder) / COMMANDS_FILE, line)


class CommandReader:
    """Reads the commands that arrived since the last look."""

    def __init__(self, path: Path) -> None:
        """Read from `path`, which need not exist yet."""
        self.path = Path(path)
        self._offset = 0

    def poll(self) -> list[Command]:
        """Return the new commands, oldest first; names that are not known are left out."""
        lines, self._offset = read_lines(self.path, self._offset)
        return [
            Command(line["command"], line.get("arguments") or {})
            for line in lines
            if line.get("command") in list(COMMANDS)
            and isinstance(line.get("arguments") or {}, dict)
        ]
