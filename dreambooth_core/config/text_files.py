"""Text files that a person writes: captions and prompt templates."""

from __future__ import annotations

import codecs
from io import FileIO
from pathlib import Path

from dreambooth_core.errors import InputError
from dreambooth_core.job import disk

COMMENT = "#"
MOST_TEXT_BYTES = 1_000_000
"""A caption is cut after some hundred words; a whole book of prompts is no larger."""


def read_text(path: Path, what: str) -> str:
    """Return a file's text: UTF-8, or UTF-16 if it says so with a byte order mark.

    Raises InputError naming the file for anything else; `what` is what the file is called.
    """
    data = read_at_most(path, MOST_TEXT_BYTES, what)
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"The {what} {path} is not UTF-8 text (byte {error.start}).",
            remedy="Save it as UTF-8.",
        ) from error
    if "\0" in text:
        raise InputError(
            f"The {what} {path} holds NUL characters: it may be UTF-16 without its mark.",
            remedy="Save it as UTF-8.",
        )
    return text


def read_at_most(path: Path, most_bytes: int, what: str) -> bytes:
    """Return what is in a file that somebody gives us, which may be anything.

    Raises InputError naming it if it is no file, such as a pipe, which would never end, or larger;
    `what` is what the file is called.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise InputError(
                f"The {what} {path} cannot be read: it is a folder, a pipe or a device.",
                remedy="Check the path.",
            )
        with disk.naming(path), disk.open_read(path) as file:
            data = _read_up_to(file, most_bytes + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"The {what} {path} cannot be read: {reason}.", remedy="Check the path."
        ) from error
    if len(data) > most_bytes:
        raise InputError(
            f"The {what} {path} is larger than {most_bytes / 1e6:g} MB.",
            remedy="Check that it is the right file.",
        )
    return data


def _read_up_to(file: FileIO, count: int) -> bytes:
    """Return the next bytes: an unbuffered file may give fewer at once than are asked for."""
    parts: list[bytes] = []
    while count > 0 and (part := file.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def read_templates(path: Path) -> list[str]:
    """Return the prompts of a template file, one a line; empty lines and comments are left out.

    Raises InputError naming the file if it cannot be read or holds none.
    """
    lines = [line.strip() for line in read_text(path, "prompt template file").splitlines()]
    templates = [line for line in lines if line and not line.startswith(COMMENT)]
    if not templates:
        raise InputError(
            f"The prompt template file {path} holds no prompts.",
            remedy="Write one into each line, such as: a photo of [name], [filewords].",
        )
    return templates
