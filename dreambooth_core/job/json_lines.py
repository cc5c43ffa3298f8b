"""Files of JSON objects, one a line, that another process appends to while they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreambooth_core.job import disk, plain_json


def read_lines(path: Path, offset: int = 0, most: int = -1) -> tuple[list[dict[str, Any]], int]:
    """Return the whole JSON-object lines after byte `offset`, and the offset to go on from."""
    try:
        with disk.naming(path), disk.open_read(path) as file:
            file.seek(offset)
            data = file.read(most)
            while most >= 0 and b"\n" not in data and (more := file.read(most)):
                data += more
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    parsed = (_parse(line) for line in whole.splitlines())
    return [line for line in parsed if line is not None], offset + len(whole)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = plain_json.parse(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
