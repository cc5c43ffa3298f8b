"""Every kind of file that remembers something: its version, and how an older one becomes today's.

A file says its version; one that was written before they did says none, which is version 0. A
migration is a pure function from a version's values to the next one's; they are applied one after
the other as a file is read, and the file itself stays as it is until it is written again. What a
newer version has written is refused, as to read half of it would be to lose the other.

What is not listed needs no number: the files of models and pictures have their own formats, the
trainer's packages lie under a hash of their pins, and a command that is not known is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.errors import InputError, NewerVersionError
from dreambooth_core.job import disk, plain_json

KEY = "version"
UPDATE = "Update the extension; until then nothing of it is changed."

Migration = Callable[[Any], dict[str, Any]]


@dataclass(frozen=True)
class Format:
    """A kind of file: what it is called, and the step from each version to the next.

    The first step is from version 0, so there are as many steps as the newest version says.
    """

    words: str
    steps: tuple[Migration, ...]

    @property
    def version(self) -> int:
        """The version that is written today."""
        return len(self.steps)

    def stamped(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is written: the values, after the version."""
        return {KEY: self.version, **values}

    def read(self, values: Any, path: Path | str) -> dict[str, Any]:
        """Return the values of a file as today's version has them, without the version.

        Raises NewerVersionError naming the file, or InputError for a version that is none. What
        the values of an older version lack is a KeyError or TypeError, as in a damaged file.
        """
        version = self.version_of(values, path)
        for step in self.steps[version:]:
            values = step(values)
        return {name: value for name, value in values.items() if name != KEY}

    def known(self, values: Any) -> dict[str, Any]:
        """Return values whatever version they say, or none that is one: what all versions tell."""
        if isinstance(values, Mapping):
            told = values.get(KEY)
            values = {**values, KEY: min(max(0, told), self.version) if type(told) is int else 0}
        return self.read(values, self.words)

    def refuse_newer(self, path: Path) -> None:
        """Raise NewerVersionError if a newer version has written a file, which then stays."""
        try:
            values = plain_json.parse(disk.read(path))
        except (OSError, ValueError, RecursionError):
            return
        if isinstance(values, dict) and isinstance(values.get(KEY), int):
            self.version_of({KEY: max(0, values[KEY])}, path)

    def version_of(self, values: Any, path: Path | str) -> int:
        """Return a file's version; raises NewerVersionError or InputError naming the file."""
        version = values.get(KEY, 0) if isinstance(values, Mapping) else 0
        if isinstance(version, bool) or not isinstance(version, int) or version < 0:
            raise InputError(
                f"{path} says that its version is {version!r}, which is none.",
                remedy="Restore the file, or delete it.",
            )
        if version > self.version:
            raise NewerVersionError(
                f"{self.words} {path} was written by a newer version of the extension: its format"
                f" is {version}, and this one reads up to {self.version}.",
                remedy=UPDATE,
            )
        return version


def unchanged(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a version that differs from the next in its number only."""
    return dict(values)


def _named_settings(name: str) -> Migration:
    """Return the step to settings that say their own version inside another file."""

    def step(values: Mapping[str, Any]) -> dict[str, Any]:
        return {**values, name: {KEY: 0, **values[name]}}

    return step


def _with_machine(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a process that was named before other machines' ones could be told apart."""
    return {"machine": "", **values}


def _layout_with_name(values: Any) -> dict[str, Any]:
    """Return the layout of a checkpoint, which was a bare list of its tensors."""
    return {"tensors": list(values)}


def _with_sums(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a state says of itself, which had only the sizes of its files."""
    files = {name: {"size": size, "crc32": ""} for name, size in values["files"].items()}
    return {**_named_settings("settings")(values), "files": files}


MODEL = Format("The model's record", (unchanged,))
LAYOUT = Format("The layout", (_layout_with_name,))
RUN = Format("The run file", (_named_settings("config"),))
STATE = Format("The training state", (unchanged, _with_sums))
EVENTS = Format("The events of the run", (unchanged,))
PROCESS = Format("The name of the process", (_with_machine,))
LOCK = Format("The lock", (_with_machine,))
PRESET = Format("The preset", (unchanged,))
MACHINE = Format("What is known of the machine", (unchanged,))
COMPARISON = Format("The comparison's numbers", (unchanged,))
LATENTS = Format("The kept latents", ())
"""Its version is part of the key that a file is called by, so that none is read as another."""
