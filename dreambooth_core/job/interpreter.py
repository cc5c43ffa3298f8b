"""The Python that runs the trainer: its environment and how a module is started in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.errors import InputError

PACKAGE_ROOT = Path(__file__).resolve().parents[2]
MODULE_START = (
    "import os, runpy, sys;"
    "first = os.environ['PYTHONPATH'].split(os.pathsep);"
    "sys.path[:] = first + [path for path in sys.path if path and path not in first];"
    "sys.argv[:] = sys.argv[1:];"
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)
"""Puts PYTHONPATH first by itself, as a portable Python (one with a `._pth` file) ignores it."""

GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class WorkerPython:
    """The interpreter of workers, the folders put before its packages, and the GPU it may use.

    Without folders the interpreter has all it needs. The GPU is counted as the host counts them;
    "" leaves the choice as it is and "-1" hides every GPU.
    """

    python: str = sys.executable
    paths: tuple[Path, ...] = ()
    device_id: str = ""


def worker_environment(
    inherited: Mapping[str, str], paths: Sequence[Path] = (), device_id: str = ""
) -> dict[str, str]:
    """Return the worker's environment: `paths` and our package first, no Python paths of the host.

    One core is left to the rest of the machine: threads that wait for a busy core slow a step down
    several times over. `OMP_NUM_THREADS` is respected where it is set. Raises InputError for a
    GPU that the host does not have.
    """
    environment = without_python_paths(inherited)
    environment.update(
        PYTHONPATH=os.pathsep.join(map(str, [*paths, PACKAGE_ROOT])),
        PYTHONNOUSERSITE="1",
        PYTHONUNBUFFERED="1",
        PYTHONUTF8="1",
        HF_HUB_OFFLINE="1",
    )
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) - 1)))
    if device_id:
        environment[GPU_VARIABLE] = visible_gpu(device_id, environment.get(GPU_VARIABLE, ""))
    return environment


def without_python_paths(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what would mix other packages in."""
    dropped = ("PYTHONPATH", "PYTHONHOME")
    return {name: value for name, value in inherited.items() if name.upper() not in dropped}


def visible_gpu(device_id: str, visible: str) -> str:
    """Return which GPU the system calls what the host calls `device_id`.

    `visible` is the host's list of GPUs, if it was given one: its numbers count within that list.
    """
    listed = [name.strip() for name in visible.split(",") if name.strip()]
    if not listed or not device_id.isdecimal():
        return device_id
    if int(device_id) >= len(listed):
        raise InputError(
            f"GPU {device_id} was chosen, but {GPU_VARIABLE}={visible} shows only {len(listed)}.",
            remedy="Start with another --device-id, or show more GPUs.",
        )
    return listed[int(device_id)]


def module_command(python: str, module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module in a `worker_environment`."""
    return [python, "-s", "-u", "-X", "utf8", "-c", MODULE_START, module, *arguments]
