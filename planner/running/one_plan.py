"""All ranks of a group run one plan: else they would wait for each other's collectives for ever.

Knows how ranks compare what they are about to run. Knows nothing of programs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from planner.errors import PlanMismatch
from planner.graphs.torch_api.collective_ops import group_named
from planner.plan.step_plan import StepPlan

if TYPE_CHECKING:
    import torch.distributed as dist


def require_one_plan(plan: StepPlan, groups: Iterable[str]) -> None:
    """Compare the plans of all ranks that a step communicates with; each takes part.

    Args:
        plan: of this rank.
        groups: of its collectives, by the names that this process has for them.

    Raises:
        PlanMismatch: ranks have different plans; the message says which.
    """
    compare(digest(plan), [group_named(name) for name in groups])


def compare(own: str, groups: Iterable[dist.ProcessGroup]) -> None:
    """Compare what stands for the plans of ranks that share a step; each takes part.

    What a group has told is told to the next one, so that over the dimensions of a mesh all ranks
    know of all plans before one of them stops.

    Args:
        own: of this rank.
        groups: that this rank is in, in the same order on all ranks.

    Raises:
        PlanMismatch: ranks have different plans; the message says which.
    """
    import torch.distributed as dist

    # a fake group stands for ranks that are not there
    there = [group for group in groups if dist.get_backend(group) != "fake"]
    known = {dist.get_rank(): own} if there else {}
    for group in there:
        found: list[dict[int, str]] = [{}] * group.size()
        dist.all_gather_object(found, known, group=group)
        for told in found:
            known |= told
    first = min(known, default=0)
    if others := [r for r in sorted(known) if known[r] != known[first]]:
        raise PlanMismatch(
            f"ranks {', '.join(map(str, others))} have another plan than rank {first}, with "
            "which they share the step: their collectives would not meet. Make the plan on one "
            "rank, plan.save() it, and planner.load() it on all"
        )


def digest(plan: StepPlan) -> str:
    """Return a text that is the same for plans that run the same ops in the same order."""
    steps = [(step.action.name, step.index) for step in plan.schedule.steps]
    ops = [(op.target, op.inputs, op.outputs) for op in plan.graph.ops]
    return digest_of([plan.engine, plan.rewrite, ops, steps])


def digest_of(told: list[Any]) -> str:
    """Return a text of fixed length that is the same for the same lists of plain values."""
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
