"""How many processes the kernel has ended because memory ran out, by its own counters.

Linux counts for each group of processes with a limit (cgroup v1 and v2), and for the whole machine.
Noted when a worker starts and looked at again when it is gone, they tell why it is gone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")
COUNTER_FILES = {1: "memory.oom_control", 2: "memory.events"}
SURE, LIKELY, UNKNOWN = "sure", "likely", ""

_COUNT = re.compile(rb"^oom_kill (\d+)$", re.MULTILINE)


def note_kills(pid: int) -> dict[str, int]:
    """Return the counter that a process falls under, by the file it stands in.

    That of its group, if there is one, which counts whatever of the group is ended; else the
    machine's. Empty where the system has neither.
    """
    for path in [*_counters_of_groups(pid), _whole_machine()]:
        count = read_count(path)
        if count is not None:
            return {str(path): count}
    return {}


def killed_since(noted: Mapping[str, int]) -> str:
    """Return how sure it is that the kernel has ended something for memory since `noted`.

    SURE if the counter of a group has grown, LIKELY if that of the machine has, else UNKNOWN.
    """
    for path, before in noted.items():
        now = read_count(Path(path))
        if now is not None and now > before:
            return LIKELY if Path(path) == _whole_machine() else SURE
    return UNKNOWN


def read_count(path: Path) -> int | None:
    """Return the counter in a file of the kernel; None if there is none."""
    try:
        found = _COUNT.search(path.read_bytes())
    except OSError:
        return None
    return int(found[1]) if found else None


def memory_groups(pid: int | str = "self") -> list[tuple[int, Path]]:
    """Return the version and folder of each group that may limit a process's memory.

    In a container the name that the kernel gives often lies outside of it; the group is then what
    is mounted as the topmost, which comes last.
    """
    try:
        lines = (PROC / str(pid) / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, name = (*line.split(":", 2), "", "")[:3]
        folder = name.lstrip("/")
        if "memory" in controllers.split(","):
            found += [(1, GROUPS / "memory" / folder), (1, GROUPS / "memory")]
        elif not controllers:
            found += [(2, GROUPS / folder), (2, GROUPS / "unified" / folder), (2, GROUPS)]
    return found


def _counters_of_groups(pid: int) -> list[Path]:
    return [folder / COUNTER_FILES[version] for version, folder in memory_groups(pid)]


def _whole_machine() -> Path:
    return PROC / "vmstat"
