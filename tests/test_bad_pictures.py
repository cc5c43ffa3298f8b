"""Pictures, captions and folders that are no use: each a clear error that names it, none a hang."""

from __future__ import annotations

import os
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from dreambooth_core.config import pictures as picture_limits
from dreambooth_core.config.concept import Concept
from dreambooth_core.config.pictures import MOST_PIXELS, picture_files
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.serialize import read_json_object
from dreambooth_core.config.text_files import MOST_TEXT_BYTES, read_text
from dreambooth_core.config.validate import validate
from dreambooth_core.data import picture_files as opening
from dreambooth_core.data.buckets import make_buckets
from dreambooth_core.data.captions import CaptionReading, read_caption
from dreambooth_core.data.picture_files import file_hash, image_size, list_images
from dreambooth_core.data.pictures import open_alpha, open_image
from dreambooth_core.errors import InputError
from dreambooth_core.job import disk
from dreambooth_core.job.workspace import ModelInfo, Workspace
from dreambooth_core.stages.preflight.picture_checks import animated, unreadable
from dreambooth_core.stages.preflight.pictures import Look, look_at
from tests.fuzz.pictures import chunk, whole

SECONDS = 20.0
BUCKETS = make_buckets(64, 64)
SIGNATURE = b"\x89PNG\r\n\x1a\n"
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX has such files")


def in_time(function: Callable[[], Any]) -> Any:
    """What a function returns or raises; a hang is a failure instead of the end of all tests."""
    result: list[Any] = []

    def work() -> None:
        try:
            result.append(function())
        except InputError as error:
            result.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert result, "it hangs"
    return result[0]


OPENERS = (open_image, open_alpha, image_size)


def refused(path: Path, words: str, by: Sequence[Callable[[Path], Any]] = OPENERS) -> None:
    """Everything that opens a picture refuses it, naming it and saying what to do."""
    for opened in by:
        error = in_time(lambda opened=opened: opened(path))  # type: ignore[misc]
        assert isinstance(error, InputError), (opened, error)
        assert str(path) in error.message and words in error.message, error.message
        assert error.remedy
    look = in_time(lambda: look_at(path, BUCKETS))
    assert words in look.problem and look.remedy
    assert [finding.level for finding in unreadable([look])] == ["error"]


def png_header(width: int, height: int, depth: int = 8, colors: int = 2) -> bytes:
    """A PNG that says how large it is, and has next to no pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colors, 0, 0, 0))
    return SIGNATURE + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def bmp_header(width: int, height: int) -> bytes:
    """A BMP of this size without pixels."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


def gif_header(width: int, height: int) -> bytes:
    """A GIF of this size with one small frame."""
    data = b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0)
    return data + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02D\x01\0;"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.png", png_header(100_000, 100_000)),
        ("a.png", png_header(20_000, 20_000, 1, 0)),
        ("a.png", png_header(2**31 - 1, 2**31 - 1)),
        ("a.bmp", bmp_header(30_000, 30_000)),
        ("a.gif", gif_header(65_535, 65_535)),
    ],
)
def test_what_would_take_gigabytes_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes
) -> None:
    """A few hundred bytes; also where the host has switched Pillow's own limit off."""
    path = tmp_path / name
    path.write_bytes(data)
    refused(path, "too large to open safely")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(Image.Image, "load", None)  # whoever decodes fails
    refused(path, "pixels")


def test_our_limit_is_pillows_own() -> None:
    """So that what Pillow opens is not refused by us."""
    assert Image.MAX_IMAGE_PIXELS is not None
    assert MOST_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


def test_a_file_of_more_bytes_than_any_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WebP and Exif are read into memory whole; the hash is not."""
    monkeypatch.setattr(picture_limits, "MOST_PICTURE_BYTES", 2**20)
    path = tmp_path / "a.webp"
    with path.open("wb") as file:
        file.write(whole("WEBP"))
        file.truncate(2**20 + 1)
    refused(path, "more than 1 MiB")
    assert isinstance(in_time(lambda: file_hash(path)), InputError)


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_squeezed_texts_and_profiles_do_not_swell(tmp_path: Path, name: bytes) -> None:
    """A hundred megabytes in a hundred kilobytes; only their beginning is taken out."""
    squeezed = zlib.compress(bytes(100_000_000), 9)
    head = {b"zTXt": b"k\0\0", b"iTXt": b"k\0\x01\0\0\0", b"iCCP": b"k\0\0"}[name]
    data = whole("PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data[:33] + chunk(name, head + squeezed) + data[33:])
    result = in_time(lambda: open_image(path))
    if isinstance(result, InputError):
        assert "a.png cannot be read" in result.message and result.remedy
    else:
        assert result.size == (24, 40)
    assert PngImagePlugin.MAX_TEXT_CHUNK <= 2**20  # what the bound rests on


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_nothing_half_and_other(tmp_path: Path, kind: str) -> None:
    """Zero bytes, a text, the first half: each under a picture's name."""
    path = tmp_path / f"a.{kind.lower()}"
    for data in (b"", b"a text\n"):
        path.write_bytes(data)
        refused(path, "cannot be read")
    path.write_bytes(whole(kind)[: len(whole(kind)) // 3])
    refused(path, "cannot be read", by=[open_image])


@pytest.mark.parametrize("kind", ["PNG", "PNG 16", "PNG P", "JPEG", "JPEG CMYK", "BMP", "TIFF"])
def test_a_wrong_ending_and_odd_colors_are_no_matter(tmp_path: Path, kind: str) -> None:
    """The content counts: each is 8-bit RGB once it is opened, upright."""
    path = tmp_path / "a.gif"
    path.write_bytes(whole(kind))
    image = open_image(path)
    assert image.mode == "RGB" and sorted(image.size) == [24, 40]
    assert not look_at(path, BUCKETS).problem


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "APNG"])
def test_what_moves_is_trained_on_as_its_first_frame_and_that_is_said(
    tmp_path: Path, kind: str
) -> None:
    path, still = tmp_path / "a.png", tmp_path / "b.png"
    path.write_bytes(whole(kind))
    first = open_image(path)
    with Image.open(path) as image:
        image.seek(1)
        assert list(first.getdata()) != list(image.convert("RGB").getdata())
    still.write_bytes(whole("PNG"))
    looks = [look_at(path, BUCKETS), look_at(still, BUCKETS, measured=False)]
    (finding,) = animated(looks)
    assert (finding.level, finding.message) == (
        "info",
        "1 picture is animated: a.png. Training shows the first frame.",
    )
    assert list(animated([looks[1], Look(still)])) == []


@posix
def test_a_pipe_or_a_device_is_no_picture_and_no_caption(tmp_path: Path) -> None:
    """Neither is waited for, whoever is asked for it."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zero.png"):
        refused(tmp_path / name, "it is a folder, a pipe or a device")
        assert isinstance(in_time(lambda name=name: file_hash(tmp_path / name)), InputError)  # type: ignore[misc]
    assert isinstance(in_time(lambda: list_images(tmp_path)), InputError)  # there are no others
    picture = tmp_path / "a.png"
    picture.write_bytes(whole("PNG"))
    os.mkfifo(tmp_path / "a.txt")
    assert in_time(lambda: read_caption(picture)) == "a"
    for path in (tmp_path / "a.txt", Path("/dev/zero"), tmp_path):
        for read in (
            lambda path=path: read_text(path, "caption"),
            lambda path=path: read_json_object(path),
        ):  # type: ignore[misc]
            error = in_time(read)
            assert isinstance(error, InputError) and "a pipe or a device" in error.message
    assert list_images(tmp_path) == [picture]


@posix
def test_links_in_circles_and_out_of_the_folder(tmp_path: Path) -> None:
    """Links to folders are not followed; one to a picture is the person's own choice."""
    folder, elsewhere = tmp_path / "pictures", tmp_path / "elsewhere"
    (folder / "sub").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "far.png").write_bytes(whole("PNG"))
    (folder / "near.png").write_bytes(whole("PNG"))
    (folder / "sub" / "round").symlink_to(folder, target_is_directory=True)
    (folder / "out").symlink_to(elsewhere, target_is_directory=True)
    (folder / "itself.png").symlink_to(folder / "itself.png")
    (folder / "dangling.png").symlink_to(folder / "nothing.png")
    (folder / "picked.png").symlink_to(elsewhere / "far.png")
    found = in_time(lambda: list_images(folder))
    assert [path.name for path in found] == ["near.png", "picked.png"]
    refused(folder / "itself.png", "cannot be read")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    """Linux takes any bytes; a page could not show them."""
    (tmp_path / "a.png").write_bytes(whole("PNG"))
    with open(os.fsencode(tmp_path) + b"/H\xfcndchen.png", "wb") as file:
        file.write(whole("PNG"))
    with pytest.raises(InputError, match=r"The name of the picture .*H.?ndchen\.png is not UTF-8"):
        list_images(tmp_path)


def test_a_folder_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pictures are not just missing. A stand-in, as root may read everything."""
    (tmp_path / "pictures" / "locked").mkdir(parents=True)
    (tmp_path / "pictures" / "a.png").write_bytes(whole("PNG"))
    usual = os.scandir

    def scan(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return usual(path)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(InputError, match=r"The folder .*locked cannot be read: Permission denied"):
        list_images(tmp_path / "pictures")
    workspace = Workspace(tmp_path)
    workspace.model("ada").write_info(ModelInfo("ada", "sd1", ""))
    concept = Concept(instance_folder=str(tmp_path / "pictures"))
    (problem,) = validate(TrainConfig(model="ada", concepts=[concept]), workspace, "train")
    assert problem.field == "concepts.0.instance_folder" and "locked" in problem.message
    assert problem.remedy
    assert picture_files(tmp_path / "nowhere") == []


def test_files_that_vanish_after_they_were_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the names and the look at the file; one that may not be looked at."""
    path = tmp_path / "a.png"
    path.write_bytes(whole("PNG"))
    (listed,) = list_images(tmp_path)
    path.unlink()
    refused(listed, "cannot be read")
    assert isinstance(in_time(lambda: file_hash(listed)), InputError)
    monkeypatch.setattr(opening, "picture_files", lambda folder: [listed])
    with pytest.raises(InputError, match="There are no pictures"):
        list_images(tmp_path)

    def denied(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", denied)
    assert list_images(tmp_path) == [listed]  # who opens it says why it cannot be read


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("Hündchen".encode("latin-1"), "is not UTF-8 text"),
        ("a dog".encode("utf-16-le"), "holds NUL characters"),
        ("a dog".encode("utf-32"), "holds NUL characters"),
        (b"a\0dog", "holds NUL characters"),
        ("a dog".encode("utf-16")[:-1], "is not UTF-8 text"),
        (b"word " * 250_000, "is larger than 1 MB"),
    ],
)
def test_captions_that_are_no_text(tmp_path: Path, data: bytes, words: str) -> None:
    picture = tmp_path / "a.png"
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_caption(picture)
    assert f"The caption {tmp_path / 'a.txt'} {words}" in caught.value.message
    assert caught.value.remedy
    assert read_caption(picture, CaptionReading("name")) == "a"


def test_a_caption_of_a_hundred_megabytes_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only as much as tells that it is too large."""
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(100_000_000)
    sizes: list[int] = []

    class Counted(FileIO):
        def read(self, size: int = -1) -> bytes:
            part = super().read(size)
            sizes.append(len(part))
            return part

    monkeypatch.setattr(disk, "open_read", lambda path: Counted(path, "rb"))
    with pytest.raises(InputError, match="larger than 1 MB"):
        read_caption(tmp_path / "a.png")
    assert sum(sizes) == MOST_TEXT_BYTES + 1
