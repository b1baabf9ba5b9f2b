"""One picture: memory over one training step, plain and planned, under the budget line.

Knows how to draw a trace as SVG without any library. Every column of the picture shows the most
that is held during its share of the step, so no peak is lost however short it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.byte_sizes import format_bytes, format_seconds
from planner.graphs import Phase, Schedule, Subject, Trace, step_phases
from planner.output.svg import GRID, document, line, text, ticks
from planner.plan.step_plan import StepPlan

COLUMNS = 480
WIDTH, HEIGHT = 960, 400
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 60, 44
PLAIN, PLANNED, RESIDENT, BUDGET = "#c3c9d3", "#3b7dd8", "#1f4a86", "#c62f2f"
_DASHED = 'stroke-dasharray="7 4"'


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where seconds and bytes fall on the canvas."""

    seconds: float
    top_bytes: int

    def x(self, seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * seconds / self.seconds

    def y(self, size_bytes: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * size_bytes / self.top_bytes


def render_timeline_svg(plan: StepPlan) -> str:
    """Draw memory over time before and after, with the budget, as a self-contained SVG."""
    plain = _starts(plan.plain, plan.plain_trace)
    planned = _starts(plan.schedule, plan.trace)
    most = max(plan.budget_bytes, plan.peak_bytes, plan.plain_peak_bytes, 1)
    scale = _Scale(float(max(plain[-1], planned[-1])), int(most * 1.08) + 1)
    body = [
        *_axes(scale, timed=plan.seconds > 0),
        _area(scale, plain, _held(plan.plain, plan.plain_trace), PLAIN),
        _area(scale, planned, _held(plan.schedule, plan.trace), PLANNED),
        _resident(scale, float(planned[-1]), plan.graph.resident_bytes),
        *_phases(scale, plan, planned),
        _across(scale.y(plan.budget_bytes), f'stroke="{BUDGET}" stroke-width="2" {_DASHED}'),
        *_legend(plan),
    ]
    return document(WIDTH, HEIGHT, "Memory over one training step, plain and planned", body)


def _starts(schedule: Schedule, trace: Trace) -> NDArray[np.float64]:
    """Return when each computation starts, and at the end when the last clock stops.

    A step that takes no time is drawn with one unit an op.
    """
    if not trace.seconds:
        return np.arange(len(schedule.order) + 1.0)
    return np.append(trace.start_seconds[_computes(schedule)], trace.seconds)


def _computes(schedule: Schedule) -> list[bool]:
    return [s.action.subject is Subject.OP for s in schedule.steps]


def _held(schedule: Schedule, trace: Trace) -> NDArray[np.int64]:
    """Return what is held during each computation."""
    return trace.live_bytes[_computes(schedule)]


def _area(scale: _Scale, starts: NDArray[np.float64], held: NDArray[np.int64], fill: str) -> str:
    """Draw the most held in every column; computations that touch a column count for it."""
    edges = np.linspace(0.0, starts[-1], COLUMNS + 1)
    first = np.searchsorted(starts[1:], edges[:-1], side="left")
    end = np.searchsorted(starts[:-1], edges[1:], side="right")
    columns = [int(held[a:b].max()) for a, b in zip(first, end, strict=True)]
    path = [f"M{scale.x(0):.1f} {scale.y(0):.1f}"]
    for i, size in enumerate(columns):
        if i == 0 or size != columns[i - 1]:
            path.append(f"H{scale.x(edges[i]):.1f}V{scale.y(size):.1f}")
    path.append(f"H{scale.x(starts[-1]):.1f}V{scale.y(0):.1f}Z")
    return f'<path d="{"".join(path)}" fill="{fill}"/>'


def _resident(scale: _Scale, seconds: float, size_bytes: int) -> str:
    top, width = scale.y(size_bytes), scale.x(seconds) - scale.x(0)
    height = scale.y(0) - top
    return (
        f'<rect x="{scale.x(0):.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'fill="{RESIDENT}"/>'
    )


def _axes(scale: _Scale, *, timed: bool) -> Iterator[str]:
    for size in ticks(0, scale.top_bytes):
        y = scale.y(size)
        yield _across(y, f'stroke="{GRID}"')
        yield text(LEFT - 8, y + 4, format_bytes(int(size)), anchor="end")
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        moment = scale.seconds * share
        label = format_seconds(moment) if timed else f"{moment:.0f} ops"
        anchor = {0.0: "start", 1.0: "end"}.get(share, "middle")
        yield text(scale.x(moment), HEIGHT - BOTTOM + 20, label, anchor=anchor)


def _phases(scale: _Scale, plan: StepPlan, starts: NDArray[np.float64]) -> Iterator[str]:
    """Mark where a phase of the planned step begins."""
    phases = step_phases(plan.graph, plan.schedule)
    computed = [
        p
        for p, s in zip(phases, plan.schedule.steps, strict=True)
        if s.action.subject is Subject.OP
    ]
    previous: Phase | None = None
    for start, phase in zip(starts, computed, strict=False):
        if phase is not previous:
            x, near_edge = scale.x(float(start)), start > 0.9 * scale.seconds
            yield line(x, TOP - 6, x, HEIGHT - BOTTOM, 'stroke="#8b949e" stroke-dasharray="2 3"')
            side, anchor = (-4, "end") if near_edge else (4, "start")
            yield text(x + side, TOP + 6, phase.value, anchor=anchor, fill="#57606a")
        previous = phase


def _legend(plan: StepPlan) -> Iterator[str]:
    entries = (
        (PLAIN, f"plain: peak {format_bytes(plan.plain_peak_bytes)}"),
        (PLANNED, f"planned: peak {format_bytes(plan.peak_bytes)}"),
        (RESIDENT, f"always held: {format_bytes(plan.graph.resident_bytes)}"),
        (BUDGET, f"budget: {format_bytes(plan.budget_bytes)}"),
    )
    for i, (fill, label) in enumerate(entries):
        x, high = LEFT + i * 224, 2 if fill == BUDGET else 14
        yield f'<rect x="{x}" y="{25 - high // 2}" width="14" height="{high}" fill="{fill}"/>'
        yield text(x + 20, 30, label)


def _across(y: float, style: str) -> str:
    return line(LEFT, y, WIDTH - RIGHT, y, style)
