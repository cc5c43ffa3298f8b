"""Curves as SVG: no plotting package, alike in every version of Gradio, legible light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[int, float]

WIDTH, HEIGHT = 640, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 20, 12, 28
MOST_SHOWN = 400
WANTED_TICKS = 4


@dataclass(frozen=True)
class Line:
    """One curve: what it is called, its (step, value) points and how it is drawn."""

    label: str
    points: Sequence[Point]
    color: str
    width: float = 1.5
    opacity: float = 1.0


@dataclass(frozen=True)
class Axes:
    """The ranges that are shown, and where they are on the drawing."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        """Return the horizontal place of a step."""
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Return the vertical place of a value; larger ones are higher up."""
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def plot(title: str, lines: Sequence[Line]) -> str:
    """Return the lines over common axes, with a legend; "" if there is nothing to draw."""
    drawn = [line for line in lines if line.points]
    if not drawn:
        return ""
    axes = _axes(drawn)
    parts = [*_grid(axes), *(_path(line, axes) for line in drawn)]
    label = escape(f"{title}: {', '.join(line.label for line in drawn)}")
    return (
        '<figure class="dreambooth-plot">'
        f"<figcaption><strong>{escape(title)}</strong>{''.join(map(_key, drawn))}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg></figure>"
    )


def ticks(low: float, high: float, wanted: int = WANTED_TICKS) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten apart) between low and high."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def shown_points(points: Sequence[Point], most: int = MOST_SHOWN) -> list[Point]:
    """Return evenly chosen points, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    scale = (len(points) - 1) / (most - 1)
    return [points[round(index * scale)] for index in range(most)]


def _axes(lines: Sequence[Line]) -> Axes:
    steps = [step for line in lines for step, _ in line.points]
    values = [value for line in lines for _, value in line.points]
    low, high = min(values), max(values)
    margin = (high - low) * 0.06 or abs(high) * 0.5 or 1.0
    below = max(0.0, low - margin) if low >= 0 else low - margin
    return Axes(min(steps), max(max(steps), min(steps) + 1), below, high + margin)


def _grid(axes: Axes) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value in ticks(axes.y_low, axes.y_high):
        y = f"{axes.y(value):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y}" dy="4" text-anchor="end">{value:.3g}</text>')
    for value in ticks(axes.x_low, axes.x_high):
        if value == int(value):
            x = f"{axes.x(value):.1f}"
            parts.append(f'<text x="{x}" y="{HEIGHT - 8}" text-anchor="middle">{value:.0f}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    return parts


def _path(line: Line, axes: Axes) -> str:
    places = [
        f"{axes.x(step):.1f},{axes.y(value):.1f}" for step, value in shown_points(line.points)
    ]
    if len(places) == 1:
        x, _, y = places[0].partition(",")
        return f'<circle cx="{x}" cy="{y}" r="3" fill="{line.color}"/>'
    return (
        f'<polyline points="{" ".join(places)}" fill="none" stroke="{line.color}"'
        f' stroke-width="{line.width}" stroke-opacity="{line.opacity}" stroke-linejoin="round"/>'
    )


def _key(line: Line) -> str:
    last = line.points[-1][1]
    return (
        f'<span class="key"><i style="background:{line.color}"></i>'
        f"{escape(line.label)} {last:.3g}</span>"
    )
