"""A run as the panel shows it, as JSON."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from dreambooth_core.job.launcher import Job
from dreambooth_core.job.run_view import RunReader

MOST_READERS = 8


class Readers:
    """Readers of the runs that were asked for last, so that only what is new is read."""

    def __init__(self) -> None:
        """Begin without any."""
        self._readers: OrderedDict[Path, RunReader] = OrderedDict()
        self._lock = threading.Lock()

    def view(self, job: Job) -> dict[str, Any]:
        """Return how a run stands, as JSON values."""
        with self._lock:
            reader = self._readers.pop(job.folder, None) or RunReader(job.folder, job)
            self._readers[job.folder] = reader
            if len(self._readers) > MOST_READERS:
                self._readers.popitem(last=False)
            return reader.poll().as_dict()


_READERS = Readers()


def view_of(job: Job) -> dict[str, Any]:
    """Return how a run stands, as JSON values."""
    return _READERS.view(job)
