"""The worker with a stage that does what its first prompt says, so that jobs need no torch."""

from __future__ import annotations

import atexit
import errno
import os
import sys
import time
from typing import Any

from dreambooth_core import worker
from dreambooth_core.config.schema import SampleConfig
from dreambooth_core.errors import CheckpointError
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import (
    Notice,
    PhaseProgress,
    PhaseStarted,
    StateSaved,
    StepDone,
)

SECONDS = 120.0
LINGERING_SECONDS = 1.5


def run(config: SampleConfig, context: RunContext) -> dict[str, Any]:
    """Do what the first prompt says."""
    order = config.prompts[0]
    context.emit(PhaseStarted("working", 2, "things"))
    context.emit(PhaseProgress("working", 1, 2))
    if order == "wait":
        return _wait_for_stop(context)
    if order == "die":
        sys.stderr.write("line before the end\n")
        sys.stderr.flush()
        os.kill(os.getpid(), 9)
    if order == "eat":
        return _eat(context)
    if order == "exit":
        os._exit(3)
    if order == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "model_12.safetensors.tmp")
    if order == "raise":
        raise RuntimeError("a bug")
    if order == "usage":
        raise CheckpointError("x.safetensors is damaged.", remedy="Get it again.", field="source")
    if order == "linger":
        atexit.register(time.sleep, LINGERING_SECONDS)
    context.emit(Notice("info", f"offline {os.environ.get('HF_HUB_OFFLINE')}"))
    return {"paths": ["one.png", "two.png"], "cwd": os.getcwd()}


def _eat(context: RunContext) -> dict[str, Any]:
    """Make three steps, save a state, and take memory without end."""
    context.emit(PhaseStarted("training", 9, "steps"))
    for step in (1, 2, 3):
        context.emit(StepDone(step, 9, 0, 0.5, 0.5))
    context.emit(StateSaved("state/run/step_00000003", 3))
    eaten = []
    while True:
        eaten.append(b"x" * 2**24)


def _wait_for_stop(context: RunContext) -> dict[str, Any]:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if any(command.name == "stop" for command in context.commands.poll()):
            return {"stopped": True, "step": 5}
        time.sleep(0.02)
    return {"gave_up": True}


def work(stage: str) -> int:
    """Be the worker, whose look at the machine is spared the seconds that loading torch takes."""
    worker.block_packages(["torch"])
    worker.STAGES["sample"] = stage
    return worker.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(work("tests.fake_worker"))
