"""The fake worker, deaf to commands: only killing ends it."""

from __future__ import annotations

import sys

from dreambooth_core.job.commands import CommandReader
from tests.fake_worker import work

if __name__ == "__main__":
    CommandReader.poll = lambda self: []  # type: ignore[method-assign]
    sys.exit(work("tests.fake_worker"))
