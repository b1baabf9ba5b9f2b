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
    for name in groups:
        compare(digest(plan), group_named(name))


def compare(own: str, group: dist.ProcessGroup) -> None:
    """Compare what stands for the plans of a group's ranks; each takes part.

    Args:
        own: of this rank.
        group: of ranks that share a step.

    Raises:
        PlanMismatch: ranks have different plans; the message says which.
    """
    import torch.distributed as dist

    if dist.get_backend(group) == "fake":  # it stands for ranks that are not there
        return
    found: list[str] = [""] * group.size()
    dist.all_gather_object(found, own, group=group)
    ranks = dist.get_process_group_ranks(group)
    if others := [r for r, d in zip(ranks, found, strict=True) if d != found[0]]:
        raise PlanMismatch(
            f"ranks {', '.join(map(str, others))} have another plan than rank {ranks[0]}, with "
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
