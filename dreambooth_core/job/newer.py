"""What is told of a run that a newer version of the extension works on, or did."""

from __future__ import annotations

from dreambooth_core.errors import InputError, NewerVersionError
from dreambooth_core.job.events import WARNING, JobStarted, Notice, UnknownEvent, event_name
from dreambooth_core.job.formats import EVENTS, KEY

MISSING = "Some of it may be missing here."


def newer_notice(event: JobStarted | UnknownEvent, run_id: str) -> Notice | None:
    """Return that a newer version wrote the events, by the first of its worker; None if not so."""
    if isinstance(event, JobStarted):
        version: object = event.format
    elif event.event == event_name(JobStarted):
        version = event.data.get("format")
    else:
        return None
    try:
        EVENTS.version_of({KEY: version}, run_id)
    except NewerVersionError as error:
        return Notice(WARNING, f"{error} {MISSING}")
    except InputError:
        pass  # it says nothing of its version
    return None
