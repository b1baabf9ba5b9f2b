"""A sharded plan as the body of a file, checked as thoroughly as a plan for one device.

The step of one rank is written and checked as the plan that it is; the schedule of every unit is
run on the graph of its kind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from planner.graphs import graph_from_dict, graph_to_dict, simulate
from planner.graphs.hardware.cluster import Cluster
from planner.output import checksummed_json
from planner.output.plan_files import (
    Body,
    Steps,
    body_of,
    plan_of,
    schedule_of,
    steps_of,
    upgraded,
    upgraded_steps,
)
from planner.plan.configuration import Configuration, UnitPlan
from planner.plan.sharded_step_plan import Alternative, ShardedStepPlan, UnitKind
from planner.plan.tensor_parallelism import TensorParallelism


class _UnitFields(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    path: str
    kind: int
    keep_gathered: bool
    row_wise: bool = False
    held_bytes: int | None = None
    steps: Steps


class _KindFields(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    signature: dict[str, Any]
    graph: dict[str, Any]


class _Sharded(BaseModel):
    """What a file must hold; nothing more is accepted."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    step: Body
    configuration: dict[str, Any]
    cluster: dict[str, Any]
    units: list[_UnitFields]
    kinds: list[_KindFields]
    alternatives: list[dict[str, Any]]
    host_bytes: int
    margin_bytes: int = 0
    nccl_bytes: int = 0
    tensor: dict[str, Any] | None = None
    root: _KindFields | None = None


def sharded_body_of(plan: ShardedStepPlan) -> dict[str, Any]:
    """Return a plan as plain JSON types."""
    return {
        "step": body_of(plan.step),
        "configuration": _CONFIGURATION.dump_python(plan.configuration, mode="json"),
        "cluster": asdict(plan.cluster),
        "units": [
            {
                "path": u.path,
                "kind": u.kind,
                "keep_gathered": u.keep_gathered,
                "row_wise": u.row_wise,
                "held_bytes": u.held_bytes,
                "steps": steps_of(u.schedule),
            }
            for u in plan.units
        ],
        "kinds": [_kind_fields(k) for k in plan.kinds],
        "alternatives": [_finite(a) for a in plan.alternatives],
        "host_bytes": plan.host_bytes,
        "margin_bytes": plan.margin_bytes,
        "nccl_bytes": plan.nccl_bytes,
        "tensor": plan.tensor and _TENSOR.dump_python(plan.tensor, mode="json"),
        **({} if plan.root is None else {"root": _kind_fields(plan.root)}),
    }


def _kind_fields(kind: UnitKind) -> dict[str, Any]:
    return {"signature": dict(kind.signature), "graph": graph_to_dict(kind.graph)}


def upgraded_sharded(body: Any) -> Any:
    """Return the body of a file of version 1 as one of today, as far as it is one."""
    if not isinstance(body, dict):
        return body
    units = body.get("units")
    if isinstance(units, list) and all(isinstance(u, dict) for u in units):
        units = [u | {"steps": upgraded_steps(u.get("steps"))} for u in units]
    return body | {"step": upgraded(body.get("step")), "units": units}


def sharded_plan_of(body: Any, path: str | Path, judged_by: Mapping[str, int]) -> ShardedStepPlan:
    """Rebuild a plan from the body of a file and check it against what the file states.

    Args:
        body: of the file.
        path: of the file, named in errors.
        judged_by: the memory models of the file's peaks, each with its version.

    Raises:
        InvalidPlan: a field is missing or wrong, or a schedule breaks a rule of execution.
    """
    fields = checksummed_json.checked(_Sharded, body, path)
    step = plan_of(fields.step, path, judged_by)
    try:
        kinds = tuple(map(_kind, fields.kinds))
        return ShardedStepPlan(
            step=step,
            configuration=_CONFIGURATION.validate_python(fields.configuration),
            cluster=_CLUSTER.validate_python(fields.cluster),
            units=tuple(_unit(u, kinds) for u in fields.units),
            kinds=kinds,
            alternatives=tuple(
                _ALTERNATIVE.validate_python(_infinite(a)) for a in fields.alternatives
            ),
            host_bytes=fields.host_bytes,
            margin_bytes=fields.margin_bytes,
            nccl_bytes=fields.nccl_bytes,
            tensor=None if fields.tensor is None else _TENSOR.validate_python(fields.tensor),
            root=None if fields.root is None else _kind(fields.root),
        )
    except ValueError as error:  # pydantic's own, a graph's or an invalid schedule
        checksummed_json.refuse(path, str(error), cause=error)


def _kind(kind: _KindFields) -> UnitKind:
    return UnitKind(graph_from_dict(kind.graph), kind.signature)


def _unit(unit: _UnitFields, kinds: tuple[UnitKind, ...]) -> UnitPlan:
    if not 0 <= unit.kind < len(kinds):
        raise ValueError(f"unit {unit.path!r} names kind {unit.kind} of {len(kinds)}")
    graph = kinds[unit.kind].graph
    schedule = schedule_of(unit.steps, len(graph.ops))
    simulate(graph, schedule)
    return UnitPlan(
        unit.path, unit.kind, schedule, unit.keep_gathered, unit.row_wise, unit.held_bytes
    )


_CONFIGURATION = TypeAdapter(Configuration)
_CLUSTER = TypeAdapter(Cluster)
_ALTERNATIVE = TypeAdapter(Alternative)
_TENSOR = TypeAdapter(TensorParallelism)


def _finite(alternative: Alternative) -> dict[str, Any]:
    """Write the time of what fits nowhere as ``None``: JSON has no infinity."""
    row: dict[str, Any] = _ALTERNATIVE.dump_python(alternative, mode="json")
    return row | ({"seconds_per_sample": None} if row["seconds_per_sample"] == math.inf else {})


def _infinite(row: Mapping[str, Any]) -> dict[str, Any]:
    none = "seconds_per_sample" in row and row["seconds_per_sample"] is None
    return {**row, **({"seconds_per_sample": math.inf} if none else {})}
