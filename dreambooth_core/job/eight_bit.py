"""The package of the 8-bit optimizers: large, for NVIDIA GPUs alone, installed when one is chosen.

It has a folder of its own beside the trainer's packages. Which version is pinned depends on torch.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys

from dreambooth_core.config.schema import JobConfig, TrainConfig
from dreambooth_core.config.sections.optimizer import EIGHT_BIT_OPTIMIZERS
from dreambooth_core.errors import ConfigError, OverlayError, Problem
from dreambooth_core.job.interpreter import PACKAGE_ROOT, WorkerPython, worker_environment
from dreambooth_core.job.overlay import Overlay
from dreambooth_core.job.overlay_state import read_facts
from dreambooth_core.job.pip_install import Report, no_window

OLDEST_TORCH_OF_NEW = (2, 4)
"""From this torch on the newest bitsandbytes is used, before it the last that takes older ones."""

STEPPING_KINDS = ("train", "dry-run")
EIGHT_BIT_TEST_WORD = "--self-test-eight-bit"
NEEDED_BYTES = 500 * 1024**2
GPU_CODE = "import torch; print(torch.cuda.is_available() and bool(torch.version.cuda))"
LOOKING_SECONDS = 300.0


def wants_eight_bit(kind: str, config: JobConfig) -> bool:
    """Return whether a job needs the package: one that makes steps with an 8-bit optimizer."""
    if kind not in STEPPING_KINDS or not isinstance(config, TrainConfig):
        return False
    return config.optimizer.name in EIGHT_BIT_OPTIMIZERS


def eight_bit_overlay(python: str = sys.executable) -> Overlay:
    """Return the overlay with the bitsandbytes that fits the torch of an interpreter."""
    match = re.match(r"(\d+)\.(\d+)", read_facts(python).torch)
    numbers = (int(match[1]), int(match[2])) if match else (0, 0)
    name = "eight-bit" if numbers >= OLDEST_TORCH_OF_NEW else "eight-bit-old-torch"
    return Overlay(
        PACKAGE_ROOT / ".trainer-packages" / "eight-bit",
        PACKAGE_ROOT / "requirements" / f"{name}.txt",
        python,
        test_word=EIGHT_BIT_TEST_WORD,
        needed_bytes=NEEDED_BYTES,
    )


def with_eight_bit(worker: WorkerPython, report: Report) -> WorkerPython:
    """Return the Python of a worker with the package, which is installed first if it is not yet.

    Raises ConfigError where there is no GPU for it, before anything is fetched, or OverlayError.
    """
    overlay = eight_bit_overlay(worker.python)
    if not overlay.state().ready:
        require_gpu(worker)
        overlay.make(report)
    return dataclasses.replace(worker, paths=(*worker.paths, overlay.folder))


def require_gpu(worker: WorkerPython) -> None:
    """Raise ConfigError if the torch that workers run on sees no NVIDIA GPU."""
    environment = worker_environment(os.environ, worker.paths, worker.device_id)
    try:
        seen = subprocess.check_output(
            [worker.python, "-s", "-c", GPU_CODE],
            env=environment,
            encoding="utf-8",
            timeout=LOOKING_SECONDS,
            **no_window(),
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise OverlayError(
            f"The Python {worker.python} could not be asked for its GPU.",
            remedy="Choose an optimizer without 8bit in its name, or try again.",
        ) from error
    if seen.strip() != "True":
        problem = "is an 8-bit one, which needs an NVIDIA GPU, and torch sees none here."
        raise ConfigError([Problem("optimizer.name", problem, "Choose adamw or lion.")])
