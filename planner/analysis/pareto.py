"""The whole trade of memory against time of one training step, with what is proved about it.

Knows how a curve is found: the frontier, and the heuristics set beside it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Unpack

from planner.allocator_budget import limits_left
from planner.analysis.curve import Curve
from planner.graphs import Schedule
from planner.graphs.hardware.host_tier import HostTier
from planner.host_states import choices
from planner.request import Request, requested, takes
from planner.solvers import Limits
from planner.solvers.baselines.pareto_marks import Mark, rivals, without_a_plan
from planner.solvers.frontier import Frontier, Point, frontier, offered, refined, spaced
from planner.solvers.frontier_with_host import frontier_with_host, refined_with_host
from planner.step_options import VariantOptions
from planner.step_variants import captured_variants, refuse_asked

if TYPE_CHECKING:
    from torch import nn

    from planner.graphs.capture.training_step import Captured

POINTS = 20
RIVALS_ASKED = 5
"""At so many budgets the heuristics that depend on the budget are run."""
POINTS_SHARE, RIVALS_SHARE = 0.7, 0.5
"""With heuristics, the points' part of the seconds, and the heuristics' of what is left; the rest
is for points between."""


@takes(VariantOptions)
def pareto(
    model: nn.Module | Request,
    *,
    points: int = POINTS,
    heuristics: bool = False,
    **said: Unpack[VariantOptions],
) -> Curve:
    """Plan one training step at many budgets: what every byte less costs in time.

    Args:
        model: any ``nn.Module``, or a ``Request``.
        points: how many budgets, from the least known to work to what plain training needs; with
            ``offload`` one more, the least known to work where nothing moves.
        heuristics: set the schedules of the usual heuristics beside ours; a point takes one that is
            quicker, and points come where one is between two.
        said: what else is to be said of the step: see ``Request``. The seconds of ``limits`` are
            for all of it together. With a loss in chunks each point is of the variant that is the
            quickest within its budget.

    Raises:
        ValueError: fewer than two points.
        BadRequest, UnknownDevice, CaptureError: as ``fit`` does.

    >>> from torch import nn, zeros
    >>> model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.GELU())
    >>> curve = pareto(model, inputs=zeros(4096, 64), loss=lambda x: x.square().mean(), points=3)
    >>> curve.points[-1].overhead, curve.points[0].gap < 0.01
    (0.0, True)
    """
    if points < 2:
        raise ValueError(f"points={points} make no curve: ask for 2 or more")
    with requested(model, said, VariantOptions) as request:
        refuse_asked(request, "pareto")
        start = time.perf_counter()
        variants = captured_variants(request)
        spent = time.perf_counter() - start
        found = _best_of(variants, request, points, heuristics=heuristics)
        return replace(found, capture_seconds=spent)


def _best_of(
    variants: Sequence[Captured], request: Request, points: int, *, heuristics: bool
) -> Curve:
    """Return the best points of the curves of all variants, heuristics beside the first."""
    if len(variants) == 1:
        return curve_of(variants[0], request, points, heuristics=heuristics)
    start = time.perf_counter()
    limits = replace(request.limits, seconds=request.limits.seconds / len(variants))
    part = replace(request, limits=limits)
    curves = [
        curve_of(variant, part, points, heuristics=heuristics and not nth)
        for nth, variant in enumerate(variants)
    ]
    best = _best_points(curves)
    wanted = spaced(best[0][0].budget_bytes, best[-1][0].budget_bytes, points)
    kept = [[p for p, _ in best if p.budget_bytes <= budget][-1] for budget in wanted]
    best = [(p, k) for p, k in best if p in kept]
    of = [(p, curves[k]) for p, k in best]
    steps = (c.steps[c.frontier.points.index(p)] for p, c in of if c.steps)
    return Curve(
        variants[0],
        request,
        _together(best, curves),
        curves[0].rivals,
        tuple(steps),
        tuple(c.captured for _, c in of),
        solve_seconds=time.perf_counter() - start,
    )


def curve_of(
    captured: Captured, request: Request, points: int = POINTS, *, heuristics: bool = False
) -> Curve:
    """Return the curve of a captured step; ``pareto`` after its capture.

    Args:
        captured: the step.
        request: what was asked for.
        points: how many budgets.
        heuristics: set the schedules of the usual heuristics beside.
    """
    graph, limits, host = captured.graph, request.limits, request.host
    if host is not None and host.states:
        return _curve_with_states(captured, request, points, heuristics=heuristics)
    request.tell(f"solving {len(graph.ops):,} ops at {points} budgets")
    start = time.perf_counter()
    if heuristics:
        limits = replace(limits, seconds=POINTS_SHARE * limits.seconds)
    if host is None:
        found = frontier(graph, points, limits)
    else:
        found = frontier_with_host(graph, host, points, limits)
    spent = time.perf_counter() - start
    marks: dict[str, tuple[Mark, ...]] = {}
    if heuristics:
        request.tell("running the usual heuristics")
        left = limits_left(request, start)
        quick = Limits(seconds=RIVALS_SHARE * left.seconds, seed=limits.seed)
        marks = rivals(graph, list(_some(found)), quick, eager=captured.eager, host=host)
        request.tell("solving where a heuristic comes between two points")
        between, left = list(_between(found, marks)), limits_left(request, start)
        each = replace(left, seconds=left.seconds / max(1, len(between)))
        if host is None:
            found = refined(graph, found, between, each)
        else:
            found = refined_with_host(graph, host, found, between, each)
        found = offered(graph, found, _schedules(captured, host, marks), host)
        marks = {n: tuple(replace(m, schedule=None) for m in front) for n, front in marks.items()}
    return Curve(captured, request, found, marks, solve_seconds=spent)


def _curve_with_states(
    captured: Captured, request: Request, points: int, *, heuristics: bool
) -> Curve:
    """Return the best points of the curves of every share of the optimizer's states on the host."""
    start, asked_of = time.perf_counter(), list(choices(captured, request))
    limits = replace(request.limits, seconds=request.limits.seconds / len(asked_of))
    curves: list[Curve] = []
    for step in asked_of:
        asked = replace(request, limits=limits, offload=step.host)
        beside = heuristics and step.states is None
        found = curve_of(replace(captured, graph=step.graph), asked, points, heuristics=beside)
        curves.append(found)
    best = _best_points(curves)
    steps = tuple(asked_of[k] for _, k in best)
    together, spent = _together(best, curves), time.perf_counter() - start
    return Curve(captured, request, together, curves[0].rivals, steps, solve_seconds=spent)


def _best_points(curves: Sequence[Curve]) -> list[tuple[Point, int]]:
    """Return the points of any curve that none is better than, each with which curve's it is."""
    points_of = [(p, k) for k, curve in enumerate(curves) for p in curve.frontier.points]
    best: list[tuple[Point, int]] = []
    for point, k in sorted(points_of, key=lambda found: (found[0].budget_bytes, found[0].seconds)):
        if not best or point.seconds < best[-1][0].seconds:
            best.append((point, k))
    return best


def _together(best: Sequence[tuple[Point, int]], curves: Sequence[Curve]) -> Frontier:
    """Return a frontier of some points of curves, and what is proved of all that they are of."""

    def bound(point: Point) -> float:
        return min(c.frontier.bound_seconds(point.budget_bytes) for c in curves)

    return Frontier(
        tuple(replace(p, bound_seconds=min(p.seconds, bound(p))) for p, _ in best),
        (),
        min(c.frontier.floor_bytes for c in curves),
        curves[0].frontier.plain_seconds,
    )


def _schedules(
    captured: Captured, host: HostTier | None, marks: Mapping[str, tuple[Mark, ...]]
) -> Iterator[Schedule]:
    """Yield the schedules of the heuristics, those that were judged in eager mode as a plan's."""
    fronts = dict(marks)
    if captured.eager is not None:
        fronts |= without_a_plan(captured.graph, host)
    yield from (m.schedule for front in fronts.values() for m in front if m.schedule is not None)


def _between(found: Frontier, marks: Mapping[str, tuple[Mark, ...]]) -> Iterator[int]:
    """Yield the budgets, one between two points, at which a heuristic beats the point below."""
    worst: dict[int, tuple[float, int]] = {}
    for mark in (m for front in marks.values() for m in front):
        point = found.at(mark.peak_bytes)
        if point is not None and mark.seconds < point.seconds * (1 - 1e-6):
            ahead = (mark.seconds - point.seconds, mark.peak_bytes)
            worst[point.budget_bytes] = min(worst.get(point.budget_bytes, ahead), ahead)
    yield from sorted(budget for _, budget in worst.values())


def _some(found: Frontier) -> Iterator[int]:
    """Yield a few of the budgets, the ends left out: nothing fits there, or everything does."""
    budgets = [p.budget_bytes for p in found.points][1:-1]
    yield from budgets[:: max(1, len(budgets) // RIVALS_ASKED)]
