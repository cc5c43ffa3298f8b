"""PNG files with the text that the WebUI reads, written and read without torch."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dreambooth_core.job import disk
from dreambooth_core.job.storage import atomic_write_bytes

PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def _quoted(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if set(text) & set(",:\n") else text


def png_info(prompt: str, negative_prompt: str, settings: Mapping[str, object]) -> str:
    """Return what the WebUI's *PNG Info* tab reads: prompt, negative prompt, then `Key: value`."""
    negative = f"\nNegative prompt: {negative_prompt}" if negative_prompt else ""
    pairs = ", ".join(f"{key}: {_quoted(value)}" for key, value in settings.items())
    return f"{prompt}{negative}\n{pairs}"


def save_png(image: Image.Image, path: Path, parameters: str = "") -> None:
    """Write a PNG atomically, with `parameters` as its text chunk where there is one."""
    info = PngInfo()
    if parameters:
        info.add_text("parameters", parameters)
    encoded = io.BytesIO()
    image.save(encoded, format="PNG", pnginfo=info)
    atomic_write_bytes(path, encoded.getvalue())


@dataclass(frozen=True)
class SavedPicture:
    """What a picture file of ours holds: its size (width, height) and its text."""

    size: tuple[int, int]
    parameters: str


def read_png(path: Path) -> SavedPicture | None:
    """Return what a whole PNG holds; None for a file that is torn, damaged or no PNG.

    Every chunk's checksum is compared, and no pixel is decoded.
    """
    try:
        data = disk.read(path)
        if not data.endswith(PNG_END):
            return None
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            saved = SavedPicture(image.size, str(image.info.get("parameters", "")))
            image.verify()
            return saved
    except (OSError, SyntaxError, ValueError):
        return None
