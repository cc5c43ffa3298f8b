"""The labelled sheet: sizes, places of pictures, wrapped labels, the marked row."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont

from dreambooth_core.stages.grid import INK, MARK, PAPER, GridRow, enlarge, labelled_grid, wrap_text

RED, BLUE = (200, 10, 20), (10, 20, 200)
FONT = ImageFont.load_default(14)


def picture(color: tuple[int, int, int], side: int = 128) -> Image.Image:
    return Image.new("RGB", (side, side), color)


def colors_of(image: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(color) for color in np.asarray(image).reshape(-1, 3).tolist()}


def places_of(sheet: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) of all pixels of a color."""
    ys, xs = np.nonzero((np.asarray(sheet) == color).all(axis=-1))
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def test_pictures_stand_in_their_row_and_column() -> None:
    rows = [
        GridRow("first", [[picture(RED)], [picture(BLUE)]]),
        GridRow("second", [[picture(PAPER)], [picture(PAPER)]]),
    ]
    sheet = labelled_grid("title", ["a man", "a dog"], rows)
    red, blue = places_of(sheet, RED), places_of(sheet, BLUE)
    assert (red[2] - red[0], red[3] - red[1]) == (128, 128)
    assert blue[0] > red[2] and blue[1] == red[1]
    assert red[3] < sheet.height - 128


def test_pictures_of_a_cell_stand_side_by_side() -> None:
    sheet = labelled_grid("title", ["x"], [GridRow("row", [[picture(RED), picture(BLUE)]])])
    red, blue = places_of(sheet, RED), places_of(sheet, BLUE)
    assert blue[0] - red[2] == 4 and blue[1] == red[1]
    assert blue[2] <= sheet.width


def test_small_pictures_are_enlarged_by_a_whole_factor() -> None:
    assert enlarge(picture(RED, 64)).size == (128, 128)
    assert enlarge(picture(RED, 50)).size == (150, 150)
    assert enlarge(picture(RED, 512)).size == (512, 512)
    assert colors_of(enlarge(picture(RED, 64))) == {RED}


def test_the_marked_row_has_another_ground() -> None:
    rows = [GridRow("a", [[picture(RED)]]), GridRow("b", [[picture(BLUE)]], marked=True)]
    sheet = labelled_grid("title", ["x"], rows)
    mark, blue, red = places_of(sheet, MARK), places_of(sheet, BLUE), places_of(sheet, RED)
    assert mark[1] > red[3] - 1 and mark[1] < blue[1] and mark[3] > blue[3]
    unmarked = labelled_grid("title", ["x"], rows[:1])
    assert MARK not in colors_of(unmarked)


def test_long_labels_are_wrapped_inside_the_sheet() -> None:
    prompt = "a photo of a zwx man with a very long description of everything he wears " * 3
    lines = ["one line of numbers that is wide enough to need wrapping"] * 12
    sheet = labelled_grid("t", [prompt], [GridRow("n" * 80, [[picture(PAPER, 128)]], lines)])
    pixels = np.asarray(sheet.convert("L"))
    assert pixels[:, -4:].min() > 200 and pixels[-4:].min() > 200
    assert pixels.min() < 60


def test_label_is_drawn_in_ink() -> None:
    sheet = labelled_grid("title", ["column"], [GridRow("row", [[picture(PAPER)]])])
    assert INK in colors_of(sheet)


@pytest.mark.parametrize("width", [60, 100, 300])
def test_wrap_text_keeps_words_and_width(width: int) -> None:
    text = "a photo of a zwx man standing at the beach"
    lines = wrap_text(text, FONT, width)
    assert " ".join(lines) == text
    assert all(FONT.getlength(line) <= width for line in lines)


def test_wrap_text_cuts_a_word_that_is_too_long() -> None:
    lines = wrap_text("model_00001200.safetensors", FONT, 70)
    assert len(lines) > 1 and "".join(lines) == "model_00001200.safetensors"
    assert all(FONT.getlength(line) <= 70 for line in lines)


def test_wrap_text_of_nothing_is_nothing() -> None:
    assert wrap_text("  ", FONT, 100) == []


def test_rows_must_fit_the_columns() -> None:
    with pytest.raises(ValueError, match="one cell per column"):
        labelled_grid("t", ["a", "b"], [GridRow("r", [[picture(RED)]])])
    with pytest.raises(ValueError, match="there must be a row"):
        labelled_grid("t", ["a"], [])
