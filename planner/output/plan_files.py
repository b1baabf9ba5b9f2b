"""Plans as files: versioned JSON, sealed, validated when read, written whole or not at all.

A step is one integer: ``n >= 0`` computes op ``n``, ``n < 0`` frees value ``~n``. The loader
believes nothing: it checks the seal, the types, the graph, runs the schedule through ``simulate``
and refuses a file whose stated peak or time is not what it finds.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from planner.errors import InvalidPlan
from planner.graphs import Action, Schedule, Step, graph_from_dict, graph_to_dict
from planner.output import checksummed_json
from planner.plan.single import Plan
from planner.solvers import Status

if TYPE_CHECKING:
    from planner.plan.sharded import ShardedPlan

FORMAT = "remat-planner-plan"
VERSION = 1
SHARDED_FORMAT = "remat-planner-sharded-plan"
SHARDED_VERSION = 1

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
StatusName = Literal["OPTIMAL", "FEASIBLE", "INFEASIBLE", "UNKNOWN"]


class Body(BaseModel):
    """What a plan file must hold; nothing more is accepted."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    budget_bytes: Annotated[int, Field(gt=0)]
    peak_bytes: Annotated[int, Field(ge=0)]
    seconds: Seconds
    bound_seconds: Seconds
    status: StatusName
    method: str
    message: str
    device: str
    optimizer: str | None
    costs: str
    capture_seconds: Seconds
    solve_seconds: Seconds
    signature: dict[str, Any]
    steps: list[int]
    graph: dict[str, Any]


def save(plan: Plan, path: str | Path) -> None:
    """Write a plan; the file appears whole or not at all."""
    checksummed_json.write(path, FORMAT, VERSION, body_of(plan))


def load_plan(path: str | Path) -> Plan:
    """Read a plan for one device that ``Plan.save`` wrote.

    Raises:
        InvalidPlan: the file is damaged, truncated, foreign, for several devices, or of a newer
            version.
        OSError: the file cannot be opened.
    """
    plan = load(path)
    if not isinstance(plan, Plan):
        raise InvalidPlan(
            f"{path}: it is a plan for {plan.configuration.world_size} ranks; read it with "
            "planner.load and apply it under torchrun with plan.apply(model, mesh=...)"
        )
    return plan


def load(path: str | Path) -> Plan | ShardedPlan:
    """Read a plan that ``Plan.save`` or ``ShardedPlan.save`` wrote.

    Raises:
        InvalidPlan: the file is damaged, truncated, foreign, or of a newer version.
        OSError: the file cannot be opened.
    """
    versions = {FORMAT: VERSION, SHARDED_FORMAT: SHARDED_VERSION}
    name, body = checksummed_json.read(path, versions)
    if name == FORMAT:
        return plan_of(checksummed_json.checked(Body, body, path), path)
    from planner.output.sharded_plan_files import sharded_plan_of

    return sharded_plan_of(body, path)


def body_of(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain JSON types."""
    return {
        "budget_bytes": plan.budget_bytes,
        "peak_bytes": plan.peak_bytes,
        "seconds": plan.seconds,
        "bound_seconds": plan.bound_seconds,
        "status": plan.status.name,
        "method": plan.method,
        "message": plan.message,
        "device": plan.device,
        "optimizer": plan.optimizer,
        "costs": plan.costs,
        "capture_seconds": plan.capture_seconds,
        "solve_seconds": plan.solve_seconds,
        "signature": dict(plan.signature),
        "steps": steps_of(plan.schedule),
        "graph": graph_to_dict(plan.graph),
    }


def plan_of(fields: Body, path: str | Path) -> Plan:
    """Rebuild a plan and check it against what the file states.

    Raises:
        InvalidPlan: what it states and what it does differ, or it breaks a rule of execution.
    """
    try:
        plan = _plan(fields)
        peak_bytes, seconds = plan.peak_bytes, plan.seconds
    except ValueError as error:
        checksummed_json.refuse(path, str(error), cause=error)
    if peak_bytes != fields.peak_bytes:
        checksummed_json.refuse(
            path, f"it states a peak of {fields.peak_bytes} bytes, but has {peak_bytes}"
        )
    if not math.isclose(seconds, fields.seconds, rel_tol=1e-9):
        checksummed_json.refuse(
            path, f"it states a step of {fields.seconds} s, but takes {seconds} s"
        )
    return plan


def steps_of(schedule: Schedule) -> list[int]:
    """Write a schedule as integers.

    >>> steps_of(Schedule((Step(Action.COMPUTE, 3), Step(Action.FREE, 0))))
    [3, -1]
    """
    return [s.index if s.action is Action.COMPUTE else ~s.index for s in schedule.steps]


def schedule_of(steps: list[int], ops: int) -> Schedule:
    """Read a schedule of a graph with so many ops.

    Raises:
        ValueError: a step computes an op that the graph does not have.
    """
    if (index := max(steps, default=-1)) >= ops:
        raise ValueError(f"a step computes op {index}, but the graph has no such op")
    made = (Step(Action.COMPUTE, n) if n >= 0 else Step(Action.FREE, ~n) for n in steps)
    return Schedule(tuple(made))


def _plan(fields: Body) -> Plan:
    graph = graph_from_dict(fields.graph)
    return Plan(
        graph=graph,
        schedule=schedule_of(fields.steps, len(graph.ops)),
        budget_bytes=fields.budget_bytes,
        status=Status[fields.status],
        bound_seconds=fields.bound_seconds,
        method=fields.method,
        signature=fields.signature,
        device=fields.device,
        optimizer=fields.optimizer,
        costs=fields.costs,
        message=fields.message,
        capture_seconds=fields.capture_seconds,
        solve_seconds=fields.solve_seconds,
    )
