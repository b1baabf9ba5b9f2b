"""All ranks of a group run one plan: else they would wait for each other's collectives for ever.

Knows how ranks compare what they are about to run. Knows nothing of programs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planner.errors import PlanMismatch
from planner.graphs.torch_api.collective_ops import group_named
from planner.plan.step_plan import StepPlan

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh


def require_one_plan(plan: StepPlan, groups: Iterable[str]) -> None:
    """Compare the plans of all ranks that a step communicates with; each takes part.

    Args:
        plan: of this rank.
        groups: of its collectives, by the names that this process has for them.

    Raises:
        PlanMismatch: ranks have different plans; the message says which.
    """
    with all_or_none([group_named(name) for name in groups]) as told:
        told["plan"] = digest(plan)


def groups_to_ask(meshes: Iterable[DeviceMesh], ranks: int) -> list[dist.ProcessGroup]:
    """Return the groups over which the ranks of a step are to be compared before they share it.

    Where they are all that there are, it is the group of all: a rank that was given another mesh is
    in that, too, and in no group of this one.

    Args:
        meshes: that this rank was given.
        ranks: how many share the step.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        return []
    within = [mesh for mesh in meshes if mesh.get_coordinate() is not None]
    if max([ranks, *(mesh.size() for mesh in within)]) >= dist.get_world_size():
        return [group for group in [dist.group.WORLD] if group is not None]
    return [mesh.get_group(d) for mesh in within for d in range(mesh.ndim)]


@contextmanager
def all_or_none(groups: Iterable[dist.ProcessGroup]) -> Iterator[dict[str, str]]:
    """Let the ranks of groups go on together, or none: whoever went on would wait for the others.

    Each takes part. The block yields a mapping, in which it leaves what has to be the same on all
    ranks, by what it is called. What is raised inside on one rank ends the block on every rank.

    Args:
        groups: that this rank is in, in the same order on all ranks.

    Raises:
        PlanMismatch: on ranks where the block was left well, and on others it was not, or what was
            left differs; the message says which.
    """
    told: dict[str, str] = {}
    try:
        yield told
    except Exception as error:
        _exchanged(_Told({}, f"{type(error).__name__}: {error}"), groups)
        raise
    _require_alike(_exchanged(_Told(told), groups))


@dataclass(frozen=True)
class _Told:
    """What one rank says to the others: what has to be the same, or what it raises."""

    same: dict[str, str]
    failed: str = ""


def _exchanged(own: _Told, groups: Iterable[dist.ProcessGroup]) -> dict[int, _Told]:
    """Return what every rank of the groups tells.

    What a group has told is told to the next one, so that over the dimensions of a mesh all ranks
    know of all others.
    """
    import torch.distributed as dist

    # a fake group stands for ranks that are not there
    there = [group for group in groups if dist.get_backend(group) != "fake"]
    known = {dist.get_rank(): own} if there else {}
    for group in there:
        found: list[dict[int, _Told]] = [{}] * group.size()
        dist.all_gather_object(found, known, group=group)
        for told in found:
            known |= told
    return known


def _require_alike(known: Mapping[int, _Told]) -> None:
    if failed := {r: known[r].failed for r in sorted(known) if known[r].failed}:
        ranks, why = ", ".join(map(str, failed)), next(iter(failed.values()))
        raise PlanMismatch(
            f"the plan cannot be applied on ranks {ranks}, with which this one shares the step: "
            f"{why}"
        )
    first = min(known, default=0)
    for what in dict.fromkeys(name for told in known.values() for name in told.same):
        said = {r: known[r].same.get(what) for r in sorted(known)}
        if others := [r for r, text in said.items() if text != said[first]]:
            raise PlanMismatch(
                f"ranks {', '.join(map(str, others))} have another {what} than rank {first}, with "
                "which they share the step: their collectives would not meet. "
                f"{_NEXT.get(what, 'Give all ranks the same')}"
            )


_NEXT = {
    "plan": "Make the plan on one rank, plan.save() it, and planner.load() it on all",
    "model": "Build the same model on all ranks",
    "mesh": "Give all ranks the same mesh=, or none of them any",
    "on_mismatch": "Say the same on_mismatch= on all ranks",
}


def digest(plan: StepPlan) -> str:
    """Return a text that is the same for plans that run the same ops in the same order.

    And that refuse the same steps, where it is up to a router how much is sent.
    """
    steps = [(step.action.name, step.index) for step in plan.schedule.steps]
    ops = [(op.target, op.inputs, op.outputs) for op in plan.graph.ops]
    rows = [r] if (r := plan.signature.get("capacity_rows")) else []
    return digest_of([plan.engine, plan.rewrite, ops, steps, *rows])


def digest_of(told: list[Any]) -> str:
    """Return a text of fixed length that is the same for the same lists of plain values."""
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
