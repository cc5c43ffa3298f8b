"""Picture files: found, opened safely, measured without reading their pixels."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import ExifTags, Image

from dreambooth_core.config.pictures import (
    DECODER_ERRORS,
    IMAGE_FORMATS,
    IMAGE_SUFFIXES,
    MOST_PIXELS,
    mask_file,
    picture_files,
    why_not_opened,
)
from dreambooth_core.config.sections.images import ALPHA, MASK_FILES
from dreambooth_core.errors import InputError

TOO_LARGE = (Image.DecompressionBombError, MemoryError)
HASHED_BYTES = 2**20
STILL_FORMATS = ("MPO", "TIFF")
"""Formats whose further pictures are no animation, but another view or page."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHECKSUM_BYTES = 4
SIDEWAYS_ORIENTATIONS = frozenset({5, 6, 7, 8})


def list_images(folder: Path) -> list[Path]:
    """Return the pictures in `folder` and its subfolders, sorted by path; hidden ones are left out.

    Raises InputError if the folder is missing or holds no picture.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.", remedy="Check the path.")
    images = [path for path in picture_files(folder) if _is_file(path)]
    if not images:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise InputError(f"There are no pictures in {folder}.", remedy=f"Known are {suffixes}.")
    return images


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of the upright picture from its header alone."""
    with opened(path) as image:
        width, height = image.size
        sideways = _exif(image, path).get(ExifTags.Base.Orientation) in SIDEWAYS_ORIENTATIONS
        return (height, width) if sideways else (width, height)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of the file's bytes in hex."""
    digest = hashlib.sha256()
    try:
        _refuse_unusual(path)
        with Path(path).open("rb") as file:
            while chunk := file.read(HASHED_BYTES):
                digest.update(chunk)
        return digest.hexdigest()
    except OSError as error:
        raise InputError(f"The picture {path} cannot be read: {error}.") from error


def has_alpha(image: Image.Image) -> bool:
    """Return whether an opened picture says how opaque its pixels are."""
    return image.getbands()[-1] in "Aa" or "transparency" in image.info


def is_animated(image: Image.Image) -> bool:
    """Return whether an opened picture moves; it is trained on as its first frame."""
    if image.format in STILL_FORMATS:
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except DECODER_ERRORS:
        return True  # there is a second frame, which is damaged


def has_mask(picture: Path, source: str) -> bool:
    """Return whether a picture has a mask; of the picture only the header is read."""
    if source == MASK_FILES:
        return mask_file(picture) is not None
    if source == ALPHA:
        with opened(picture) as image:
            return has_alpha(image)
    return False


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Yield the opened picture; whatever a decoder trips over becomes an InputError."""
    Image.init()
    formats = [name for name in IMAGE_FORMATS if name in Image.OPEN]
    try:
        _refuse_unusual(path)
        with Image.open(path, formats=formats) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError(f"it has {image.width}x{image.height} pixels")
            yield image
    except TOO_LARGE as error:
        reason = str(error) or "memory ran out"
        raise InputError(
            f"The picture {path} is too large to open safely: {reason}.", remedy="Scale it down."
        ) from error
    except DECODER_ERRORS as error:
        raise InputError(
            f"The picture {path} cannot be read: {error}.", remedy="Replace or remove the file."
        ) from error


def _is_file(path: Path) -> bool:
    """Whether a name that was listed is a file's; one that may not be looked at counts as one."""
    try:
        return path.is_file()
    except OSError:
        return True  # who opens it is told why


def _refuse_unusual(path: Path) -> None:
    """Raise OSError for what is no file, such as a pipe, which would be waited for for ever."""
    reason = why_not_opened(Path(path))
    if reason:
        raise OSError(reason)


def _exif(image: Image.Image, path: Path) -> Image.Exif:
    """Return the picture's Exif; pixels are decoded only for a PNG that has more after them.

    Pillow's own `getexif` of a PNG decodes it whole, to find what may stand there.
    """
    if image.format == "PNG" and not _says_more_after_pixels(path):
        return Image.Image.getexif(image)
    return image.getexif()


def _says_more_after_pixels(path: Path) -> bool:
    """Whether a PNG has chunks between its pixels and its end; raises OSError if it has no end."""
    pixels_seen = False
    with Path(path).open("rb") as file:
        file.seek(len(PNG_SIGNATURE))
        while True:
            length, name = struct.unpack(">I4s", file.read(8))
            if name == b"IEND":
                return False
            if pixels_seen and name != b"IDAT":
                return True
            pixels_seen = pixels_seen or name == b"IDAT"
            file.seek(length + PNG_CHECKSUM_BYTES, os.SEEK_CUR)
