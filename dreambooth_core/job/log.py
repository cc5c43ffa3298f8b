"""What a run's worker and its libraries printed, as it is shown to a person."""

from __future__ import annotations

import os
from pathlib import Path

from dreambooth_core.job import disk
from dreambooth_core.job.runs import log_path

TAIL_BYTES = 256 * 1024
"""A log may be long; a line that begins before that is shown from there."""


def log_tail(folder: Path, count: int) -> list[str]:
    """Return the last lines of the run's log; of a progress bar only what it showed last.

    Empty lines are left out.
    """
    try:
        with disk.open_read(log_path(Path(folder))) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read(TAIL_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return []
    shown = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return [line for line in shown if line.strip()][-count:] if count > 0 else []
