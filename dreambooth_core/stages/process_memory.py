"""How much memory this process took at most."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import psutil
import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
PEAK_LINE = "VmHWM:"


def peak_memory(device: torch.device) -> int:
    """Return the most bytes taken since the last reset: of the GPU, or of the RAM on a CPU.

    Where the system cannot reset it (all but Linux), a peak of the RAM is that of the process.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    if STATUS.exists():
        lines = STATUS.read_text(encoding="utf-8", errors="replace").splitlines()
        peak = next((line for line in lines if line.startswith(PEAK_LINE)), "")
        return int(peak.split()[1]) * 1024 if peak else _resident()
    return _resident()


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif RESET.exists():
        with contextlib.suppress(OSError):  # some containers do not let a process do it
            RESET.write_text(RESET_PEAK, encoding="ascii")


def _resident() -> int:
    memory = psutil.Process().memory_info()
    if sys.platform == "win32":
        return int(memory.peak_wset)
    return int(memory.rss)
