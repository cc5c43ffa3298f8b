"""Opening pictures of every kind, refusing broken ones by name, finding what of them is kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy
import pytest
from PIL import ExifTags, Image

from dreambooth_core.data.picture_files import file_hash, image_size, list_images
from dreambooth_core.data.pictures import (
    crop_box,
    open_alpha,
    open_image,
    told_sizes,
)
from dreambooth_core.errors import InputError


def saved(path: Path, mode: str, size: tuple[int, int], color: object) -> Path:
    """Write a picture of one colour and return its path."""
    Image.new(mode, size, color).save(path)  # type: ignore[arg-type]
    return path


def pixel(path: Path) -> tuple[int, ...]:
    """Return the top left pixel as opened."""
    image = open_image(path)
    assert image.mode == "RGB"
    value = image.getpixel((0, 0))
    assert isinstance(value, tuple)
    return value


def test_list_is_sorted_recursive_and_only_pictures(tmp_path: Path) -> None:
    """Any letter case of the ending; captions, hidden files and hidden folders left out."""
    names = ["b.PNG", "a.jpg", "sub/c.webp", "a.txt", ".hidden.png", ".cache/d.png", "._a.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == ["a.jpg", "b.PNG", "sub/c.webp"]


def test_a_hidden_parent_of_the_folder_does_not_hide_it(tmp_path: Path) -> None:
    """Only what is below the folder counts."""
    folder = tmp_path / ".home" / "pictures"
    folder.mkdir(parents=True)
    (folder / "a.png").touch()
    assert list_images(folder) == [folder / "a.png"]


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    """The message holds the path."""
    with pytest.raises(InputError, match=r"There is no folder .*nowhere"):
        list_images(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"There are no pictures in .*Known are \.bmp"):
        list_images(tmp_path)


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("I;16", 0, (0, 0, 0)),
        ("I;16", 257 * 100, (100, 100, 100)),
        ("I;16", 65535, (255, 255, 255)),
    ],
)
def test_png_modes(
    tmp_path: Path, mode: str, color: object, expected: tuple[int, int, int]
) -> None:
    """Alpha goes over white (51/255 black leaves 204), 16 bits scale by 1/257."""
    assert pixel(saved(tmp_path / "a.png", mode, (4, 3), color)) == expected


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    """The transparent entry becomes white, the others keep their colour."""
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=0)
    opened = open_image(tmp_path / "a.png")
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


def test_cmyk_jpeg(tmp_path: Path) -> None:
    """Full cyan has no red; JPEG may round by a little."""
    red, green, blue = pixel(saved(tmp_path / "a.jpg", "CMYK", (16, 16), (255, 0, 0, 0)))
    assert red < 5
    assert min(green, blue) > 250


def test_16_bit_tiff_and_an_animation(tmp_path: Path) -> None:
    """TIFF scales as PNG does; of an animated GIF the first frame counts."""
    assert pixel(saved(tmp_path / "a.tif", "I;16", (4, 4), 257 * 9)) == (9, 9, 9)
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixel(tmp_path / "a.gif") == (255, 0, 0)


def test_floating_point_pictures_are_refused(tmp_path: Path) -> None:
    """Their range is unknown; the file is named."""
    path = saved(tmp_path / "a.tif", "F", (4, 4), 0.5)
    with pytest.raises(InputError, match=r"a\.tif cannot be read: it holds floating point"):
        open_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    """Upright again: the red corner is where a viewer shows it, and the header size agrees."""
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste("red", (0, 0, 8, 8))
    undo = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for operation in undo.get(orientation, []):
        stored = stored.transpose(operation)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / "a.png"
    stored.save(path, exif=exif)
    assert open_image(path).size == image_size(path) == (32, 16)
    assert pixel(path) == (255, 0, 0)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    """Cut anywhere: in the header or in the data, JPEG or PNG."""
    noise = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (64, 64, 3), "uint8"))
    for suffix in ("jpg", "png"):
        whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
        noise.save(whole)
        data = whole.read_bytes()
        for length in (0, 10, len(data) // 2, len(data) - 40):
            cut.write_bytes(data[:length])
            with pytest.raises(InputError, match=rf"cut\.{suffix} cannot be read"):
                open_image(cut)


def test_other_content_is_refused(tmp_path: Path) -> None:
    """A text file, a format that is not on the list (EPS can run programs), a missing file."""
    (tmp_path / "a.png").write_text("not a picture")
    (tmp_path / "b.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    for name in ("a.png", "b.png", "missing.png"):
        for function in (open_image, image_size):
            with pytest.raises(InputError, match=f"{name} cannot be read"):
                function(tmp_path / name)


def test_a_wrong_ending_does_not_matter(tmp_path: Path) -> None:
    """A JPEG called .png opens by its content."""
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png", format="JPEG")
    assert image_size(tmp_path / "a.png") == (8, 8)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's limit (lowered here) is an error that names the file, before it is decoded."""
    path = saved(tmp_path / "a.png", "L", (100, 100), 0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match=r"a\.png is too large to open safely"):
        open_image(path)


def test_the_hash_follows_the_bytes(tmp_path: Path) -> None:
    """Golden: SHA-256 of b"abc" from FIPS 180-2, appendix B.1."""
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_hash(tmp_path / "a") == expected
    with pytest.raises(InputError, match="missing cannot be read"):
        file_hash(tmp_path / "missing")


@pytest.mark.parametrize(
    ("source", "size", "position", "expected"),
    [
        ((100, 100), (64, 64), 0.5, (0, 0, 100, 100)),
        ((200, 100), (64, 64), 0.5, (50, 0, 150, 100)),
        ((200, 100), (64, 64), 0.0, (0, 0, 100, 100)),
        ((200, 100), (64, 64), 1.0, (100, 0, 200, 100)),
        ((100, 200), (64, 64), 0.25, (0, 25, 100, 125)),
        ((30, 20), (128, 64), 0.5, (0, 2.5, 30, 17.5)),
    ],
)
def test_crop_box_by_hand(
    source: tuple[int, int],
    size: tuple[int, int],
    position: float,
    expected: tuple[float, float, float, float],
) -> None:
    """The largest box of the aspect: slack on one axis only, also when scaling up."""
    assert crop_box(source, size, position) == pytest.approx(expected)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="needs POSIX permissions")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    """Permissions are explained as such."""
    path = saved(tmp_path / "a.png", "L", (4, 4), 0)
    path.chmod(0)
    with pytest.raises(InputError, match=r"a\.png cannot be read: .*Permission"):
        open_image(path)


@pytest.mark.parametrize(
    ("source", "size", "position", "flip", "told"),
    [
        ((1024, 1024), (1024, 1024), 0.5, False, (1024, 1024, 0, 0, 1024, 1024)),
        # 3000 x 2000 scaled by 0.512 is 1536 x 1024: 512 columns are cut away, 256 on the left.
        ((3000, 2000), (1024, 1024), 0.5, False, (2000, 3000, 0, 256, 1024, 1024)),
        ((3000, 2000), (1024, 1024), 0.0, False, (2000, 3000, 0, 0, 1024, 1024)),
        ((3000, 2000), (1024, 1024), 0.0, True, (2000, 3000, 0, 512, 1024, 1024)),
        ((3000, 2000), (1024, 1024), 0.25, True, (2000, 3000, 0, 384, 1024, 1024)),
        # 300 x 600 scaled by 3 is 900 x 1800: 900 rows are cut away.
        ((300, 600), (900, 900), 1.0, False, (600, 300, 900, 0, 900, 900)),
        ((512, 768), (1024, 768), 0.5, False, (768, 512, 384, 0, 768, 1024)),
    ],
)
def test_what_is_told_of_size_and_crop(
    source: tuple[int, int],
    size: tuple[int, int],
    position: float,
    flip: bool,
    told: tuple[int, ...],
) -> None:
    """Computed by hand: the crop counts in the picture scaled to cover the bucket."""
    assert told_sizes(source, size, position, flip=flip) == told


def test_the_opacity_of_a_picture(tmp_path: Path) -> None:
    """Of each kind that has one, upright; None for those that have none."""
    half = saved(tmp_path / "a.png", "RGBA", (4, 3), (9, 9, 9, 51))
    alpha = open_alpha(half)
    assert alpha is not None and alpha.getpixel((0, 0)) == 51 and alpha.size == (4, 3)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("LA", (4, 3), (9, 200)).save(tmp_path / "b.png", exif=exif)
    turned = open_alpha(tmp_path / "b.png")
    assert turned is not None and turned.size == (3, 4) and turned.getpixel((0, 0)) == 200
    assert open_alpha(saved(tmp_path / "c.png", "RGB", (4, 3), (9, 9, 9))) is None
