"""Where is "5x less activation memory for 20% more compute" true? ``python -m benchmarks.claim``.

Activation memory is the most, at any moment of the step, that is held of what forward ops made for
the backward pass: parameters, gradients (of activations, too), optimizer state, inputs, workspace
weigh nothing here. So the step is planned on a graph in which only those values weigh, and the
least budget that at most 20% more time allows is its answer; the bound says what no plan reaches.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, replace

from benchmarks.cases import capture_zoo
from benchmarks.models import ZOO
from benchmarks.record import record, show
from planner.graphs import Graph, Kind, Schedule, Value, plain_schedule, simulate
from planner.solvers import Limits, floor_bytes, solve
from planner.solvers.bounds.parametric import quick_bound

OVERHEAD = 0.2
REDUCTION = 5.0
CLOSE = 1.005
"""Bytes found and bytes refuted that are this close are left alone."""
SOLVES = 8
LIMITS = Limits(seconds=10)


@dataclass(frozen=True)
class Row:
    """One model. ``verdict`` is "true", "impossible" (by the bound), or "open" in between.

    ``most_reduction`` is what no plan exceeds; ``peak_reduction`` compares everything that is held
    at the peaks of the plain step and of this plan.
    """

    model: str
    ops: int
    plain_activation_bytes: int
    activation_bytes: int
    bound_activation_bytes: int
    reduction: float
    most_reduction: float
    overhead_fraction: float
    peak_reduction: float
    verdict: str
    total_seconds: float


def only_activations(graph: Graph) -> Graph:
    """Return the graph with no weight but that of values that forward ops make."""
    values = tuple(
        v if v.kind in (Kind.ACTIVATION, Kind.OUTPUT) and i not in graph.resident else _empty(v)
        for i, v in enumerate(graph.values)
    )
    ops = tuple(replace(op, workspace_bytes=0) for op in graph.ops)
    return replace(graph, ops=ops, values=values)


def _empty(value: Value) -> Value:
    return replace(value, size_bytes=0)


def refuted_below(graph: Graph, most: int) -> int:
    """Return the least budget at which the allowed overhead is not proved too little."""
    low, high = floor_bytes(graph) - 1, most
    while high - low > max(1, most // 2000):
        middle = (low + high) // 2
        if quick_bound(graph, middle) > graph.seconds * (1 + OVERHEAD):
            low = middle
        else:
            high = middle
    return low + 1


@dataclass(frozen=True)
class Found:
    """The least peak found at the allowed overhead, its schedule, and what is refuted below."""

    peak_bytes: int
    refuted_bytes: int
    schedule: Schedule


def least(graph: Graph, floor: int, most: int) -> Found:
    """Close in on the least peak at the allowed overhead, first just above the floor."""
    allowed = graph.seconds * (1 + OVERHEAD)
    best, schedule, refuted, low = most, plain_schedule(graph), floor, floor
    budget = math.ceil(floor * CLOSE)
    for _ in range(SOLVES):
        if budget >= best:
            break
        found = solve(graph, budget, limits=LIMITS)
        trace = None if found.schedule is None else simulate(graph, found.schedule)
        if found.schedule is not None and trace is not None and trace.seconds <= allowed:
            best, schedule = trace.peak_bytes, found.schedule
        else:
            low = budget
            refuted = max(refuted, budget + 1) if found.bound_seconds > allowed else refuted
        if best <= low * CLOSE:
            break
        budget = math.isqrt(low * best)
    return Found(best, refuted, schedule)


def measure(name: str) -> Row:
    """Find the least activation memory of one model."""
    start, full = time.perf_counter(), capture_zoo(name, optimizer=None).graph
    graph = only_activations(full)
    plain = simulate(graph, plain_schedule(graph)).peak_bytes
    found = least(graph, refuted_below(graph, plain), plain)
    planned = simulate(full, found.schedule)
    reduction, most = plain / found.peak_bytes, plain / found.refuted_bytes
    verdict = "true" if reduction >= REDUCTION else "impossible" if most < REDUCTION else "open"
    return Row(
        model=name,
        ops=len(full.ops),
        plain_activation_bytes=plain,
        activation_bytes=found.peak_bytes,
        bound_activation_bytes=found.refuted_bytes,
        reduction=reduction,
        most_reduction=most,
        overhead_fraction=planned.seconds / full.seconds - 1,
        peak_reduction=simulate(full, plain_schedule(full)).peak_bytes / planned.peak_bytes,
        verdict=verdict,
        total_seconds=time.perf_counter() - start,
    )


def main() -> None:
    """Measure the models named, or the whole zoo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="NAME", default=list(ZOO))
    rows = []
    for name in parser.parse_args().models:
        rows.append(measure(name))
        show(name, rows[-1:])
    show(f"{REDUCTION:g}x less activation memory for {OVERHEAD:.0%} more time", rows)
    print(record("claim", rows))


if __name__ == "__main__":
    main()
