"""A pen in the world's own units: 128 by 128, with position, size and mirroring applied."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from dreambooth_core.world.palette import RGB

UNITS = 128
OVERSAMPLING = 2

Point = tuple[float, float]


def shade(color: RGB, factor: float) -> RGB:
    """Return the colour made darker (factor < 1) or lighter, within 0..255."""
    red, green, blue = (min(255, round(channel * factor)) for channel in color)
    return red, green, blue


class Pen:
    """Draws shapes given in world units around a pivot that is moved, scaled and mirrored."""

    def __init__(
        self,
        image: Image.Image,
        pivot: Point = (64.0, 64.0),
        shift: Point = (0.0, 0.0),
        scale: float = 1.0,
        mirrored: bool = False,
    ) -> None:
        """Bind the pen to an oversampled image."""
        self.image = image
        self._draw = ImageDraw.Draw(image)
        self._pivot = pivot
        self._shift = shift
        self._scale = scale
        self._sign = -1.0 if mirrored else 1.0
        self._unit = image.width / UNITS

    def place(self, point: Point) -> Point:
        """Turn a point of the drawing into pixels of the oversampled image."""
        x = (point[0] - self._pivot[0]) * self._scale * self._sign + 64.0 + self._shift[0]
        y = (point[1] - self._pivot[1]) * self._scale + self._pivot[1] + self._shift[1]
        return x * self._unit, y * self._unit

    def length(self, units: float) -> float:
        """Turn a length into pixels of the oversampled image."""
        return units * self._scale * self._unit

    def _box(self, left: float, top: float, right: float, bottom: float) -> tuple[float, ...]:
        (x0, y0), (x1, y1) = self.place((left, top)), self.place((right, bottom))
        return min(x0, x1), y0, max(x0, x1), y1

    def rectangle(
        self, left: float, top: float, right: float, bottom: float, color: RGB, radius: float = 0.0
    ) -> None:
        """Fill a rectangle with rounded corners."""
        self._draw.rounded_rectangle(
            self._box(left, top, right, bottom), self.length(radius), fill=color
        )

    def ellipse(self, x: float, y: float, width: float, height: float, color: RGB) -> None:
        """Fill an ellipse given by its centre and its two radii."""
        self._draw.ellipse(self._box(x - width, y - height, x + width, y + height), fill=color)

    def circle(self, x: float, y: float, radius: float, color: RGB) -> None:
        """Fill a circle."""
        self.ellipse(x, y, radius, radius, color)

    def dome(self, x: float, y: float, radius: float, color: RGB, upper: bool = True) -> None:
        """Fill the upper or lower half of a circle."""
        start, end = (180, 360) if upper else (0, 180)
        box = self._box(x - radius, y - radius, x + radius, y + radius)
        self._draw.pieslice(box, start, end, fill=color)

    def polygon(self, points: Sequence[Point], color: RGB) -> None:
        """Fill a polygon."""
        self._draw.polygon([self.place(point) for point in points], fill=color)

    def line(self, start: Point, end: Point, width: float, color: RGB) -> None:
        """Draw a thick line with round ends."""
        self._draw.line(
            [self.place(start), self.place(end)], fill=color, width=round(self.length(width))
        )
        for x, y in (start, end):
            self.circle(x, y, width / 2, color)
