"""A sharded step whose loss is computed in chunks: which of its variants is planned.

How one variant is planned is handed in. Each is searched with its part of the time, and no further
than where it may still be quicker than those before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from planner.errors import BadRequest, InfeasibleBudget
from planner.graphs.capture.rewrites import AS_CAPTURED, Declined
from planner.loss_chunks import AUTO, names, refused
from planner.plan.sharded_step_plan import ShardedStepPlan
from planner.request import Request
from planner.running.engines import engine_of

PlanVariant = Callable[[Request, str, float], ShardedStepPlan | None]
"""Plans the variant of a name, within the limits of a request, if it takes less than so long."""


def best_variant(request: Request, plan: PlanVariant) -> ShardedStepPlan:
    """Plan the quickest variant of a sharded step; if it may, a step that fits stays as it is.

    Args:
        request: says in how many chunks.
        plan: plans one variant.

    Raises:
        BadRequest: the engine does not compute a loss in chunks, or the step has none that can be.
        InfeasibleBudget: no variant was found to fit; the error is of the one that comes closest.
    """
    if engine_of(request.engine).units is not None:
        raise BadRequest(
            f"loss_chunks= over several devices is not for engine={request.engine!r} so far: leave "
            "one of them out"
        )
    best: ShardedStepPlan | None = None
    failed, reasons = list[InfeasibleBudget](), list[Declined]()
    for name, part in _parts(request):
        try:
            found = plan(part, name, math.inf if best is None else best.seconds)
        except InfeasibleBudget as error:
            failed.append(error)
        except Declined as reason:
            reasons.append(reason)
        else:
            best = found or best  # none is found that is no quicker
            if name == AS_CAPTURED.name and best and best.seconds <= best.plain_seconds:
                break
    if best is not None:
        return best
    if failed:
        raise min(failed, key=lambda error: error.least_bytes)
    raise refused(request.loss_chunks, str(reasons[0]))


def _parts(request: Request) -> Iterator[tuple[str, Request]]:
    """Yield each variant with an equal part of the solver's time; if a plan may choose, all."""
    named = names(request.loss_chunks, request.logits)
    if request.loss_chunks == AUTO:
        named = [AS_CAPTURED.name, *named]
    limits = replace(request.limits, seconds=request.limits.seconds / len(named))
    yield from ((name, replace(request, limits=limits)) for name in named)
