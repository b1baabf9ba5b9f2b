"""Why a configuration was not chosen: what its time goes into, or what its peak is made of."""

from __future__ import annotations

import math
from dataclasses import fields, replace

from planner.byte_sizes import format_bytes, format_percent, format_seconds
from planner.plan.sharded_step_plan import Alternative
from planner.plan.tensor_parallelism import RefusedDegree, TensorParallelism
from planner.plan.time_parts import Spent, spent
from planner.sharding.configurations import parted_as
from planner.sharding.parted.parallelize import described
from planner.sharding.parted.ways import Ways
from planner.sharding.pricing import Needs, Planned, peak_of
from planner.sharding.space import Outcome, SearchResult

_WHY = {
    "compute": "compute takes",
    "communication": "communication that compute does not hide takes",
    "recomputation": "running ops again takes",
    "optimizer": "the optimizer step takes",
}


def why_slower(mine: Spent, best: Spent, samples: int) -> str:
    """Name the part of the step that costs most more than in the best plan.

    Args:
        mine, best: where the seconds of each go.
        samples: of one step.

    >>> why_slower(Spent(2.0, 1.0, 0.0, 0.1), Spent(2.0, 0.2, 0.1, 0.1), 8)
    'slower: communication that compute does not hide takes 100 ms more a sample'
    """
    more = {f.name: getattr(mine, f.name) - getattr(best, f.name) for f in fields(Spent)}
    part = max(more, key=more.__getitem__)
    if more[part] <= 0:
        return "as fast"
    return f"slower: {_WHY[part]} {format_seconds(more[part] / samples)} more a sample"


def alternatives(
    found: SearchResult, budget_bytes: int, holds: Needs = peak_of
) -> tuple[Alternative, ...]:
    """List every configuration but the best one, and the recipes of the best one's, best first.

    Args:
        found: how the search ended.
        budget_bytes: what was searched within.
        holds: what a plan holds as it really runs, no less than its tensors.
    """
    assert found.best is not None
    best = found.best
    rows = [
        _rejected(outcome, best)
        for outcome in found.outcomes
        if outcome.configuration != best.configuration and not outcome.impossible
    ]
    rows += [
        _recipe(p, best, budget_bytes, holds) for p in found.recipes if p.recipe != best.recipe
    ]
    return tuple(sorted(rows, key=lambda a: (a.seconds_per_sample, str(a.configuration))))


def tensor_parallelism(ways: Ways, found: SearchResult) -> TensorParallelism | None:
    """Say how layers are parted in the best plan, and which degrees are impossible.

    Args:
        ways: that were allowed.
        found: how the search ended.
    """
    assert found.best is not None
    tried = {o.configuration.tensor_ranks for o in found.outcomes}
    best = found.best.configuration
    why = {o.configuration.tensor_ranks: o.impossible for o in found.outcomes if o.impossible}
    seen = {o.configuration.tensor_ranks for o in found.outcomes if not o.impossible}
    captured = [RefusedDegree(d, reason) for d, reason in why.items() if d not in seen]
    refused = (*ways.refused, *captured) if tried != {1} or not ways.only_if_needed else ()
    if tried == {1} and not refused:
        return None
    return TensorParallelism(described(ways.styles[parted_as(best)]), ways.declared, refused)


def _rejected(outcome: Outcome, best: Planned) -> Alternative:
    c, samples = outcome.configuration, outcome.configuration.global_batch
    known, fitting = outcome.seconds, outcome.bound_seconds < math.inf
    row = Alternative(
        configuration=c,
        recipe="",
        fits=known is not None,
        planned=known is not None,
        peak_bytes=outcome.peak_bytes,
        seconds_per_sample=(outcome.bound_seconds if known is None else known) / samples,
        reason="",
        bound_seconds_per_sample=outcome.bound_seconds / samples if fitting else None,
    )
    if not fitting:
        return replace(row, reason=outcome.fills)
    if outcome.spent is None:
        sent = " with the collectives of its layers" if c.tensor_ranks > 1 else ""
        reason = (
            f"slower: compute and optimizer alone{sent} take longer than the whole of the best plan"
        )
        return replace(row, reason=reason)
    if outcome.solved and outcome.seconds is None:
        reason = "no schedule was found that fits; none is proved impossible"
        return replace(row, reason=reason)
    reason = why_slower(outcome.spent, spent(best.graph, best.schedule), samples)
    if not outcome.solved and outcome.bound_seconds < best.seconds:
        left = format_percent(1 - outcome.bound_seconds / best.seconds)
        reason = f"could be faster by {left} at most: not solved further"
    return replace(row, reason=reason)


def _recipe(planned: Planned, best: Planned, budget_bytes: int, holds: Needs) -> Alternative:
    c, peak_bytes = planned.configuration, planned.peak_bytes
    if peak_bytes <= budget_bytes:  # else a compiler need not be asked
        peak_bytes = holds(planned)
    over = peak_bytes - budget_bytes
    mine = spent(planned.graph, planned.schedule)
    slower = why_slower(mine, spent(best.graph, best.schedule), c.global_batch)
    return Alternative(
        configuration=c,
        recipe=str(planned.recipe),
        fits=over <= 0,
        planned=True,
        peak_bytes=peak_bytes,
        seconds_per_sample=planned.seconds / c.global_batch,
        bound_seconds_per_sample=planned.seconds / c.global_batch,
        reason=slower if over <= 0 else f"does not fit: {format_bytes(over)} over the budget",
    )
