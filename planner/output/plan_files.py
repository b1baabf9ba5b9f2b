"""A plan as the body of a file: plain JSON types, validated when read.

A schedule is two columns: which action of a list each step is, and the index it is done to. The
reader believes nothing: it checks the types and the graph, runs the schedule through ``simulate``
and refuses a body whose stated peak or time is not what it finds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from planner.graphs import (
    EXACT,
    MEMORY_MODELS,
    Schedule,
    Step,
    Subject,
    graph_from_dict,
    graph_to_dict,
)
from planner.graphs.hardware.columns import Device
from planner.graphs.hardware.device_files import device_from_dict, device_to_dict
from planner.graphs.hardware.devices import cpu, device, in_table
from planner.graphs.hardware.host_tier import HostTier
from planner.graphs.schedule import action_of
from planner.output import checksummed_json
from planner.plan.states import StatesOnHost
from planner.plan.step_plan import StepPlan
from planner.solvers import Status

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
StatusName = Literal["OPTIMAL", "FEASIBLE", "INFEASIBLE", "UNKNOWN"]


class Steps(BaseModel):
    """A schedule: ``action[i]`` of ``actions`` is done to ``index[i]``."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    actions: list[str]
    action: list[Annotated[int, Field(ge=0)]]
    index: list[Annotated[int, Field(ge=0)]]


class Host(BaseModel):
    """Where values move to: bytes/s each way, the most bytes, and the directory of files."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    to_host: Rate
    from_host: Rate
    limit_bytes: Annotated[int, Field(gt=0)] | None
    directory: str | None
    states: bool = False


class WaitingStates(BaseModel):
    """What of an optimizer's states waits on the host."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    parts: list[list[str]]
    moved_parts: Annotated[int, Field(gt=0)]
    moved_bytes: Annotated[int, Field(gt=0)]
    kept_seconds: Seconds
    kept_peak_bytes: Annotated[int, Field(gt=0)]


class Body(BaseModel):
    """What the body of a plan must hold; nothing more is accepted."""

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
    engine: str
    rewrite: str
    memory_model: str
    allocator: Literal["segments", "expandable segments"] | None = None
    eager_peak_bytes: Annotated[int, Field(ge=0)] | None = None
    capture_seconds: Seconds
    solve_seconds: Seconds
    hardware: dict[str, Any] | None = None
    host: Host | None = None
    states: WaitingStates | None = None
    held_bytes: Annotated[int, Field(gt=0)] | None = None
    signature: dict[str, Any]
    steps: Steps
    graph: dict[str, Any]


def body_of(plan: StepPlan) -> dict[str, Any]:
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
        "engine": plan.engine,
        "rewrite": plan.rewrite,
        "memory_model": plan.memory_model,
        "allocator": plan.allocator,
        "eager_peak_bytes": plan.eager_peak_bytes,
        "capture_seconds": plan.capture_seconds,
        "solve_seconds": plan.solve_seconds,
        "hardware": _own(plan.hardware),
        **({} if plan.host is None else {"host": _said(plan.host)}),
        **({} if plan.states is None else {"states": _listed(plan.states)}),
        **({} if plan.held_bytes is None else {"held_bytes": plan.held_bytes}),
        "signature": dict(plan.signature),
        "steps": steps_of(plan.schedule),
        "graph": graph_to_dict(plan.graph),
    }


def _said(host: HostTier) -> dict[str, Any]:
    """Write where values move to; what older packages do not know only where it is used."""
    return {name: value for name, value in asdict(host).items() if name != "states" or value}


def _listed(states: StatesOnHost) -> dict[str, Any]:
    return asdict(states) | {"parts": [list(names) for names in states.parts]}


def _own(hardware: Device | None) -> dict[str, Any] | None:
    """Write the figures of a device that only the user has: those of the table go without."""
    if hardware is None or hardware == _of_the_table(hardware.name):
        return None
    return device_to_dict(hardware)


def _of_the_table(name: str) -> Device | None:
    """Return what is known of a name here; the CPU is each machine's own."""
    if name == "cpu":
        return cpu()
    known: Device | None = device(name) if in_table(name) else None
    return known


def plan_of(fields: Body, path: str | Path, judged_by: Mapping[str, int]) -> StepPlan:
    """Rebuild a plan and check it against what the file states.

    Args:
        fields: the body.
        path: of the file, named in errors.
        judged_by: the memory models of the file's peaks, each with its version. One that is older
            than this package's may state another peak: the plan then says so.

    Raises:
        InvalidPlan: what it states and what it does differ, or it breaks a rule of execution.
    """
    if fields.memory_model not in MEMORY_MODELS:
        known = ", ".join(MEMORY_MODELS)
        checksummed_json.refuse(path, f"no memory model {fields.memory_model!r}; known: {known}")
    try:
        plan = _plan(fields)
        peak_bytes, seconds = plan.peak_bytes, plan.seconds
    except ValueError as error:
        checksummed_json.refuse(path, str(error), cause=error)
    if not math.isclose(seconds, fields.seconds, rel_tol=1e-9):
        stated = f"it states a step of {fields.seconds} s, but takes {seconds} s"
        checksummed_json.refuse(path, stated)
    version, now = judged_by.get(plan.memory_model), MEMORY_MODELS[plan.memory_model].version
    if version != now:
        return _judged_anew(plan, fields.peak_bytes, version or 0)
    if peak_bytes != fields.peak_bytes:
        stated = f"it states a peak of {fields.peak_bytes} bytes, but has {peak_bytes}"
        checksummed_json.refuse(path, stated)
    return plan


def _judged_anew(plan: StepPlan, stated_bytes: int, version: int) -> StepPlan:
    now = MEMORY_MODELS[plan.memory_model]
    return plan.with_remark(
        f"the file was judged by version {version} of the memory model {now.name!r}, which found a "
        f"peak of {stated_bytes:,} bytes; by version {now.version}, used here, it is "
        f"{plan.peak_bytes:,}"
    )


def upgraded(body: Any) -> Any:
    """Return the body of a file of version 1 as one of today, as far as it is one.

    There a step was one integer: ``n >= 0`` computed op ``n``, ``n < 0`` freed value ``~n``.
    """
    if not isinstance(body, dict):
        return body
    later = {"engine": "op_by_op", "rewrite": "as_captured", "memory_model": EXACT.name}
    return later | body | {"steps": upgraded_steps(body.get("steps"))}


def upgraded_steps(steps: Any) -> Any:
    """Return the steps of version 1 in columns.

    >>> upgraded_steps([3, -1])
    {'actions': ['compute', 'free'], 'action': [0, 1], 'index': [3, 0]}
    """
    if not isinstance(steps, list) or not all(type(n) is int for n in steps):
        return steps
    return {
        "actions": ["compute", "free"],
        "action": [int(n < 0) for n in steps],
        "index": [n if n >= 0 else ~n for n in steps],
    }


def steps_of(schedule: Schedule) -> dict[str, Any]:
    """Write a schedule in columns.

    >>> from planner.graphs import Action
    >>> steps_of(Schedule((Step(Action.COMPUTE, 3), Step(Action.FREE, 0))))
    {'actions': ['compute', 'free'], 'action': [0, 1], 'index': [3, 0]}
    """
    names = sorted({step.action.name for step in schedule.steps})
    position = {name: i for i, name in enumerate(names)}
    return {
        "actions": names,
        "action": [position[step.action.name] for step in schedule.steps],
        "index": [step.index for step in schedule.steps],
    }


def schedule_of(steps: Steps, ops: int) -> Schedule:
    """Read a schedule of a graph with so many ops.

    Raises:
        ValueError: an action that is not known, columns that do not match, or a step that computes
            an op that the graph does not have.
    """
    actions = [action_of(name) for name in steps.actions]
    if len(steps.action) != len(steps.index) or max(steps.action, default=-1) >= len(actions):
        raise ValueError("the columns of the steps do not match")
    made = tuple(Step(actions[a], i) for a, i in zip(steps.action, steps.index, strict=True))
    last = max((s.index for s in made if s.action.subject is Subject.OP), default=-1)
    if last >= ops:
        raise ValueError(f"a step computes op {last}, but the graph has no such op")
    return Schedule(made)


def _plan(fields: Body) -> StepPlan:
    graph = graph_from_dict(fields.graph)
    given = {"peak_bytes", "seconds", "steps", "graph", "status", "hardware", "host"}
    given |= {"states"}
    own = None if fields.hardware is None else device_from_dict(fields.hardware, "hardware")
    return StepPlan(
        graph=graph,
        schedule=schedule_of(fields.steps, len(graph.ops)),
        status=Status[fields.status],
        hardware=own,
        host=None if fields.host is None else HostTier(**fields.host.model_dump()),
        states=None if fields.states is None else _states(fields.states),
        **fields.model_dump(exclude=given),
    )


def _states(fields: WaitingStates) -> StatesOnHost:
    body = fields.model_dump()
    return StatesOnHost(**body | {"parts": tuple(map(tuple, body["parts"]))})
