"""Plan six whole models near their least budgets: ``python -m benchmarks.tight [NAME...]``.

The graphs are files (``benchmarks/instances``), and so are the budgets and the best schedules known
(``best_known.json`` beside them), so that numbers compare from release to release. Every schedule
there is judged by ``simulate`` before it counts, at each budget that it fits. A run adds what it
finds; it ends with 1 if ``auto`` is beaten by a schedule on record, by a method that people use
today, or takes more than its seconds, and if a schedule undercuts a bound.

``--methods`` compares others on the same graphs, ``--frozen`` leaves the record as it is.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.instances import OWN
from benchmarks.record import record, show
from planner.graphs import Graph, read_graph, schedule_from_order, simulate
from planner.solvers import Limits, minimum_budget, solve

BEST_KNOWN = Path(__file__).parent / "best_known.json"
MULTIPLES = (1.0, 1.02, 1.05, 1.10, 1.20)
METHODS = ("auto", "blocks_uniform", "blocks_greedy", "chen_greedy")
LATE = 1.05
"""A solve may take so many times its limit."""
TOLERANCE = 1e-6
"""Fractions of the step that are told apart."""


@dataclass(frozen=True)
class Row:
    """One method at one budget, a multiple of the least that the record names for a model.

    Percents are of the time of every op running once. ``known_percent`` is the best schedule on
    record; the bound is the best that is proved at this or a larger budget of the run.
    """

    model: str
    ops: int
    multiple: float
    budget_bytes: int
    method: str
    status: str
    cost_percent: float
    bound_percent: float
    known_percent: float
    solve_seconds: float
    message: str


@dataclass(frozen=True)
class Least:
    """What ``minimum_budget`` says of one model; ``known_bytes`` is the least peak on record."""

    model: str
    least_bytes: int
    floor_bytes: int
    known_bytes: int
    solve_seconds: float


class Record:
    """The best schedules known of one graph: orders by the bytes that they need."""

    def __init__(self, graph: Graph, least_bytes: int, orders: Sequence[str]) -> None:
        self.graph, self.least_bytes = graph, least_bytes
        self.known: list[tuple[int, float, list[int]]] = []
        for text in orders:
            self.add(unpacked(text))

    def add(self, order: Sequence[int]) -> None:
        """Judge an order; keep it unless one known needs no more bytes and no more time."""
        trace = simulate(self.graph, schedule_from_order(self.graph, order))
        peak, seconds = trace.peak_bytes, trace.seconds
        slack = TOLERANCE * self.graph.seconds / 10
        if any(p <= peak and s <= seconds + slack for p, s, _ in self.known):
            return
        self.known = [k for k in self.known if k[0] < peak or k[1] < seconds - slack]
        self.known = sorted([*self.known, (peak, seconds, list(order))])

    def percent(self, budget: int) -> float:
        """Return the least extra time known within a budget; infinity if nothing fits."""
        found = [seconds for peak, seconds, _ in self.known if peak <= budget]
        return 100 * (min(found, default=math.inf) / self.graph.seconds - 1)


def packed(order: Sequence[int]) -> str:
    """Write an order as runs of consecutive ops.

    >>> packed([0, 1, 2, 1, 3, 4]), unpacked("0-2 1 3-4")
    ('0-2 1 3-4', [0, 1, 2, 1, 3, 4])
    """
    runs: list[list[int]] = []
    for op in order:
        if runs and op == runs[-1][1] + 1:
            runs[-1][1] = op
        else:
            runs.append([op, op])
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def unpacked(text: str) -> list[int]:
    """Read what ``packed`` wrote."""
    runs = [[int(n) for n in part.split("-")] for part in text.split()]
    return [op for run in runs for op in range(run[0], run[-1] + 1)]


def load_records(names: Sequence[str]) -> dict[str, Record]:
    """Read graphs and what is known of them."""
    data = json.loads(BEST_KNOWN.read_text(encoding="utf-8"))
    return {
        name: Record(read_graph(OWN / f"{name}.json"), *data[name].values())
        for name in names or data
    }


def save_records(records: dict[str, Record]) -> None:
    """Write what is known of the models named; what the file says of others stays."""
    data = json.loads(BEST_KNOWN.read_text(encoding="utf-8"))
    for name, known in records.items():
        orders = [packed(order) for _, _, order in known.known]
        data[name] = {"least_bytes": known.least_bytes, "orders": orders}
    BEST_KNOWN.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def measure(
    name: str, known: Record, multiples: Sequence[float], methods: Sequence[str], limits: Limits
) -> Iterator[Row]:
    """Solve one model at every budget, the largest first: its bounds hold for the smaller ones."""
    graph, proved = known.graph, 0.0
    for multiple in sorted(multiples, reverse=True):
        budget = int(multiple * known.least_bytes)
        for method in methods:
            start = time.perf_counter()
            found = solve(graph, budget, method=method, limits=limits)
            spent = time.perf_counter() - start
            cost = math.nan
            if found.schedule is not None:
                cost = 100 * (simulate(graph, found.schedule).seconds / graph.seconds - 1)
            if method == "auto":
                proved = max(proved, 100 * (found.bound_seconds / graph.seconds - 1))
            before = known.percent(budget)
            if found.schedule is not None and not found.reordered:
                known.add(found.schedule.order)
            yield Row(
                name, len(graph.ops), multiple, budget, method, found.status.name, cost, proved,
                before, spent, found.message,
            )  # fmt: skip


def least_of(name: str, known: Record, limits: Limits) -> Least:
    """Look for the least budget of one model; the record learns its schedule."""
    start = time.perf_counter()
    found = minimum_budget(known.graph, limits)
    spent = time.perf_counter() - start
    before = min(peak for peak, _, _ in known.known) if known.known else found.least_bytes
    known.add(found.schedule.order)
    return Least(name, found.least_bytes, found.floor_bytes, before, spent)


def defects(rows: Sequence[Row], leasts: Sequence[Least], seconds: float) -> list[str]:
    """Name what should not be."""
    found = []
    ours = {(r.model, r.budget_bytes): r for r in rows if r.method == "auto"}
    for row in rows:
        label, slack = f"{row.model} at {row.multiple:g}x: {row.method}", 100 * TOLERANCE
        auto = ours.get((row.model, row.budget_bytes))
        known = min(row.known_percent, row.cost_percent if row.cost_percent >= 0 else math.inf)
        if auto is not None and not auto.cost_percent <= known + slack:
            found.append(f"{label}: auto's {auto.cost_percent:.3f}% is beaten by {known:.3f}%")
        if known < row.bound_percent - slack:
            found.append(f"{label}: {known:.3f}% is below the bound of {row.bound_percent:.3f}%")
        if row.method == "auto" and row.solve_seconds > LATE * seconds:
            found.append(f"{label} took {row.solve_seconds:.1f} of {seconds:g} s")
    for least in leasts:
        if not least.floor_bytes <= least.known_bytes:
            found.append(f"{least.model}: {least.known_bytes} bytes are below the floor")
        if least.least_bytes > least.known_bytes:
            found.append(f"{least.model}: {least.known_bytes} bytes are known to do")
    return found


def main() -> None:
    """Measure the models named, or all; record CSVs and exit with 1 if there is a defect."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tight")
    parser.add_argument("names", metavar="NAME", nargs="*")
    parser.add_argument("--multiples", default=",".join(map(str, MULTIPLES)))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seconds", type=float, default=60.0, help="the limit of one solve")
    parser.add_argument("--frozen", action="store_true", help="leave the record as it is")
    options = parser.parse_args()
    limits, rows, leasts = Limits(seconds=options.seconds), list[Row](), list[Least]()
    multiples = [float(part) for part in options.multiples.split(",")]
    records = load_records(options.names)
    for name, known in records.items():
        leasts.append(least_of(name, known, limits))
        rows += measure(name, known, multiples, options.methods.split(","), limits)
        show(name, [row for row in rows if row.model == name])
        if not options.frozen:
            save_records({name: known})
    show("least", leasts)
    print(record("tight", rows), record("tight-least", leasts), sep="\n")
    wrong = defects(rows, leasts, options.seconds)
    print("\n".join(wrong) or f"{len(rows)} rows: auto is never beaten, no bound is undercut")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
