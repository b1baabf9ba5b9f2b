"""Why a configuration was not chosen: what its time goes into, or what its peak is made of.

Knows how to read outcomes of the search. Chooses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace

from graphs import Graph, Phase, Schedule
from planner.advice import tightest
from planner.binding import binding
from planner.sharding.plan import Alternative
from planner.sharding.search import Found, Outcome, Planned
from planner.units import format_bytes, format_seconds


@dataclass(frozen=True, slots=True)
class Spent:
    """Where the seconds of a step go; ``communication`` is what compute does not hide.

    ``recomputation`` is everything that runs again, gathering included.
    """

    compute: float
    communication: float
    recomputation: float
    optimizer: float


def spent(graph: Graph, schedule: Schedule | None = None) -> Spent:
    """Split the seconds of a schedule, or of every op once.

    >>> from graphs import Op, Value, schedule_from_order
    >>> ops = (Op("f", "f", (), (0,), 2.0), Op("b", "f", (0,), (1,), 3.0, phase=Phase.BACKWARD))
    >>> g = Graph(ops, (Value("x", 1), Value("y", 1)))
    >>> spent(g, schedule_from_order(g, [0, 0, 1]))
    Spent(compute=5.0, communication=0.0, recomputation=2.0, optimizer=0.0)
    """
    parts = dict.fromkeys(Phase, 0.0)
    for op in graph.ops:
        parts[op.phase] += op.seconds
    again = 0.0
    if schedule is not None:
        again = sum(graph.ops[i].seconds for i in schedule.order) - graph.seconds
    compute = parts[Phase.FORWARD] + parts[Phase.BACKWARD]
    return Spent(compute, parts[Phase.COMMUNICATION], max(0.0, again), parts[Phase.OPTIMIZER])


_WHY = {
    "compute": "compute takes",
    "communication": "communication that compute does not hide takes",
    "recomputation": "running ops again takes",
    "optimizer": "the optimizer step takes",
}


def why_slower(mine: Spent, best: Spent, samples: int) -> str:
    """Name the part of the step that costs most more than in the best plan.

    >>> why_slower(Spent(2.0, 1.0, 0.0, 0.1), Spent(2.0, 0.2, 0.1, 0.1), 8)
    'slower: communication that compute does not hide takes 100 ms more a sample'
    """
    more = {f.name: getattr(mine, f.name) - getattr(best, f.name) for f in fields(Spent)}
    part = max(more, key=more.__getitem__)
    if more[part] <= 0:
        return "as fast within the gap"
    return f"slower: {_WHY[part]} {format_seconds(more[part] / samples)} more a sample"


def why_not(planned: Planned, budget_bytes: int) -> str:
    """Say what fills the device where a configuration's lowest known peak is."""
    found = binding(planned.graph, planned.schedule, planned.trace)
    tight = tightest(planned.graph, planned.schedule, found)
    if tight.fixed_bytes >= budget_bytes:
        return f"model states alone hold {format_bytes(tight.fixed_bytes)}"
    if found.phase is Phase.OPTIMIZER:
        return "peak is in optimizer.step; recomputation cannot help"
    where = f" of {found.module}" if found.module else ""
    share = f"{format_bytes(found.category_bytes)} of it {found.category.value}"
    return f"peak is in the {found.phase.value} phase{where}, {share}; recomputation is used up"


def alternatives(found: Found, budget_bytes: int) -> tuple[Alternative, ...]:
    """List every configuration but the best one, and the recipes of the best one's, best first."""
    assert found.best is not None
    best = found.best
    rows = [
        _rejected(outcome, best, budget_bytes)
        for outcome in found.outcomes
        if outcome.configuration != best.configuration
    ]
    chosen = next(o for o in found.outcomes if o.configuration == best.configuration)
    rows += [_recipe(p, best, budget_bytes) for p in chosen.recipes if p is not best]
    return tuple(sorted(rows, key=lambda a: (a.seconds_per_sample, str(a.configuration))))


def _rejected(outcome: Outcome, best: Planned, budget_bytes: int) -> Alternative:
    c, samples = outcome.configuration, outcome.configuration.global_batch
    seen = outcome.best or outcome.least
    peak = None if seen is None else seen.peak_bytes
    row = Alternative(
        c,
        "",
        fits=outcome.best is not None,
        planned=False,
        peak_bytes=peak,
        seconds_per_sample=math.inf,
        reason="",
    )
    if outcome.bound_seconds == math.inf:
        assert outcome.least is not None
        return replace(row, reason=why_not(outcome.least, budget_bytes))
    if seen is None:
        reason = "slower: compute alone takes longer than the whole of the best plan"
        return replace(row, seconds_per_sample=outcome.bound_seconds / samples, reason=reason)
    if outcome.solved and outcome.best is None:
        reason = "no schedule was found that fits; none is proved impossible"
        return replace(row, seconds_per_sample=outcome.bound_seconds / samples, reason=reason)
    if outcome.solved and outcome.best is not None:
        mine, seconds = spent(outcome.best.graph, outcome.best.schedule), outcome.best.seconds
        reason = why_slower(mine, spent(best.graph, best.schedule), samples)
        return replace(row, planned=True, seconds_per_sample=seconds / samples, reason=reason)
    reason = why_slower(spent(seen.graph), spent(best.graph, best.schedule), samples)
    return replace(row, seconds_per_sample=outcome.bound_seconds / samples, reason=reason)


def _recipe(planned: Planned, best: Planned, budget_bytes: int) -> Alternative:
    c, fits = planned.configuration, planned.peak_bytes <= budget_bytes
    seconds, reason = planned.seconds / c.global_batch, ""
    if fits:
        mine = spent(planned.graph, planned.schedule)
        reason = why_slower(mine, spent(best.graph, best.schedule), c.global_batch)
    else:
        over = format_bytes(planned.peak_bytes - budget_bytes)
        reason = f"does not fit: {over} over the budget"
    return Alternative(
        c,
        str(planned.recipe),
        fits=fits,
        planned=True,
        peak_bytes=planned.peak_bytes,
        seconds_per_sample=seconds,
        reason=reason,
    )


def families(rows: Iterable[Alternative]) -> Iterator[tuple[Alternative, int]]:
    """Yield the best row of each way to shard, and how many micro-batches it stands for."""
    groups: dict[object, list[Alternative]] = {}
    for row in rows:
        groups.setdefault((row.recipe, row.configuration.way), []).append(row)
    for group in groups.values():
        yield min(group, key=_rank), len(group)


def _rank(row: Alternative) -> tuple[float, float]:
    return row.seconds_per_sample, math.inf if row.peak_bytes is None else row.peak_bytes
