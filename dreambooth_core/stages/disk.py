"""Room on the disk, asked for before work starts."""

from __future__ import annotations

import shutil
from pathlib import Path

from dreambooth_core.errors import FullDiskError
from dreambooth_core.job import disk

SPARE_BYTES = 64 * 2**20
"""Room that must be left beside what is to be written."""


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise FullDiskError, naming both amounts, unless `needed` bytes and some spare are free.

    The folder is made if it is missing. `what` begins the sentence: "The model".
    """
    disk.make_folder(folder)
    needed += SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        error = FullDiskError(
            f"{what} needs {needed / 2**30:.1f} GB, and {folder} has {free / 2**30:.1f} GB free.",
            remedy="Free some space on that disk.",
        )
        error.folder, error.needed = str(folder), needed
        raise error
