"""The fake worker, which writes checkpoint files too: its first prompt is "save NAME ... ORDER"."""

from __future__ import annotations

import sys
from typing import Any

from dreambooth_core.config.schema import SampleConfig
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import CheckpointSaved
from tests import fake_worker


def run(config: SampleConfig, context: RunContext) -> dict[str, Any]:
    """Write the files named, then do what the last word says."""
    words = config.prompts[0].split()
    if words[0] == "save":
        for step, name in enumerate(words[1:-1], start=1):
            path = context.workspace.checkpoints_dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode())
            context.emit(CheckpointSaved(str(path), step, 0, "", path.stat().st_size))
    config.prompts[0] = words[-1]
    return fake_worker.run(config, context)


if __name__ == "__main__":
    sys.exit(fake_worker.work("tests.host_standin.worker"))
