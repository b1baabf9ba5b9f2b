"""One picture: overhead against budget, what is attained, what is proved, and what others attain.

Knows how to draw a ``Curve`` as SVG without any library. Whatever lies in the shaded area is proved
impossible; between it and the line of the plans is what is not known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

from planner.analysis.curve import Curve
from planner.byte_sizes import format_bytes
from planner.output.svg import GRID, INK, document, line, text, ticks

WIDTH, HEIGHT = 960, 520
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 48, 64
SAMPLES = 480
"""Budgets at which the envelope is drawn."""
OURS, PROVED, MUTED = "#1f5fbf", "#e9d8d4", "#57606a"
COLOURS = (
    *("#c77700", "#2e8b57", "#8e44ad", "#b03a6f", "#00838f", "#6d6d6d", "#d4502a"),
    *("#4a5d9e", "#8a6d1f"),
)
PLOT = f'x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}"'


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where budgets and overheads fall on the canvas."""

    low: float
    high: float
    top: float

    def x(self, budget_bytes: float) -> float:
        share = (budget_bytes - self.low) / (self.high - self.low)
        return LEFT + (WIDTH - LEFT - RIGHT) * share

    def y(self, overhead: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(overhead / self.top, 1.2)


def render_curve_svg(curve: Curve) -> str:
    """Draw the frontier, its proven envelope and the heuristics as a self-contained SVG."""
    scale = _scale(curve)
    body = [
        f'<defs><clipPath id="plot"><rect {PLOT}/></clipPath></defs>',
        f'<g clip-path="url(#plot)">{_impossible(curve, scale)}</g>',
        *_axes(curve, scale),
        '<g clip-path="url(#plot)">',
        *_rivals(curve, scale),
        *_ours(curve, scale),
        "</g>",
        *_legend(curve),
    ]
    return document(WIDTH, HEIGHT, "Extra time against memory budget", body)


def _scale(curve: Curve) -> _Scale:
    low = min(curve.frontier.floor_bytes, curve.least_bytes)
    span = max(curve.plain_bytes - low, 1)
    top = max(*(p.overhead for p in curve.points), 0.01)
    return _Scale(low - 0.03 * span, curve.plain_bytes + 0.03 * span, 1.08 * top)


def _impossible(curve: Curve, scale: _Scale) -> str:
    """Shade what lies below the envelope, and all of the budgets that no plan fits."""
    budgets = [scale.low + (scale.high - scale.low) * i / SAMPLES for i in range(SAMPLES + 1)]
    path = [f"M{scale.x(scale.low):.1f} {scale.y(0):.1f}"]
    for budget in budgets:
        proved = curve.fraction(curve.frontier.bound_seconds(budget))
        height = scale.top * 1.2 if math.isinf(proved) else proved
        path.append(f"L{scale.x(budget):.1f} {scale.y(height):.1f}")
    path.append(f"L{scale.x(scale.high):.1f} {scale.y(0):.1f}Z")
    return f'<path d="{"".join(path)}" fill="{PROVED}"/>'


def _axes(curve: Curve, scale: _Scale) -> Iterator[str]:
    bottom = HEIGHT - BOTTOM
    for share in ticks(0, scale.top):
        y = scale.y(share)
        yield line(LEFT, y, WIDTH - RIGHT, y, f'stroke="{GRID}"')
        yield text(LEFT - 8, y + 4, f"+{100 * share:.3g}%", anchor="end")
    for size in ticks(scale.low, scale.high, most=8):
        x = scale.x(size)
        yield line(x, bottom, x, bottom + 5, f'stroke="{INK}"')
        yield text(x, bottom + 20, format_bytes(int(size)), anchor="middle")
    yield line(LEFT, bottom, WIDTH - RIGHT, bottom, f'stroke="{INK}"')
    middle = (LEFT + WIDTH - RIGHT) / 2
    name = f" of {curve.graph.name}" if curve.graph.name else ""
    yield text(middle, HEIGHT - 12, f"memory budget of one training step{name}", anchor="middle")
    yield text(LEFT - 56, TOP - 24, "extra time, of the plain step")


def _ours(curve: Curve, scale: _Scale) -> Iterator[str]:
    marks = [(p.budget_bytes, p.overhead) for p in curve.points]
    yield _stairs(scale, marks, f'stroke="{OURS}" stroke-width="2.5"')
    for budget, overhead in marks:
        x, y = scale.x(budget), scale.y(overhead)
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{OURS}"/>'


def _rivals(curve: Curve, scale: _Scale) -> Iterator[str]:
    for (_, marks), colour in zip(curve.rivals.items(), cycle(COLOURS), strict=False):
        steps = [(m.peak_bytes, curve.fraction(m.seconds)) for m in marks]
        yield _stairs(scale, steps, f'stroke="{colour}" stroke-width="1.2"')
        for budget, overhead in steps:
            x, y = scale.x(budget), scale.y(overhead)
            yield f'<rect x="{x - 2:.1f}" y="{y - 2:.1f}" width="4" height="4" fill="{colour}"/>'


def _stairs(scale: _Scale, marks: Sequence[tuple[float, float]], style: str) -> str:
    """Draw what is attained at every budget: the last mark to its left."""
    x, y = marks[0]
    path = [f"M{scale.x(x):.1f} {scale.y(y):.1f}"]
    path += [f"H{scale.x(x):.1f}V{scale.y(y):.1f}" for x, y in marks[1:]]
    path.append(f"H{scale.x(scale.high):.1f}")
    return f'<path d="{"".join(path)}" fill="none" {style}/>'


def _legend(curve: Curve) -> Iterator[str]:
    entries = [(OURS, "planned", 3), (PROVED, "proved impossible", 12)]
    entries += [
        (colour, f"{name} ({'eager mode' if name in curve.run_by_torch else 'heuristic'})", 2)
        for name, colour in zip(curve.rivals, cycle(COLOURS), strict=False)
    ]
    left, height = WIDTH - RIGHT - 200, 20 * len(entries) + 4
    yield (
        f'<rect x="{left - 8}" y="{TOP + 4}" width="208" height="{height}" fill="white" '
        'fill-opacity="0.85"/>'
    )
    for i, (fill, label, high) in enumerate(entries):
        y = TOP + 20 + 20 * i
        yield f'<rect x="{left}" y="{y - 4 - high / 2}" width="18" height="{high}" fill="{fill}"/>'
        yield text(left + 26, y, label, fill=MUTED)
