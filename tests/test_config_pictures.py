"""Which files are pictures, which are masks, and what a folder's name says."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth_core.config.pictures import (
    FolderName,
    mask_file,
    picture_files,
    read_folder_name,
)


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_masks_beside_their_pictures_are_no_pictures(tmp_path: Path) -> None:
    """One without a picture is a picture: nothing is left out that belongs to nothing."""
    folder = files(
        tmp_path,
        *("a.jpg", "a.mask.png", "b.png", "b-masklabel.png", "c.MASK.PNG", "c.webp"),
        *("lonely.mask.png", "sub/a.mask.png"),
    )
    found = [path.relative_to(folder).as_posix() for path in picture_files(folder)]
    assert found == ["a.jpg", "b.png", "c.webp", "lonely.mask.png", "sub/a.mask.png"]


def test_the_mask_of_a_picture(tmp_path: Path) -> None:
    folder = files(tmp_path, "a.jpg", "a.mask.png", "b.png", "b-masklabel.png", "c.png")
    masks = [mask_file(folder / name) for name in ("a.jpg", "b.png", "c.png")]
    assert masks == [folder / "a.mask.png", folder / "b-masklabel.png", None]
    files(tmp_path, "b.mask.png")
    assert mask_file(folder / "b.png") == folder / "b.mask.png"


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("9_w0ut3r man", FolderName(9, "w0ut3r man")),
        ("10_zwx_red_dog", FolderName(10, "zwx red dog")),
        ("3_", FolderName(3, "")),
        ("0_zwx dog", None),
        ("zwx dog", None),
        ("v2_zwx", None),
        ("9_w0ut3r man/close", FolderName(9, "w0ut3r man")),
        ("9_w0ut3r man/2_far", FolderName(2, "far")),
    ],
)
def test_a_folders_name_as_kohya_reads_it(
    tmp_path: Path, folder: str, expected: FolderName | None
) -> None:
    """Number and underscore, then words; the nearest folder counts."""
    assert read_folder_name(tmp_path / folder / "a.png", tmp_path) == expected


def test_folders_above_the_concepts_own_do_not_count(tmp_path: Path) -> None:
    """Its own does; a picture elsewhere has none."""
    top = tmp_path / "2019_holiday" / "4_zwx dog"
    assert read_folder_name(top / "a.png", top) == FolderName(4, "zwx dog")
    inner = top.parent / "plain"
    assert read_folder_name(inner / "a.png", inner) is None
    assert read_folder_name(top / "a.png", inner) is None
