"""What a person has asked of the run so far; looked up between steps."""

from __future__ import annotations

from dreambooth_core.job.commands import CommandReader


class StopRequested(Exception):
    """Unwinds the preparation of a run that is told to stop before its first step."""


class Requests:
    """The commands that arrived and are not answered yet."""

    def __init__(self, commands: CommandReader) -> None:
        """Read from `commands`."""
        self._commands = commands
        self._open: set[str] = set()

    def look(self) -> None:
        """Take in the commands that arrived since the last look."""
        self._open.update(command.name for command in self._commands.poll())

    def wants(self, name: str) -> bool:
        """Whether the command `name` has arrived; it stays open."""
        return name in self._open

    def take(self, name: str) -> bool:
        """Whether the command `name` has arrived; it counts as answered from now on."""
        arrived = name in self._open
        self._open.discard(name)
        return arrived

    def put_back(self, name: str) -> None:
        """Count the command `name` as not answered yet."""
        self._open.add(name)

    def stop_if_asked(self) -> None:
        """Raise StopRequested if the run is to end although it has not made a step yet."""
        self.look()
        if self.wants("stop") or self.wants("stop_after_epoch"):
            raise StopRequested
