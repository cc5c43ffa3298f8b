"""The fake worker, deaf to commands: only killing ends it."""

from __future__ import annotations

import sys

from dreambooth_core import worker
from dreambooth_core.job.commands import CommandReader

if __name__ == "__main__":
    CommandReader.poll = lambda self: []  # type: ignore[method-assign]
    worker.STAGES["sample"] = "tests.fake_worker"
    sys.exit(worker.main(sys.argv[1:]))
