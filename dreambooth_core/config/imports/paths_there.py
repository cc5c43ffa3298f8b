"""Paths in other trainers' files: of any system, and only ever asked whether they are there."""

from __future__ import annotations

import re
from pathlib import Path

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
NOT_HERE = "This folder is not on this computer: choose it on the Concepts tab."
ELSEWHERE = "This folder is on another computer: choose it on the Concepts tab."


def is_network(text: str) -> bool:
    """Return whether a path leads to another computer; to ask for it would be to log in there."""
    return text.replace("\\", "/").startswith("//")


def is_folder(path: Path) -> bool:
    """Return whether a folder is there; a path that no system could have is not."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_absolute(text: str) -> bool:
    """Return whether a path is complete, on Linux or on Windows."""
    return text.startswith(("/", "\\", "~")) or bool(_DRIVE.match(text))


def last_part(text: str) -> str:
    """Return the last name in a path of any system."""
    return text.replace("\\", "/").rstrip("/").rpartition("/")[2]


def found_folder(text: str, base: Path | None) -> tuple[str, str]:
    """Return a folder's path as it is to be used here, and what to say of it.

    A relative path is counted from the file that it stands in, else from the folder that the
    program was started in.
    """
    text = text.strip()
    if is_network(text):
        return text, ELSEWHERE
    if is_absolute(text):
        return text, "" if is_folder(_expanded(text)) else NOT_HERE
    relative = text.replace("\\", "/")
    for start in (base, Path.cwd()):
        if start is not None and is_folder(start / relative):
            return str((start / relative).absolute()), "Counted from the file's own folder."
    return text, NOT_HERE


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)
