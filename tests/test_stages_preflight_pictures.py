"""What one look at a picture tells, and what is said of it before a training."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageDraw, ImageFilter

from dreambooth_core.data.buckets import make_buckets
from dreambooth_core.data.pictures import open_image
from dreambooth_core.job.events import ERROR, INFO, WARNING
from dreambooth_core.stages.preflight.picture_checks import (
    BLURRED_BELOW,
    MOST_UNREADABLE,
    blurry,
    far_from_model,
    groups_of_likes,
    named,
    near_duplicates,
    shared_files,
    too_small,
    unreadable,
)
from dreambooth_core.stages.preflight.pictures import (
    Look,
    difference,
    fingerprint,
    look_at,
    look_at_all,
    sharpness,
)

BUCKETS = make_buckets(256, 32)


def scene(seed: int, size: tuple[int, int] = (256, 256)) -> Image.Image:
    """Shapes in colors, as different from scene to scene as photographs of different things."""
    generator = numpy.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(int(c) for c in generator.integers(0, 256, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(14):
        left, top = (int(generator.integers(0, side)) for side in size)
        wide, high = (int(generator.integers(10, side // 2)) for side in size)
        color = tuple(int(c) for c in generator.integers(0, 256, 3))
        draw.ellipse((left, top, left + wide, top + high), fill=color)
    return image


def put(image: Image.Image, path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def looks(*paths: Path) -> list[Look]:
    return list(look_at_all(paths, BUCKETS))


def test_the_laplacian_of_a_single_point_by_hand() -> None:
    gray = Image.new("L", (5, 5), 100)
    gray.putpixel((2, 2), 110)
    # Nine inner pixels: -40 in the middle, 10 at its four sides, 0 in the corners; the mean is 0.
    assert sharpness(gray) == pytest.approx((40**2 + 4 * 10**2) / 9)
    assert sharpness(Image.new("L", (5, 5), 7)) == 0.0
    assert sharpness(Image.new("L", (2, 9), 7)) == 0.0


def test_it_is_the_variance_that_numpy_computes() -> None:
    pixels = numpy.asarray(scene(3).convert("L")).astype(float) * 0.2  # no clipping below 255
    gray = Image.fromarray(pixels.astype(numpy.uint8))
    p = numpy.asarray(gray).astype(float)
    inner = p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] - 4 * p[1:-1, 1:-1]
    assert sharpness(gray) == pytest.approx(inner.var(), rel=1e-6)


def test_blur_lowers_the_sharpness_and_is_told(tmp_path: Path) -> None:
    sharp = scene(1)
    values = [
        sharpness(sharp.filter(ImageFilter.GaussianBlur(radius)).convert("L"))
        for radius in (0, 1, 2, 4)
    ]
    assert values == sorted(values, reverse=True) and values[0] > 5 * BLURRED_BELOW > values[3]
    soft = put(sharp.filter(ImageFilter.GaussianBlur(4)), tmp_path / "soft.png")
    (finding,) = blurry(looks(put(sharp, tmp_path / "sharp.png"), soft))
    assert finding.level == WARNING and "soft.png" in finding.message
    assert "sharp.png" not in finding.message and "sharper" in finding.remedy
    assert list(blurry(looks(tmp_path / "sharp.png"))) == []


def test_copies_in_another_size_and_quality_are_found(tmp_path: Path) -> None:
    original = put(scene(1, (400, 300)), tmp_path / "a.png")
    copy = put(scene(1, (400, 300)).resize((200, 150)), tmp_path / "b.jpg", quality=60)
    other = put(scene(2, (400, 300)), tmp_path / "c.png")
    (finding,) = near_duplicates(looks(original, copy, other))
    assert finding.level == WARNING and finding.message.startswith("a.png and b.jpg show")
    rises, colors = difference(*(fingerprint(open_image(path)) for path in (original, copy)))
    assert rises < 0.06 and colors < 4
    rises, colors = difference(*(fingerprint(open_image(path)) for path in (original, other)))
    assert rises > 0.2 and colors > 20


def test_a_group_names_all_its_pictures_once(tmp_path: Path) -> None:
    paths = [put(scene(n // 2), tmp_path / f"{n}.png") for n in range(6)]
    groups = groups_of_likes(looks(*paths))
    assert [[look.path.name for look in group] for group in groups] == [
        ["0.png", "1.png"],
        ["2.png", "3.png"],
        ["4.png", "5.png"],
    ]


def test_plain_pictures_of_different_colors_are_no_copies(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (64, 64), color) for color in ("red", "blue"))
    assert groups_of_likes(looks(put(red, tmp_path / "r.png"), put(blue, tmp_path / "b.png"))) == []


@pytest.mark.parametrize(("side", "level"), [(256, None), (200, INFO), (100, WARNING)])
def test_too_small_for_its_bucket(tmp_path: Path, side: int, level: str | None) -> None:
    found = list(too_small(looks(put(scene(1, (side, side)), tmp_path / "a.png")), 256))
    assert [finding.level for finding in found] == ([level] if level else [])
    if found:
        assert f"a.png has {side}x{side} pixels for 256x256" in found[0].message
        assert str(side) in found[0].remedy and found[0].field == "images.resolution"


@pytest.mark.parametrize(
    ("resolution", "own", "is_far"),
    [
        (512, 512, False),
        (768, 512, False),
        (1024, 512, True),
        (512, 1024, True),
        (768, 1024, False),
    ],
)
def test_a_resolution_far_from_the_models_own(resolution: int, own: int, is_far: bool) -> None:
    found = list(far_from_model(resolution, own))
    assert [finding.level for finding in found] == [WARNING] * is_far
    if found:
        assert f"made for pictures of {own} pixels" in found[0].message
        assert f"Train at {own}" in found[0].remedy and found[0].field == "images.resolution"


def test_a_wide_picture_is_measured_against_its_own_bucket(tmp_path: Path) -> None:
    (look,) = looks(put(scene(1, (600, 150)), tmp_path / "wide.png"))
    assert look.bucket[0] > 3 * look.bucket[1]
    assert look.enlargement == pytest.approx(look.bucket[1] / 150, rel=0.2)


def test_what_cannot_be_read_is_an_error_with_its_name(tmp_path: Path) -> None:
    whole = put(scene(1), tmp_path / "whole.jpg")
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.png").write_text("no picture")
    found = list(unreadable(looks(whole, torn, tmp_path / "text.png")))
    assert [finding.level for finding in found] == [ERROR, ERROR]
    assert "torn.jpg" in found[0].message and "text.png" in found[1].message
    assert all(finding.remedy for finding in found)
    many = [Look(tmp_path / str(n), problem=f"{n}", remedy="x") for n in range(30)]
    assert len(list(unreadable(many))) == MOST_UNREADABLE + 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "I;16", "CMYK", "1"])
def test_every_kind_of_picture_can_be_looked_at(tmp_path: Path, mode: str) -> None:
    image = scene(1)
    if mode == "I;16":
        gray = numpy.asarray(image.convert("L")).astype(numpy.uint16) * 257
        image = Image.fromarray(gray)
    else:
        image = image.convert(mode)
    path = put(image, tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    look = look_at(path, BUCKETS)
    assert not look.problem and look.size == (256, 256) and look.sharpness > BLURRED_BELOW
    plain = fingerprint(open_image(path))
    rises, colors = difference(look.fingerprint, plain)
    assert rises < 0.1 and colors < 6  # as training reads it


def test_floating_point_pictures_are_refused_as_training_does(tmp_path: Path) -> None:
    path = put(scene(1).convert("F"), tmp_path / "float.tif")
    assert "floating point" in look_at(path, BUCKETS).problem


def test_a_turned_photograph_is_measured_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = put(scene(1, (300, 200)), tmp_path / "turned.jpg", exif=exif)
    assert look_at(path, BUCKETS).size == (200, 300)


def test_pictures_that_are_both_are_found_by_their_content(tmp_path: Path) -> None:
    instance = [put(scene(n), tmp_path / "instance" / f"{n}.png") for n in range(3)]
    classes = [put(scene(n), tmp_path / "class" / f"{n + 7}.png") for n in range(2, 5)]
    (finding,) = shared_files(instance, classes)
    assert finding.level == WARNING and "1 picture is both" in finding.message
    assert "9.png" in finding.message and "class images folder" in finding.remedy
    assert list(shared_files(instance, classes[1:])) == [] == list(shared_files(instance, []))


def test_names_are_listed_shortly(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.png" for n in range(6)]
    assert named(paths[:1]) == "0.png" and named(paths[:2]) == "0.png and 1.png"
    assert named(paths) == "0.png, 1.png, 2.png and 3 more"


def test_a_thousand_pictures_take_seconds(tmp_path: Path) -> None:
    picture = scene(1, (512, 512))
    first = put(picture, tmp_path / "0.jpg", quality=85)
    paths = [first]
    for number in range(1, 200):
        paths.append(tmp_path / f"{number}.jpg")
        paths[-1].write_bytes(first.read_bytes())
    for glanced in ([], paths):
        began = time.process_time()
        found = list(look_at_all(paths, BUCKETS, glanced))
        milliseconds = (time.process_time() - began) / len(paths) * 1000
        sys.stdout.write(f"{milliseconds:.1f} ms of CPU for a picture\n")
        assert {look.size for look in found} == {(512, 512)}
        assert all((look.sharpness > 0) != bool(glanced) for look in found)


def test_a_glance_still_finds_what_is_cut_short(tmp_path: Path) -> None:
    whole = put(scene(1), tmp_path / "whole.jpg")
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(whole.read_bytes()[:-300])
    found = list(look_at_all([whole, torn], BUCKETS, [whole, torn]))
    assert [bool(look.problem) for look in found] == [False, True]
