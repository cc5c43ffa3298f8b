"""Text files that a person writes: captions and prompt templates."""

from __future__ import annotations

import codecs
from pathlib import Path

from dreambooth_core.errors import InputError

COMMENT = "#"


def read_text(path: Path, what: str) -> str:
    """Return a file's text: UTF-8, or UTF-16 if it says so with a byte order mark.

    Raises InputError naming the file for anything else; `what` is what the file is called.
    """
    try:
        data = path.read_bytes()
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"The {what} {path} is not UTF-8 text (byte {error.start}).",
            remedy="Save it as UTF-8.",
        ) from error
    except OSError as error:
        raise InputError(f"The {what} {path} cannot be read: {error}.") from error


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
