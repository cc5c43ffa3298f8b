"""One look at each picture: can it be read, how large and how sharp is it, what is it like."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageFilter, ImageOps, ImageStat

from dreambooth_core.data.buckets import Size, assign
from dreambooth_core.data.picture_files import has_alpha, is_animated, opened
from dreambooth_core.errors import InputError

MOST_THREADS = 8
GRID = 16
"""Cells of a fingerprint a side."""

LAPLACIAN = (0, 1, 0, 1, -4, 1, 0, 1, 0)
FULL_DECODE_FACTOR = 2
"""A JPEG is decoded at the smallest size that is still this many times what is measured."""


@dataclass(frozen=True)
class Fingerprint:
    """What a picture looks like, coarsely.

    `rises` has a bit for each neighbouring pair of cells, set where the brightness rises to the
    right; `colors` are the cells' red, green and blue.
    """

    rises: int
    colors: bytes


@dataclass(frozen=True)
class Look:
    """What one look at a picture told; `problem` and `remedy` if it cannot be read.

    `size` and `bucket` are (width, height); `sharpness` is the variance of the Laplacian of the
    brightness (0 to 255) at the size that it is trained at, but no larger than the picture.
    """

    path: Path
    size: Size = (0, 0)
    bucket: Size = (0, 0)
    sharpness: float = 0.0
    fingerprint: Fingerprint = Fingerprint(0, b"")
    problem: str = ""
    remedy: str = ""
    animated: bool = False

    @property
    def enlargement(self) -> float:
        """By how much it is scaled up to cover its bucket; 1 or less where it is large enough."""
        return max(wanted / side for wanted, side in zip(self.bucket, self.size, strict=True))


def look_at_all(
    paths: Sequence[Path], buckets: Sequence[Size], glanced: Collection[Path] = ()
) -> Iterator[Look]:
    """Yield a look at each picture, in order; several are decoded at a time.

    Those in `glanced` are only decoded, not measured.
    """
    threads = min(MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, thread_name_prefix="pictures") as pool:
        yield from pool.map(lambda p: look_at(p, buckets, measured=p not in glanced), paths)


def look_at(path: Path, buckets: Sequence[Size], *, measured: bool = True) -> Look:
    """Return what one picture tells; it is opened once and decoded whole."""
    try:
        with opened(path) as image:
            size = upright_size(image)
            bucket = assign(size, buckets)
            if not measured:
                image.draft("L", (1, 1))  # a JPEG at an eighth of its size: read to its end
                image.load()
                return Look(path, size, bucket, animated=is_animated(image))
            small = _reduced(image, max(bucket))
            animated = is_animated(image)
    except InputError as error:
        return Look(path, problem=error.message, remedy=error.remedy)
    gray = small.convert("L")
    return Look(path, size, bucket, sharpness(gray), fingerprint(small), animated=animated)


def upright_size(image: Image.Image) -> Size:
    """Return an opened picture's size as it is looked at; Exif may say that it lies on its side."""
    sideways = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if sideways else image.size


def sharpness(gray: Image.Image) -> float:
    """Return the variance of the Laplacian of a gray picture: small where nothing is sharp.

    Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy". Exact as long as no
    pixel differs from its neighbours by more than 255 in all.
    """
    inner = (1, 1, gray.width - 1, gray.height - 1)  # the filter leaves the border as it is
    if inner[2] <= inner[0] or inner[3] <= inner[1]:
        return 0.0
    rising = gray.filter(ImageFilter.Kernel((3, 3), LAPLACIAN, scale=1))
    falling = gray.filter(ImageFilter.Kernel((3, 3), [-k for k in LAPLACIAN], scale=1))
    up, down = (ImageStat.Stat(half.crop(inner)) for half in (rising, falling))
    mean = (up.sum[0] - down.sum[0]) / up.count[0]
    return float((up.sum2[0] + down.sum2[0]) / up.count[0] - mean**2)


def fingerprint(image: Image.Image) -> Fingerprint:
    """Return what a picture looks like, coarsely: the same for a copy in another size or format."""
    wide = image.resize((GRID + 1, GRID), Image.Resampling.BOX).convert("L").tobytes()
    rises = 0
    for row in range(GRID):
        start = row * (GRID + 1)
        for left, right in zip(wide[start : start + GRID], wide[start + 1 :], strict=False):
            rises = rises << 1 | (right > left)
    cells = image.resize((GRID, GRID), Image.Resampling.BOX).convert("RGB")
    return Fingerprint(rises, cells.tobytes())


def difference(first: Fingerprint, second: Fingerprint) -> tuple[float, float]:
    """Return how two pictures differ: the share of rises that do, and the mean color distance."""
    bits = bin(first.rises ^ second.rises).count("1") / GRID**2
    pairs = zip(first.colors, second.colors, strict=True)
    return bits, sum(abs(a - b) for a, b in pairs) / len(first.colors)


def _reduced(image: Image.Image, longest: int) -> Image.Image:
    """Return the whole picture in RGB, upright, no side above `longest`."""
    image.draft("RGB", (longest * FULL_DECODE_FACTOR,) * 2)
    image.load()
    picture = ImageOps.exif_transpose(_plain(image))
    picture.thumbnail((longest, longest), Image.Resampling.BICUBIC)
    return picture


def _plain(image: Image.Image) -> Image.Image:
    """Return a decoded picture as 8-bit RGB, transparency over white, much as training does."""
    if image.mode == "F":
        raise ValueError("it holds floating point values, not 8 or 16 bits per channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = image.convert("I").point(lambda value: value * (1 / 257) + 0).convert("L")
    if has_alpha(image):
        picture = image.convert("RGBA")
        canvas = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(canvas, picture).convert("RGB")
    return image.convert("RGB")
