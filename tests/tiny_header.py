"""A checkpoint file as far as its header says, made without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.original_layout import TINY, checkpoint_shapes


def write_header(path: Path, shapes: Mapping[str, Sequence[int]] | None = None) -> Path:
    """Write a file with these tensors, else those of a tiny checkpoint; all of them zero."""
    header, offset = {}, 0
    for key, shape in (checkpoint_shapes(TINY) if shapes is None else shapes).items():
        size = 2
        for side in shape:
            size *= side
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
    return path
