"""Target: picture files of every format, through all that opens them."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from pathlib import Path
from random import Random

from PIL import ExifTags, Image

from dreambooth_core.data.buckets import make_buckets
from dreambooth_core.data.picture_files import has_mask, image_size
from dreambooth_core.data.pictures import open_alpha, open_image
from dreambooth_core.errors import InputError
from dreambooth_core.stages.preflight.pictures import look_at
from dreambooth_core.ui.gradio_compat import thumbnail
from tests.fuzz import mutate

SIGNATURE = b"\x89PNG\r\n\x1a\n"
BUCKETS = make_buckets(64, 64)
FORMATS = ("PNG", "PNG 16", "PNG P", "APNG", "JPEG", "JPEG CMYK", "GIF", "WEBP", "BMP", "TIFF")
SUFFIXES = (".png", ".jpg", ".webp", ".gif", ".bmp", ".tif")
CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"fcTL", b"fdAT")


def pictures(chance: Random, folder: Path) -> None:
    """A picture whose bytes, chunks or Exif are bent: opened, or refused by name."""
    kind = chance.choice(FORMATS)
    data = whole(kind)
    if kind in ("PNG", "PNG 16", "PNG P", "APNG") and chance.random() < 0.6:
        data = _bent_chunks(chance, data)
    if chance.random() < 0.8:
        data = mutate.raw(chance, data)
    path = folder / f"a{chance.choice(SUFFIXES)}"
    path.write_bytes(data)
    for step in (
        lambda: image_size(path),
        lambda: open_image(path),
        lambda: open_alpha(path),
        lambda: has_mask(path, "alpha"),
        lambda: look_at(path, BUCKETS),
        lambda: look_at(path, BUCKETS, measured=False),
    ):
        try:
            step()
        except InputError as error:
            if path.name not in error.message:
                raise AssertionError(f"the file is not named: {error}") from error
    try:
        thumbnail(path)
    except OSError:
        pass


@cache
def whole(kind: str) -> bytes:
    """Return an undamaged picture."""
    name, _, mode = kind.partition(" ")
    image = Image.effect_noise((40, 24), 60).convert("RGB")
    options: dict[str, object] = {}
    if mode == "16":
        image = image.convert("I").point(lambda value: value * 257).convert("I;16")
    elif mode:
        image = image.convert({"P": "P", "CMYK": "CMYK"}[mode])
    if name in ("GIF", "APNG", "WEBP"):
        options = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Software] = "words " * 20
    if name in ("PNG", "JPEG", "WEBP", "TIFF"):
        options["exif"] = exif
    if name == "TIFF":
        options["compression"] = "tiff_lzw"
    file = io.BytesIO()
    image.save(file, "PNG" if name == "APNG" else name, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """Return a PNG chunk with its checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _bent_chunks(chance: Random, data: bytes) -> bytes:
    """Return a PNG with chunks bent, left out, repeated or put in, their checksums right."""
    made = bytearray(SIGNATURE)
    position = len(SIGNATURE)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        name = data[position + 4 : position + 8]
        content = data[position + 8 : position + 8 + length]
        position += 12 + length
        kind = chance.randrange(8)
        if kind == 0:
            content = mutate.raw(chance, content)
        if kind != 1:
            made += chunk(name, content)
        if kind == 2:
            made += chunk(name, content)
        if kind == 3:
            made += chunk(chance.choice(CHUNKS), _content(chance))
    return bytes(made)


def _content(chance: Random) -> bytes:
    squeezed = zlib.compress(bytes(chance.choice((10, 70_000, 20_000_000))), 1)
    return chance.choice(
        (
            b"",
            b"icc\0\0" + squeezed,
            b"key\0\0" + squeezed,
            b"key\0\x01\0\0\0" + squeezed,
            struct.pack(">IIBBBBB", *chance.choices((0, 1, 40, 2**31 - 1), k=2), 8, 2, 0, 0, 0),
            b"II*\0\x08\0\0\0" + struct.pack("<H", 0xFFFF) + chance.randbytes(200),
            b"MM\0*\0\0\0\x08" + b"\xff" * 40,
            chance.randbytes(26),
        )
    )
