"""A labelled sheet of pictures: one row per checkpoint, one column per prompt."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

RGB = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PAPER: RGB = (255, 255, 255)
INK: RGB = (25, 25, 30)
FAINT: RGB = (95, 95, 105)
MARK: RGB = (214, 240, 214)

_MIN_PICTURE = 128
_GAP = 4
_MARGIN = 12
_LABEL_WIDTH = 190


@dataclass(frozen=True)
class GridRow:
    """One row: a bold title, smaller lines under it, and the pictures of every column."""

    title: str
    cells: Sequence[Sequence[Image.Image]]
    lines: Sequence[str] = ()
    marked: bool = False


@dataclass(frozen=True)
class _Fonts:
    large: Font = field(default_factory=lambda: ImageFont.load_default(17))
    medium: Font = field(default_factory=lambda: ImageFont.load_default(14))
    small: Font = field(default_factory=lambda: ImageFont.load_default(12))


def wrap_text(text: str, font: Font, width: int) -> list[str]:
    """Break `text` into lines of at most `width` pixels; a word too long for one is cut."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if font.getlength(joined) <= width and lines:
            lines[-1] = joined
        else:
            lines.extend(_cut_word(word, font, width))
    return lines


def _cut_word(word: str, font: Font, width: int) -> list[str]:
    length = len(word)
    while length > 1 and font.getlength(word[:length]) > width:
        length -= 1
    return textwrap.wrap(word, length) if length < len(word) else [word]


def _line_height(font: Font) -> int:
    _, top, _, bottom = font.getbbox("Ag")
    return round(bottom - top) + 6


def _text_height(text: str, font: Font, width: int) -> int:
    return len(wrap_text(text, font, width)) * _line_height(font)


def _write(
    draw: ImageDraw.ImageDraw, origin: tuple[int, int], text: str, font: Font, width: int, ink: RGB
) -> int:
    """Write wrapped text and return the y below it."""
    x, y = origin
    for line in wrap_text(text, font, width):
        draw.text((x, y), line, font=font, fill=ink)
        y += _line_height(font)
    return y


def enlarge(picture: Image.Image) -> Image.Image:
    """Return the picture at least 128 pixels wide, enlarged by a whole factor with hard edges."""
    factor = max(1, -(-_MIN_PICTURE // picture.width))
    size = (picture.width * factor, picture.height * factor)
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST)


def _cell_size(rows: Sequence[GridRow]) -> tuple[int, int]:
    """Return the largest cell's width and height, for its pictures side by side."""
    cells = [[enlarge(picture) for picture in cell] for row in rows for cell in row.cells]
    widths = [sum(p.width for p in cell) + _GAP * (len(cell) - 1) for cell in cells]
    return max(widths), max(picture.height for cell in cells for picture in cell)


def _paste_cell(sheet: Image.Image, cell: Sequence[Image.Image], x: int, y: int) -> None:
    for picture in map(enlarge, cell):
        sheet.paste(picture, (x, y))
        x += picture.width + _GAP


def _label_height(row: GridRow, fonts: _Fonts) -> int:
    lines = sum(_text_height(line, fonts.small, _LABEL_WIDTH) for line in row.lines)
    return _text_height(row.title, fonts.medium, _LABEL_WIDTH) + 4 + lines


def _write_label(draw: ImageDraw.ImageDraw, row: GridRow, y: int, fonts: _Fonts) -> None:
    y = _write(draw, (_MARGIN, y), row.title, fonts.medium, _LABEL_WIDTH, INK) + 4
    for line in row.lines:
        y = _write(draw, (_MARGIN, y), line, fonts.small, _LABEL_WIDTH, FAINT)


def labelled_grid(title: str, columns: Sequence[str], rows: Sequence[GridRow]) -> Image.Image:
    """Draw the sheet; every row has one cell (a list of pictures) per column heading."""
    if any(len(row.cells) != len(columns) for row in rows) or not rows:
        raise ValueError("every row needs one cell per column, and there must be a row")
    fonts = _Fonts()
    cell_width, cell_height = _cell_size(rows)
    left = _MARGIN + _LABEL_WIDTH + _MARGIN
    width = left + len(columns) * (cell_width + _MARGIN)
    title_height = _text_height(title, fonts.large, width - 2 * _MARGIN)
    heads = max(_text_height(column, fonts.medium, cell_width) for column in columns)
    heights = [max(cell_height, _label_height(row, fonts)) + _MARGIN for row in rows]
    top = _MARGIN + title_height + _MARGIN + heads + _MARGIN
    sheet = Image.new("RGB", (width, top + sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (_MARGIN, _MARGIN), title, fonts.large, width - 2 * _MARGIN, INK)
    for number, column in enumerate(columns):
        x = left + number * (cell_width + _MARGIN)
        _write(draw, (x, _MARGIN + title_height + _MARGIN), column, fonts.medium, cell_width, INK)
    y = top
    for row, height in zip(rows, heights, strict=True):
        if row.marked:
            draw.rectangle((0, y - _MARGIN // 2, width, y + height - _MARGIN // 2), fill=MARK)
        _write_label(draw, row, y, fonts)
        for number, cell in enumerate(row.cells):
            _paste_cell(sheet, cell, left + number * (cell_width + _MARGIN), y)
        y += height
    return sheet
