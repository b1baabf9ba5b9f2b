"""The few strokes that every picture here is made of, as SVG text."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

INK, GRID = "#30363d", "#e4e7ec"


def document(width: int, height: int, title: str, body: Iterable[str]) -> str:
    """Return a self-contained picture on white.

    Args:
        width, height: in pixels.
        title: what it shows, for those who cannot see it.
        body: elements, the lowest first.
    """
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="13">'
    )
    back = f'<rect width="{width}" height="{height}" fill="white"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", back, *body, "</svg>", ""])


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """Draw a straight line.

    Args:
        x1, y1, x2, y2: its ends, in pixels.
        style: attributes of the element.
    """
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'


def text(x: float, y: float, label: str, *, anchor: str = "start", fill: str = INK) -> str:
    """Write a label.

    Args:
        x, y: where, in pixels.
        label: what it says.
        anchor: which end of it is there: start, middle or end.
        fill: its colour.
    """
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{escape(label)}</text>'
    )


def ticks(low: float, high: float, *, most: int = 6) -> list[float]:
    """Return round numbers within a range.

    Args:
        low, high: the range, ends included.
        most: about how many at the finest.

    >>> ticks(0, 10), ticks(2.4, 4.1)
    ([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], [2.5, 3.0, 3.5, 4.0])
    """
    span = high - low
    power = 10.0 ** math.floor(math.log10(span))
    step = next(s for s in (power / 5, power / 2, power, power * 2) if span / s <= most)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
