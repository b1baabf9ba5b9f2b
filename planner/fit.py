"""From a model and a budget to a plan: capture once, solve, check, say why not.

Knows the order of the steps and which error each can end in. Knows nothing of how they are done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, overload

from planner.byte_sizes import format_both, parse_budget
from planner.errors import BadCluster, UnknownMethod
from planner.plan.advice import infeasible
from planner.plan.single import Plan
from planner.progress import Progress, silent
from planner.request import capture_step, find_device, optimizer_name
from planner.solvers import SOLVERS, Limits, Solution, minimum_budget, solve

if TYPE_CHECKING:
    from torch import nn

    from planner.graphs.capture.step_function import Arguments
    from planner.graphs.capture.training_step import Captured
    from planner.graphs.hardware.cluster import LinkSpec
    from planner.graphs.hardware.devices import DeviceSpec
    from planner.plan.sharded import ShardedPlan

DEFAULT_LIMITS = Limits()


@overload
def fit(
    model: nn.Module,
    budget: str | float,
    *,
    inputs: Any = None,
    loss: Callable[..., Any] | None = None,
    targets: Any = None,
    optimizer: Any = "adamw",
    device: DeviceSpec = "auto",
    method: str = "auto",
    limits: Limits = DEFAULT_LIMITS,
    costs: str = "roofline",
    accumulate: bool = False,
    world_size: Literal[1] = 1,
    progress: Progress | None = None,
) -> Plan: ...


@overload
def fit(
    model: nn.Module,
    budget: str | float,
    *,
    world_size: int,
    inputs: Any = None,
    loss: Callable[..., Any] | None = None,
    targets: Any = None,
    optimizer: Any = "adamw",
    device: DeviceSpec = "auto",
    method: str = "auto",
    limits: Limits = DEFAULT_LIMITS,
    costs: str = "roofline",
    devices_per_node: int | None = None,
    link: LinkSpec = None,
    global_batch: int | None = None,
    precisions: Sequence[str] = ("float32",),
    offload: bool = True,
    progress: Progress | None = None,
) -> Plan | ShardedPlan: ...


def fit(
    model: nn.Module,
    budget: str | float,
    *,
    inputs: Any = None,
    loss: Callable[..., Any] | None = None,
    targets: Any = None,
    optimizer: Any = "adamw",
    device: DeviceSpec = "auto",
    method: str = "auto",
    limits: Limits = DEFAULT_LIMITS,
    costs: str = "roofline",
    accumulate: bool = False,
    world_size: int = 1,
    devices_per_node: int | None = None,
    link: LinkSpec = None,
    global_batch: int | None = None,
    precisions: Sequence[str] = ("float32",),
    offload: bool = True,
    progress: Progress | None = None,
) -> Plan | ShardedPlan:
    """Plan one training step of a model within a budget of device memory.

    The budget covers everything: parameters, gradients, optimizer state, activations, temporaries
    and the reserve of the device.

    Args:
        model: any ``nn.Module``, on a real, meta or fake device; it is not changed.
        budget: "40GB", "40GiB", "80%" of the device, or an int of bytes.
        inputs: a tensor, a tuple (positional) or a dict (keywords). Without it the model's own
            example is used: ``example_input_array`` (Lightning) or ``dummy_inputs`` (transformers).
        loss: called with the model's output and ``targets``; without it the output is the loss,
            has a ``.loss``, or is differentiated by the caller.
        optimizer: a name, a class, a factory or an instance; ``None`` leaves its state out.
        device: a name as people or drivers write it, the path of a JSON file, or a ``Device`` of
            ``graphs.hardware.devices``; "auto" is the device at hand.
        method: a name of ``solvers.SOLVERS``.
        costs: "roofline" estimates times, "measured" runs each distinct op once.
        accumulate: keep the gradients of earlier micro-steps through forward.
        world_size: how many devices; above 1 the plan also says what to shard, in which
            micro-batches, and the budget is each device's.
        devices_per_node, link: how they hang together; see ``make_cluster``.
        global_batch: samples of one optimizer step over all devices; by default every device
            has the example inputs once.
        precisions: what compute may run in: "float32" (as the model is), "bfloat16".
        offload: whether states may be moved to the host.
        progress: called with a sentence when the work enters a new part.

    Raises:
        BadBudget, BadCluster, UnknownMethod, UnknownDevice: an argument is not what it should be.
        CaptureError: the step cannot be captured, or no inputs are known.
        InfeasibleBudget: no schedule found fits; the error has the least budget that works.

    >>> from torch import nn, zeros
    >>> model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.GELU())
    >>> plan = fit(model, "14.5MB", inputs=zeros(4096, 64), loss=lambda out: out.square().mean())
    >>> plan.peak_bytes <= 14_500_000 < plan.baseline_peak_bytes
    True
    """
    check_method(method)
    if world_size != 1:
        if accumulate:
            raise BadCluster(
                "accumulate=True is for one device: over several, how many micro-steps are "
                "accumulated is planned; pass global_batch="
            )
        from planner.sharding.fit_sharded import fit_sharded

        return fit_sharded(
            model,
            budget,
            world_size=world_size,
            inputs=inputs,
            loss=loss,
            targets=targets,
            optimizer=optimizer,
            device=device,
            method=method,
            limits=limits,
            costs=costs,
            devices_per_node=devices_per_node,
            link=link,
            global_batch=global_batch,
            precisions=precisions,
            offload=offload,
            progress=progress,
        )
    hardware = find_device(device, model)
    budget_bytes = parse_budget(budget, lambda: hardware.memory_bytes)
    start = time.perf_counter()
    captured = capture_step(
        model,
        inputs=inputs,
        loss=loss,
        targets=targets,
        optimizer=optimizer,
        device=hardware,
        costs=costs,
        accumulate=accumulate,
        progress=progress,
    )
    spent = time.perf_counter() - start
    plan = plan_graph(
        captured,
        budget_bytes,
        method=method,
        limits=limits,
        device=hardware.name,
        optimizer=optimizer_name(optimizer),
        costs=costs,
        progress=progress,
    )
    return replace(plan, capture_seconds=spent, loss=loss)


def refit(plan: Plan, model: nn.Module, call: Arguments, loss: Callable[..., Any] | None) -> Plan:
    """Plan another call of a model with the budget, method, device and costs of a plan.

    Raises:
        CaptureError, InfeasibleBudget: as ``fit`` does.
    """
    from planner.graphs.capture.training_step import optimizer_of

    captured = capture_step(
        model,
        inputs=call,
        loss=loss,
        optimizer=optimizer_of(plan.graph),
        device=plan.device,
        costs=plan.costs,
        accumulate=bool(plan.signature["accumulate"]),
    )
    again = plan_graph(
        captured,
        plan.budget_bytes,
        method=plan.method,
        device=plan.device,
        optimizer=plan.optimizer,
        costs=plan.costs,
    )
    return replace(again, loss=loss)


def plan_graph(
    captured: Captured,
    budget_bytes: int,
    *,
    method: str = "auto",
    limits: Limits = DEFAULT_LIMITS,
    device: str = "cpu",
    optimizer: str | None = None,
    costs: str = "roofline",
    progress: Progress | None = None,
) -> Plan:
    """Plan a captured training step; ``fit`` after its capture.

    Raises:
        InfeasibleBudget: no schedule found fits; the error has the least budget that works.
        UnknownMethod: no solver has this name.
    """
    check_method(method)
    graph, tell = captured.graph, progress or silent
    tell(f"solving {len(graph.ops):,} ops within {format_both(budget_bytes)} by {method}")
    start = time.perf_counter()
    solution = solve(graph, budget_bytes, method=method, limits=limits)
    if solution.schedule is None:
        tell("looking for the least budget that works")
        least = minimum_budget(graph, limits=limits)
        raise infeasible(graph, budget_bytes, least, solution.message)
    plan = plan_from_solution(
        captured,
        budget_bytes,
        solution,
        method=method,
        device=device,
        optimizer=optimizer,
        costs=costs,
    )
    return replace(plan, solve_seconds=time.perf_counter() - start)


def plan_from_solution(
    captured: Captured,
    budget_bytes: int,
    solution: Solution,
    *,
    method: str = "auto",
    device: str = "cpu",
    optimizer: str | None = None,
    costs: str = "roofline",
) -> Plan:
    """Return the plan that a solution with a schedule is for a captured step."""
    assert solution.schedule is not None, "there is nothing to plan with"
    return Plan(
        graph=captured.graph,
        schedule=solution.schedule,
        budget_bytes=budget_bytes,
        status=solution.status,
        bound_seconds=solution.bound_seconds,
        method=method,
        signature=captured.signature,
        device=device,
        optimizer=optimizer,
        costs=costs,
        message=solution.message,
    )


def check_method(method: str) -> None:
    """Raise ``UnknownMethod`` unless a solver has this name."""
    if method not in SOLVERS:
        raise UnknownMethod(method, SOLVERS)
