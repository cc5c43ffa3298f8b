"""How much a single picture counts, as a person wrote it beside the picture."""

from __future__ import annotations

import math
from pathlib import Path

from dreambooth_core.config.text_files import read_text
from dreambooth_core.errors import InputError

SUFFIX = ".weight.txt"
LARGEST_WEIGHT = 100.0


def image_weight(picture: Path) -> float:
    """Return the number in the file `NAME.weight.txt` beside the picture `NAME.*`, 1 without one.

    Raises InputError naming the file if it holds anything but a number above 0 and up to 100.
    """
    file = picture.with_name(picture.stem + SUFFIX)
    if not file.is_file():
        return 1.0
    text = read_text(file, "weight file").strip()
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight <= LARGEST_WEIGHT:
        raise InputError(
            f"The weight file {file} holds {text[:40]!r}.",
            remedy=f"Write one number above 0 and up to {LARGEST_WEIGHT:g} into it, such as 0.5, or"
            " delete it.",
        )
    return weight
