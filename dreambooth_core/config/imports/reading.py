"""Reading other trainers' files: nothing in them is trusted, and they are never written."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreambooth_core.errors import InputError
from dreambooth_core.job import plain_json

MAX_BYTES = 4_000_000
MOST_DIGITS = 300
TOML_READERS = ("tomllib", "tomli", "pip._vendor.tomli")
"""Python's own since 3.11, its forerunner for 3.10, and the copy that pip brings along."""
_TABLE = re.compile(r"\s*\[\[?[A-Za-z_][\w. -]*\]\]?\s*(#|\n|$)")
_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def read_text(path: Path) -> str:
    """Return the text of a file; raises InputError if it is too large or no text."""
    try:
        if not path.is_file():
            raise InputError(f"There is no file {path}.", remedy="Check the path.")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.", remedy="Check the path.") from error
    return decoded(data, path.name)


def decoded(data: bytes, name: str) -> str:
    """Return the text of a file's bytes, UTF-8 or UTF-16; raises InputError if they are none."""
    if len(data) > MAX_BYTES:
        raise InputError(
            f"{name} is larger than {MAX_BYTES // 1_000_000} MB.",
            remedy="Settings are much smaller: check that it is the right file.",
        )
    try:
        return data.decode(_MARKS.get(data[:2], "utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is no text: {error.reason} at byte {error.start}.",
            remedy="Give a .json or .toml file of settings.",
        ) from error


def parse(text: str, name: str) -> Any:
    """Return what a JSON or TOML text says; where its name does not tell, its beginning does."""
    is_toml = name.lower().endswith(".toml")
    if not is_toml and not name.lower().endswith(".json"):
        is_toml = text.lstrip()[:1] not in ("{", "[") or _TABLE.match(text) is not None
    return parse_toml(text, name) if is_toml else parse_json(text, name)


def parse_json(text: str, name: str) -> Any:
    """Return what a JSON text says; raises InputError naming the place where it is none."""
    try:
        return plain_json.parse(text, most_digits=MOST_DIGITS, repeats=True)
    except ValueError as error:
        raise InputError(f"{name} is not JSON: {error}.", remedy="Correct it there.") from error


def parse_toml(text: str, name: str) -> dict[str, Any]:
    """Return what a TOML text says; raises InputError where it is none, or cannot be read here."""
    try:
        value = toml_reader()(text)
        plain_json.refuse_depth(value)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not TOML: {error}.", remedy="Correct it there.") from error
    return value


def toml_reader() -> Callable[[str], dict[str, Any]]:
    """Return the function that reads TOML; raises InputError if this Python has none."""
    for name in TOML_READERS:
        try:
            reader: Callable[[str], dict[str, Any]] = importlib.import_module(name).loads
        except ImportError:
            continue
        return reader
    raise InputError(
        "This Python cannot read TOML: it is older than 3.11 and has no package tomli.",
        remedy="Install tomli, or give the settings as JSON.",
    )
