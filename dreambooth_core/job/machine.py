"""What this machine cannot do, as the last worker found it: the page tells it without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dreambooth_core.errors import InputError
from dreambooth_core.job import disk, plain_json
from dreambooth_core.job.formats import MACHINE
from dreambooth_core.job.lock import alone
from dreambooth_core.job.storage import atomic_write_json
from dreambooth_core.job.workspace import Workspace

MACHINE_FILE = "machine.json"

Unavailable = Mapping[str, Mapping[str, str]]
"""By the path of a setting: its choices that cannot be used here, and why not."""


def machine_path(workspace: Workspace) -> Path:
    """Return the file in which it stands."""
    return workspace.jobs_dir / MACHINE_FILE


def note_unavailable(workspace: Workspace, found: Unavailable) -> None:
    """Remember what cannot be used on this machine, in place of what was found before."""
    with alone(machine_path(workspace)):
        if found != unavailable(workspace) or not machine_path(workspace).exists():
            atomic_write_json(machine_path(workspace), MACHINE.stamped({"unavailable": found}))


def unavailable(workspace: Workspace) -> Unavailable:
    """Return what cannot be used on this machine; nothing if no worker has looked yet."""
    try:
        path = machine_path(workspace)
        told = MACHINE.read(plain_json.parse(disk.read(path)), path)["unavailable"]
        return {str(path): dict(choices) for path, choices in told.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
        return {}
