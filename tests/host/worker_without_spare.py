"""The worker as it is when something else takes the disk's room after the worker looked at it."""

from __future__ import annotations

import sys

from dreambooth_core import worker
from dreambooth_core.stages import disk

if __name__ == "__main__":
    disk.SPARE_BYTES = -(2**40)
    sys.exit(worker.main(sys.argv[1:]))
