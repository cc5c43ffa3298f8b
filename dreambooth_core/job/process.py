"""Processes by their id: are they alive, are they still the same one, and how to end them."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path

_STILL_ACTIVE = 259
_QUERY_LIMITED_INFORMATION = 0x1000
_WINDOWS_KEY = r"SOFTWARE\Microsoft\Cryptography"


@cache
def this_machine() -> str:
    """Return what tells this machine or container from others that see the same folder.

    Its name comes first, up to a slash. Processes are known by their ids only within one.
    """
    return "/".join((socket.gethostname() or "unnamed", _installation(), _process_space()))


def machine_name(machine: str) -> str:
    """Return what people call a machine."""
    return machine.partition("/")[0]


def is_here(machine: str) -> bool:
    """Whether a process is one of this machine; files of before that was told count as its own."""
    return machine in ("", this_machine())


def start_mark(pid: int) -> str:
    """Return a text that tells this process from a later one of the same id; "" if none runs.

    Where the system does not say when a process began, the mark is "unknown" for a running one.
    """
    if sys.platform == "win32":
        return _windows_mark(pid)
    stat = Path(f"/proc/{pid}/stat")
    if not Path("/proc/self/stat").exists():
        return "unknown" if _signal_reaches(pid) else ""
    try:
        # The second field, the program's name in brackets, may hold spaces.
        fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    state, started = fields[0], fields[19]
    return "" if state in "ZX" else f"{_boot_id()}/{started}"


def is_running(pid: int, mark: str) -> bool:
    """Whether the process that had this id and mark still runs."""
    now = start_mark(pid)
    return bool(now) and (not mark or now == mark)


def end_process_tree(pid: int) -> None:
    """Kill a worker and the processes that it started; one that is gone already is no error."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(pid)], capture_output=True, check=False)
        return
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _installation() -> str:
    """Return what stays the same on a machine and differs on others, as far as the system tells."""
    if sys.platform == "win32":
        return _windows_installation()
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with suppress(OSError, ValueError):
            text = Path(path).read_text(encoding="ascii").strip()
            if text:
                return text
    node = uuid.getnode()
    made_up = node >> 40 & 1  # another number each time
    return "" if made_up else f"{node:012x}"


def _process_space() -> str:
    """Return the space in which process ids count: each container has its own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _windows_installation() -> str:
    import winreg

    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, _WINDOWS_KEY) as key:  # type: ignore[attr-defined,unused-ignore]
            return str(winreg.QueryValueEx(key, "MachineGuid")[0])  # type: ignore[attr-defined,unused-ignore]
    except OSError:
        return ""


def _signal_reaches(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _windows_mark(pid: int) -> str:
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = kernel.OpenProcess(_QUERY_LIMITED_INFORMATION, False, pid)
    if not handle:
        return ""
    handle = ctypes.c_void_p(handle)
    try:
        code = ctypes.c_ulong()
        times = [ctypes.c_ulonglong() for _ in range(4)]
        if not kernel.GetExitCodeProcess(handle, ctypes.byref(code)):
            return ""
        if code.value != _STILL_ACTIVE:
            return ""
        if not kernel.GetProcessTimes(handle, *[ctypes.byref(t) for t in times]):
            return "unknown"
        return str(times[0].value)
    finally:
        kernel.CloseHandle(handle)
