"""Plan fixed graphs at fractions of their peak: ``python -m benchmarks.instances [FILE...]``.

Reads the node-link instances that others have published and graphs that ``save_graph`` wrote;
without a file, those of ``benchmarks/instances``. One row a case, infeasible ones included, with
the op that makes them so. ``build_seconds`` is reading the file and building and checking the
graph; building the integer programs is part of ``solve_seconds``.

Where the order of a file is poor, plans leave it, which is printed, and their bound is for any
order; ``--keep-order`` forbids that and records ``instances-in-order``.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.record import record, show
from planner.graphs import Graph, plain_schedule, read_graph, simulate
from planner.solvers import Limits, Solution, Status, solve

OWN = Path(__file__).parent / "instances"
BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
LIMITS = Limits(seconds=60.0, gap=1e-4)


@dataclass(frozen=True)
class Row:
    """One instance at one budget, a fraction of what it holds if nothing is recomputed.

    Percents are of the time of every op running once; what is not known or impossible is ``nan``
    or ``inf``.
    """

    instance: str
    ops: int
    budget_fraction: float
    status: str
    cost_percent: float
    bound_percent: float
    peak_fraction: float
    build_seconds: float
    solve_seconds: float


def measure(path: Path, fractions: Sequence[float], limits: Limits = LIMITS) -> Iterator[Row]:
    """Read one file and solve it at every budget."""
    start = time.perf_counter()
    graph = read_graph(path)
    build_seconds = time.perf_counter() - start
    most_bytes = simulate(graph, plain_schedule(graph)).peak_bytes
    for fraction in fractions:
        row, solution = solved(
            path.stem, graph, fraction, span_bytes=most_bytes, limits=limits,
            build_seconds=build_seconds,
        )  # fmt: skip
        if solution.schedule is None:
            print(f"{path.stem} at {100 * fraction:g}%: {solution.status.name}: {solution.message}")
        elif solution.reordered:
            print(f"{path.stem} at {100 * fraction:g}%: {solution.message}")
        yield row


def solved(
    name: str,
    graph: Graph,
    fraction: float,
    *,
    base_bytes: int = 0,
    span_bytes: int,
    build_seconds: float,
    limits: Limits,
) -> tuple[Row, Solution]:
    """Solve a graph at a base and a fraction of a span above it, which peaks count in, too."""
    start = time.perf_counter()
    solution = solve(graph, base_bytes + int(fraction * span_bytes), limits=limits)
    solve_seconds = time.perf_counter() - start
    cost_percent, peak_bytes = _judged(graph, solution)
    row = Row(
        instance=name,
        ops=len(graph.ops),
        budget_fraction=fraction,
        status=solution.status.name,
        cost_percent=cost_percent,
        bound_percent=_percent(solution.bound_seconds, graph),
        peak_fraction=(peak_bytes - base_bytes) / span_bytes,
        build_seconds=build_seconds,
        solve_seconds=solve_seconds,
    )
    return row, solution


def _judged(graph: Graph, solution: Solution) -> tuple[float, float]:
    """Return the percent and the peak of a solution."""
    if solution.schedule is None:
        return math.inf if solution.status is Status.INFEASIBLE else math.nan, math.nan
    trace = simulate(graph, solution.schedule)
    return _percent(trace.seconds, graph), trace.peak_bytes


def _percent(seconds: float, graph: Graph) -> float:
    return 100 * (seconds / graph.seconds - 1)


def main() -> None:
    """Measure the files of the command line; record one CSV."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instances")
    parser.add_argument("files", metavar="FILE", nargs="*", type=Path, default=None)
    parser.add_argument(
        "--budgets",
        metavar="FRACTIONS",
        default=",".join(map(str, BUDGETS)),
        help="fractions of the peak, parted by commas (default %(default)s)",
    )
    parser.add_argument(
        "--keep-order", action="store_true", help="let first runs keep the order of the file"
    )
    options = parser.parse_args()
    limits = replace(LIMITS, reorder=not options.keep_order)
    fractions = [float(part) for part in options.budgets.split(",")]
    files = options.files or sorted(OWN.glob("*.json"))
    rows = [row for path in files for row in measure(path, fractions, limits)]
    name = "instances-in-order" if options.keep_order else "instances"
    show(name, rows)
    print(record(name, rows))


if __name__ == "__main__":
    main()
