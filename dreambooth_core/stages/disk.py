"""Room on the disk, asked for before work starts."""

from __future__ import annotations

import shutil
from pathlib import Path

from dreambooth_core.errors import InputError

SPARE_BYTES = 64 * 2**20
"""Room that must be left beside what is to be written."""


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise InputError, naming both amounts, unless `needed` bytes and some spare are free.

    The folder is made if it is missing. `what` begins the sentence: "The model".
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed += SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{what} needs {needed / 2**30:.1f} GB, and {folder} has {free / 2**30:.1f} GB free.",
            remedy="Free some space on that disk.",
        )
