"""What handlers return and raise, and how an error becomes a status code and a JSON object."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response

from dreambooth_core.errors import (
    BusyError,
    ConfigError,
    DreamboothError,
    FullDiskError,
    ModelExistsError,
    ModelNotFoundError,
    UsageError,
)
from dreambooth_core.job.events import Event, JobFailed
from dreambooth_core.job.full_disk import is_full
from dreambooth_core.job.launcher import Job

STATUS_OF_ERROR: tuple[tuple[type[DreamboothError], int], ...] = (
    (BusyError, 409),
    (ModelExistsError, 409),
    (ModelNotFoundError, 404),
    (FullDiskError, 507),
    (UsageError, 422),
    (DreamboothError, 503),
)
"""The first class that an error is of decides; 503 is "cannot now", such as a failed set-up."""

STATUS_OF_OS_ERROR = {
    errno.ENAMETOOLONG: (422, "Use shorter names."),
    errno.EINVAL: (422, "Use plain names."),
    errno.EACCES: (403, "Check the file's permissions."),
    errno.EROFS: (403, "Check the disk's permissions."),
}


class Refused(DreamboothError):
    """A request that is answered with the given HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        remedy: str = "",
        field: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Keep the status, the words and the headers that the answer carries."""
        super().__init__(message, remedy=remedy, field=field)
        self.status = status
        self.headers = headers or {}


@dataclass(frozen=True)
class Waiting:
    """An answer that waits for a job: `then` makes it from the final event, off the event loop."""

    job: Job
    then: Callable[[Event], Response]


Answer = Response | Waiting


def not_found(message: str, remedy: str = "", field: str = "") -> Refused:
    """Return the error for something that is not there."""
    return Refused(404, message, remedy=remedy, field=field)


def unprocessable(message: str, remedy: str = "", field: str = "") -> Refused:
    """Return the error for a value that cannot be used."""
    return Refused(422, message, remedy=remedy, field=field)


def ok(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return a JSON response."""
    return JSONResponse(content, status_code=status, headers=headers)


def error_response(error: DreamboothError) -> JSONResponse:
    """Return an error as {"message", "remedy", "field"}, several settings' also as "problems"."""
    content: dict[str, Any] = {
        "message": error.message,
        "remedy": error.remedy,
        "field": error.field,
    }
    if isinstance(error, ConfigError):
        content["problems"] = [
            {"field": p.field, "message": p.message, "remedy": p.remedy} for p in error.problems
        ]
    headers = error.headers if isinstance(error, Refused) else None
    return ok(content, status_of(error), headers)


def status_of(error: DreamboothError) -> int:
    """Return the HTTP status that an error is answered with."""
    if isinstance(error, Refused):
        return error.status
    return next(status for kind, status in STATUS_OF_ERROR if isinstance(error, kind))


def os_error(error: OSError) -> Refused:
    """Return the error for something that the file system refused."""
    status, remedy = STATUS_OF_OS_ERROR.get(error.errno or 0, (500, "See the log of the server."))
    if is_full(error):
        status, remedy = 507, "Free some space."
    where = f"{error.filename}: " if error.filename else ""
    return Refused(status, f"{where}{error.strerror or error}.", remedy=remedy)


def job_failure(failed: JobFailed) -> Refused:
    """Return the error for a job that was waited for and failed: 422 if the input was at fault."""
    status = 422 if failed.exit_code == 2 else 500
    return Refused(status, failed.message, remedy=failed.remedy, field=failed.field)
