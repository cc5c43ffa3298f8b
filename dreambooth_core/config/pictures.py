"""Which files count as pictures, which are masks of them, and what a folder's name says."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
MASK_SUFFIXES = (".mask.png", "-masklabel.png")
"""What follows a picture's name, without its suffix, in its mask's; the second is OneTrainer's."""

_FOLDER_NAME = re.compile(r"(\d+)_(.*)", re.DOTALL)


class FolderName(NamedTuple):
    """What a folder called "9_w0ut3r man" says: how often its pictures are shown, and words."""

    repeats: int
    words: str


def picture_files(folder: Path) -> list[Path]:
    """Return the picture files in a folder and below, sorted alike on every system.

    Hidden files, what lies in hidden folders, and masks that lie beside their pictures are left
    out.
    """
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        pictures = [
            name
            for name in names
            if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)
        ]
        stems = {os.path.splitext(name)[0] for name in pictures}
        found += [Path(parent, name) for name in pictures if _masked_stem(name) not in stems]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def mask_file(picture: Path) -> Path | None:
    """Return the mask beside a picture: its name with `.mask.png` or `-masklabel.png`, if any."""
    candidates = (picture.with_name(picture.stem + suffix) for suffix in MASK_SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def read_folder_name(picture: Path, top: Path) -> FolderName | None:
    """Return what the folder that a picture lies in says, as kohya's folders do; None if nothing.

    The nearest folder counts, up to `top` itself.
    """
    for folder in picture.parents if top in picture.parents else ():
        match = _FOLDER_NAME.fullmatch(folder.name)
        if match and int(match[1]):
            return FolderName(int(match[1]), " ".join(match[2].replace("_", " ").split()))
        if folder == top:
            return None
    return None


def _masked_stem(name: str) -> str | None:
    """Return the name, without suffix, of the picture that a file would be the mask of."""
    endings = (suffix for suffix in MASK_SUFFIXES if name.lower().endswith(suffix))
    return next((name[: -len(suffix)] for suffix in endings), None)
