"""Which files count as pictures, which are masks of them, and what a folder's name says."""

from __future__ import annotations

import os
import re
import stat
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from dreambooth_core.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
IMAGE_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""Only decoders of these formats see a file, whatever its name: the others are attack surface."""
MOST_PIXELS = 178_956_970
"""Where Pillow, too, takes a picture for a bomb: half a gigabyte in 8-bit RGB. Ours counts even
where the WebUI has switched Pillow's off."""
MOST_PICTURE_BYTES = 512 * 2**20
"""Some formats are read into memory as they are."""
DECODER_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    ZeroDivisionError,
    OverflowError,
    AttributeError,
    AssertionError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders raise for a damaged file, besides that it would be too large."""
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
    out. Links to pictures are followed and links to folders are not: one could lead round in
    circles. Raises InputError for a folder that is there and cannot be read.
    """
    found = []
    for parent, folders, names in os.walk(folder, onerror=_refuse_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        pictures = [
            name
            for name in names
            if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)
        ]
        stems = {os.path.splitext(name)[0] for name in pictures}
        found += [Path(parent, name) for name in pictures if _masked_stem(name) not in stems]
    for path in found:
        _refuse_no_text(path)
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


def why_not_opened(path: Path) -> str:
    """Return why a file is not to be opened as a picture, whatever it holds; "" if it may be.

    A pipe would never end. Raises OSError for a file that is not there.
    """
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        return "it is a folder, a pipe or a device"
    if facts.st_size > MOST_PICTURE_BYTES:
        return f"it has more than {MOST_PICTURE_BYTES // 2**20} MiB"
    return ""


def _refuse_no_text(path: Path) -> None:
    """Raise for a name that is no text, which Linux allows: no page could show it."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        shown = str(path).encode("utf-8", "replace").decode("utf-8")
        raise InputError(
            f"The name of the picture {shown} is not UTF-8.", remedy="Rename it."
        ) from error


def _refuse_unreadable(error: OSError) -> None:
    """Raise for a folder whose names cannot be listed, unless it is gone or was never there."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise InputError(
            f"The folder {error.filename} cannot be read: {error.strerror}.",
            remedy="Check its permissions, or move it elsewhere.",
        ) from error


def _masked_stem(name: str) -> str | None:
    """Return the name, without suffix, of the picture that a file would be the mask of."""
    endings = (suffix for suffix in MASK_SUFFIXES if name.lower().endswith(suffix))
    return next((name[: -len(suffix)] for suffix in endings), None)
