"""Plans as files: versioned JSON, sealed, validated when read, written whole or not at all.

A step is one integer: ``n >= 0`` computes op ``n``, ``n < 0`` frees value ``~n``. The loader
believes nothing: it checks the seal, the types, the graph, runs the schedule through ``simulate``
and refuses a file whose stated peak or time is not what it finds.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from graphs import Action, Schedule, Step, graph_from_dict, graph_to_dict
from graphs.files import write_atomically
from planner.errors import InvalidPlan
from planner.plan import Plan
from solvers import Status

FORMAT = "remat-planner-plan"
VERSION = 1

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
StatusName = Literal["OPTIMAL", "FEASIBLE", "INFEASIBLE", "UNKNOWN"]


class _Body(BaseModel):
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
    body = {
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
        "steps": [s.index if s.action is Action.COMPUTE else ~s.index for s in plan.schedule.steps],
        "graph": graph_to_dict(plan.graph),
    }
    head = {"format": FORMAT, "version": VERSION, "sha256": _seal(body)}
    write_atomically(path, _dump(head | {"plan": body}))


def load(path: str | Path) -> Plan:
    """Read a plan that ``Plan.save`` wrote.

    Raises:
        InvalidPlan: the file is damaged, truncated, foreign, or of a newer version.
        OSError: the file cannot be opened.
    """
    body = _body(_parse(Path(path).read_bytes(), path), path)
    try:
        fields = _Body.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "plan"
        _refuse(path, f"field {where!r}: {first['msg'].lower()}", cause=error)
    try:
        plan = _plan(fields)
        peak_bytes, seconds = plan.peak_bytes, plan.seconds
    except ValueError as error:
        _refuse(path, str(error), cause=error)
    if peak_bytes != fields.peak_bytes:
        _refuse(path, f"it states a peak of {fields.peak_bytes} bytes, but has {peak_bytes}")
    if not math.isclose(seconds, fields.seconds, rel_tol=1e-9):
        _refuse(path, f"it states a step of {fields.seconds} s, but takes {seconds} s")
    return plan


def _plan(fields: _Body) -> Plan:
    steps = (Step(Action.COMPUTE, n) if n >= 0 else Step(Action.FREE, ~n) for n in fields.steps)
    if (index := max(fields.steps, default=-1)) >= len(fields.graph.get("ops", ())):
        raise ValueError(f"a step computes op {index}, but the graph has no such op")
    return Plan(
        graph=graph_from_dict(fields.graph),
        schedule=Schedule(tuple(steps)),
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


def _parse(raw: bytes, path: str | Path) -> Any:
    try:
        return json.loads(raw.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        _refuse(path, "it is not text", cause=error)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"it is not whole JSON ({error})", cause=error)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _body(data: Any, path: str | Path) -> Any:
    """Return the sealed part of a parsed file, or refuse the file."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        _refuse(path, f"expected a JSON object with format {FORMAT!r}: not a plan of this package")
    version = data.get("version")
    if isinstance(version, int) and version > VERSION:
        raise InvalidPlan(
            f"{path}: the plan has version {version}, this package reads up to {VERSION}; "
            "update it with 'pip install -U remat-planner'"
        )
    if version != VERSION:
        _refuse(path, f"expected version {VERSION}, found {version!r}")
    if data.get("sha256") != _seal(data.get("plan")):
        _refuse(path, "its content does not match its sha256 seal, so it was damaged or edited")
    return data["plan"]


def _refuse(path: str | Path, reason: str, *, cause: Exception | None = None) -> NoReturn:
    hint = "make the plan again with planner.fit, or take an undamaged copy"
    raise InvalidPlan(f"{path}: {reason}; {hint}") from cause


def _seal(body: Any) -> str:
    return hashlib.sha256(_dump(body).encode()).hexdigest()


def _dump(data: Any) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
