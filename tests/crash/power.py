"""A power failure: what a killed worker had not brought to the disk is taken away again.

Only what POSIX promises is kept: the bytes of a file up to its last sync, and the names of a folder
as of its last sync. Of the later changes of a folder any first few may have arrived, and of the
later bytes of a file any first few, or zeros in their place.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

Change = dict[str, Any]


def fail(note: Path, workspace: Path, chance: random.Random) -> int:
    """Take away what was not synced; return how many files and names that changed."""
    try:
        lines = (note / "note.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0
    changes = [json.loads(line) for line in lines]
    return _cut_files(_unsynced_files(changes), workspace, chance) + _take_back(
        _unsynced_names(changes, chance)
    )


def _unsynced_files(changes: list[Change]) -> dict[int, int]:
    """Return how many bytes of each file that was written on are sure, by its inode."""
    sure: dict[int, int] = {}
    written: set[int] = set()
    for change in changes:
        inode = change.get("inode")
        if inode is None:
            continue
        if change["do"] == "write":
            sure.setdefault(inode, change["size"])
            sure[inode] = min(sure[inode], change["size"])
            written.add(inode)
        else:
            sure[inode] = change["size"]
            written.discard(inode)
    return {inode: size for inode, size in sure.items() if inode in written}


def _cut_files(sure: dict[int, int], workspace: Path, chance: random.Random) -> int:
    changed = 0
    for path in sorted(path for path in workspace.rglob("*") if path.is_file()):
        status = path.stat()
        if status.st_ino not in sure or status.st_size <= sure[status.st_ino]:
            continue
        kept = chance.randint(sure[status.st_ino], status.st_size)
        os.truncate(path, kept)
        if chance.random() < 0.5:
            os.truncate(path, status.st_size)  # a hole of zeros
        changed += 1
    return changed


def _unsynced_names(changes: list[Change], chance: random.Random) -> list[Change]:
    """Return the changes of names that did not arrive, oldest first."""
    waiting: dict[Path, list[tuple[int, Change]]] = defaultdict(list)
    for number, change in enumerate(changes):
        if change["do"] == "sync_folder":
            waiting[Path(change["path"])].clear()
        elif "path" in change:
            waiting[Path(change["path"]).parent].append((number, change))
    lost: list[tuple[int, Change]] = []
    for members in waiting.values():
        lost += members[chance.randint(0, len(members)) :] if members else []
    return [change for _, change in sorted(lost, key=lambda pair: pair[0])]


def _take_back(lost: list[Change]) -> int:
    for change in reversed(lost):
        path = Path(change["path"])
        if change["do"] == "rename" and os.path.lexists(path):
            os.rename(path, change["source"])
        elif change["do"] == "new":
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if change.get("kept"):
            _give_back(Path(change["kept"]), path)
    return len(lost)


def _give_back(kept: Path, path: Path) -> None:
    if kept.is_dir():
        shutil.copytree(kept, path, copy_function=os.link, dirs_exist_ok=True)
    elif not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(kept, path)
