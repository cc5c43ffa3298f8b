"""A worker process whose stage does what its first prompt says, without torch, so that it is quick.

finish  wait (until it is told to stop)  die  exit  usage  raise
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from dreambooth_core import worker
from dreambooth_core.config.schema import SampleConfig
from dreambooth_core.errors import CheckpointError
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import PhaseProgress, PhaseStarted

SECONDS = 120.0
POLL_SECONDS = 0.01


def run(config: SampleConfig, context: RunContext) -> dict[str, Any]:
    """Do what the first prompt says."""
    order = config.prompts[0]
    context.emit(PhaseStarted("working", 2, "things"))
    context.emit(PhaseProgress("working", 1, 2))
    if order == "die":
        os.kill(os.getpid(), signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
    if order == "exit":
        os._exit(3)
    if order == "usage":
        raise CheckpointError("x.safetensors is damaged.", remedy="Get it again.", field="source")
    if order == "raise":
        raise RuntimeError("a bug")
    return _wait_for_stop(context) if order == "wait" else {"paths": ["one.png"]}


def _wait_for_stop(context: RunContext) -> dict[str, Any]:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if any(command.name == "stop" for command in context.commands.poll()):
            return {"stopped": True, "step": 5}
        time.sleep(POLL_SECONDS)
    return {"gave_up": True}


if __name__ == "__main__":
    worker.block_packages(["torch"])
    worker.STAGES["sample"] = "benchmarks._soak_worker"
    sys.exit(worker.main(sys.argv[1:]))
