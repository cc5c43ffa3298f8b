"""Files of JSON objects, one a line, that another process appends to while they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dreambooth_core.job import disk, plain_json

TAIL_BYTES = 64 * 1024


def read_lines(path: Path, offset: int = 0, most: int = -1) -> tuple[list[dict[str, Any]], int]:
    """Return the whole JSON-object lines after byte `offset`, and the offset to go on from.

    With `most` about so many bytes are read, but a line at least if there is a whole one.
    """
    try:
        with disk.naming(path), disk.open_read(path) as file:
            file.seek(offset)
            data = file.read(most)
            while most >= 0 and b"\n" not in data and (more := file.read(most)):
                data += more
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return list(objects(whole.splitlines())), offset + len(whole)


def read_last_lines(path: Path) -> list[dict[str, Any]]:
    """Return the last JSON-object lines of a file: some, but one at least if there is a whole one.

    Of a long file only the end is read.
    """
    size, length = path.stat().st_size if path.is_file() else 0, TAIL_BYTES
    while not (lines := read_lines(path, max(0, size - length))[0]) and length < size:
        length *= 4
    return lines


def objects(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects among lines; one that is none, as a crash tore it, is passed over."""
    for line in lines:
        try:
            value = plain_json.parse(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value
