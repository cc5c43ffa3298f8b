"""A checkpoint file as far as its header says, made without torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from tests.original_layout import TINY, checkpoint_shapes


def write_header(path: Path) -> Path:
    """Write a file with the tensors' names and shapes of a tiny checkpoint, all of them zero."""
    header, offset = {}, 0
    for key, shape in checkpoint_shapes(TINY).items():
        size = 2
        for side in shape:
            size *= side
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
    return path
