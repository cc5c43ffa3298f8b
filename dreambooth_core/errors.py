"""The exception tree of the product.

    DreamboothError                 exit 1
    |-- UsageError                  exit 2: found before any work started, nothing was written
    |   |-- ConfigError             settings that are unknown, mistyped, out of range or in conflict
    |   |-- InputError              a file, folder or name that cannot be used
    |   |   |-- CheckpointError     a checkpoint file that cannot be read
    |   |   |   `-- UnsupportedFamilyError
    |   |   |-- ModelNotFoundError
    |   |   |-- ModelExistsError
    |   |   |-- NewerVersionError       a file that a newer version of the extension has written
    |   |   `-- FullDiskError           a disk without the room for a file
    |   `-- BusyError               another job is using the model
    |-- TrainingError               exit 1: training had to give up
    |   `-- NonFiniteError          a loss or weight became NaN or infinite
    |-- OverlayError                exit 1: the trainer's own packages are not there or do not work
    `-- JobFailedError              exit 1: a job run in the worker process failed

Every message names the file, field or value; the remedy says what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class DreamboothError(Exception):
    """An error that is explained to the person in their own words."""

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "", field: str = "") -> None:
        """Keep the message, what to do about it and the setting that caused it (each may be "")."""
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.field = field

    def __str__(self) -> str:
        """Return the message followed by the remedy."""
        return f"{self.message} {self.remedy}".rstrip()


class UsageError(DreamboothError):
    """Something asked for cannot be done; found before work starts."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration: the setting's path, what is wrong, what to do."""

    field: str
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        """Return the problem as one line."""
        where = f"{self.field}: " if self.field else ""
        return f"{where}{self.message} {self.remedy}".rstrip()


class ConfigError(UsageError):
    """One or more settings cannot be used."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        """Keep all problems; the message lists them one per line."""
        if not problems:
            raise ValueError("ConfigError needs at least one problem")
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)), field=self.problems[0].field)


class InputError(UsageError):
    """A file, folder or name that was given cannot be used."""


class CheckpointError(InputError):
    """A checkpoint file is missing, damaged or not what it should be."""


class UnsupportedFamilyError(CheckpointError):
    """A checkpoint was recognised, but its model family is not supported."""


class ModelNotFoundError(InputError):
    """There is no model of this name."""


class ModelExistsError(InputError):
    """A model of this name exists already."""


class NewerVersionError(InputError):
    """A newer version of the extension has written a file, so that it can only be left alone."""


class FullDiskError(InputError):
    """A disk has no room for a file; `folder` is on it, and `needed` bytes are to be free there."""

    folder: str = ""
    needed: int = 0


class BusyError(UsageError):
    """Another job is using the model."""


class TrainingError(DreamboothError):
    """Training cannot go on."""


class NonFiniteError(TrainingError):
    """A number that must be finite is NaN or infinite.

    Of a step that was not made `what` says which ("loss"), and `examples` are the numbers of those
    in it whose loss is not finite.
    """

    what: str = ""
    examples: tuple[int, ...] = ()


class OverlayError(DreamboothError):
    """The trainer's own packages could not be installed, or do not work here."""


class JobFailedError(DreamboothError):
    """A job failed in the worker process."""
