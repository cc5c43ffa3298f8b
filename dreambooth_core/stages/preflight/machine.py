"""What memory the machine has; asked of the system and of NVIDIA's driver, not of torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from dreambooth_core.job.oom_kills import memory_groups

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
GROUP_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    2: ("memory.max", "memory.current"),
}
"""By the version of the groups of processes; without a limit it is far more than any memory."""
QUERY = ("--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
PATIENCE_SECONDS = 10.0
MIB = 2**20
NO_WINDOW: int = getattr(subprocess, "CREATE_NO_WINDOW", 0)
"""On Windows, a program of the command line opens no window of its own."""


@dataclass(frozen=True)
class Machine:
    """The device that a training computes on, and the memory there is; 0 where it is not known.

    `vram_bytes` is all of the GPU's memory: what the host's model takes of it is freed before a
    training starts. `ram_bytes` is what is free in the main memory, within a container's limit.
    """

    device: str
    vram_bytes: int
    ram_bytes: int

    @property
    def is_gpu(self) -> bool:
        """Whether training computes on a GPU."""
        return self.device != "cpu"


def find_machine(device: str) -> Machine:
    """Return the machine as a training on `device` ("auto", "cpu", "cuda:1") would find it."""
    gpus = [] if device == "cpu" else find_gpus()
    ram = free_ram()
    number = int(device.partition(":")[2] or 0)
    if device == "cpu" or (device == "auto" and not gpus):
        return Machine("cpu", 0, ram)
    if number < len(gpus):
        return Machine(*gpus[number], ram)
    return Machine(device, 0, ram)


def find_gpus() -> list[tuple[str, int]]:
    """Return the name and bytes of each NVIDIA GPU, in the order in which torch counts them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        answer = subprocess.run(
            [program, *QUERY],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=True,
            creationflags=NO_WINDOW,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return visible(parse(answer.stdout), os.environ.get("CUDA_VISIBLE_DEVICES"))


def parse(answer: str) -> list[tuple[str, int]]:
    """Return what the driver's program answered, line by line; lines that are no GPU are passed."""
    rows = [line.rpartition(",") for line in answer.splitlines()]
    return [
        (name.strip(), int(size) * MIB) for name, _, size in rows if name and size.strip().isdigit()
    ]


def visible(gpus: list[tuple[str, int]], chosen: str | None) -> list[tuple[str, int]]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves; it is not followed where it has names."""
    numbers = (chosen or "").split(",")
    if chosen is None or not all(number.strip().lstrip("-").isdigit() for number in numbers):
        return gpus if chosen != "" else []
    kept = [int(number) for number in numbers]
    return [gpus[number] for number in kept if 0 <= number < len(gpus)]


def free_ram() -> int:
    """Return the bytes that a new process can take of the main memory."""
    free = int(psutil.virtual_memory().available)
    return min([free, *(room for room in map(_room, _limits()) if room is not None)])


def _limits() -> Iterator[tuple[Path, Path]]:
    """Yield the files with the limit and the use of each group that this process may be in."""
    yield CGROUP_LIMIT, CGROUP_LIMIT.with_name("memory.current")
    for version, folder in memory_groups():
        limit, used = GROUP_FILES[version]
        yield folder / limit, folder / used


def _room(files: tuple[Path, Path]) -> int | None:
    try:
        limit, used = (path.read_text(encoding="ascii").strip() for path in files)
    except OSError:
        return None
    return max(0, int(limit) - int(used)) if limit.isdigit() else None
