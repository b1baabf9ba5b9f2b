"""Planning with an optimizer's states on the host: how many of them, and what that costs.

The step of the optimizer is taken in parts. While one is computed, the states of the next come from
the host, and those of the one before go back: so the device holds three parts at most. The states
of the first few parts wait on the host, a share of them all that is chosen from ``SHARES``. Each
share is a step of its own, whose optimizer needs room and time for that; it is solved like any
other. What is proved is proved for all of these shares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planner.byte_sizes import format_both
from planner.errors import BadRequest
from planner.graphs import Graph, Kind, Phase, plain_schedule, simulate
from planner.graphs.hardware.host_tier import HostTier
from planner.host_budget import MovedSolution, solve_within_host
from planner.plan.states import StatesOnHost, room_bytes
from planner.request import Request
from planner.solvers import Status

if TYPE_CHECKING:
    from planner.graphs.capture.optimizer_parts import StatePart
    from planner.graphs.capture.training_step import Captured

PARTS = 16
"""In how many parts the optimizer takes its step."""
COUNT_BYTES = 8
"""What stays of a parameter's states: how many steps it has seen."""
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Which shares of the parts may have their states on the host."""


@dataclass(frozen=True)
class WithStates:
    """A step with some states on the host, and what is left of the host for its values.

    ``states`` is ``None`` where all are kept.
    """

    graph: Graph
    host: HostTier
    states: StatesOnHost | None = None


@dataclass(frozen=True)
class Chosen:
    """The choice that is quickest, its solution, and why; without a schedule, the last tried."""

    choice: WithStates
    moved: MovedSolution


Solve = Callable[[WithStates, Request], MovedSolution]
"""Finds a schedule of a step for one of the choices, within the limits of the request."""


def solve_with_states(captured: Captured, budget_bytes: int, request: Request) -> Chosen:
    """Find a schedule within the budget, and how many of the optimizer's states are on the host.

    Args:
        captured: the step.
        budget_bytes: what the device has for it.
        request: by which method, within which limits, with which optimizer and host.

    Raises:
        BadRequest: the optimizer has no states, or its step cannot be taken in parts.
    """

    def solve(choice: WithStates, asked: Request) -> MovedSolution:
        kept = None if choice.states is None else choice.states.kept_seconds
        return solve_within_host(choice.graph, budget_bytes, asked, choice.host, kept_seconds=kept)

    offered = list(choices(captured, request))
    found = quickest(offered, request, solve)
    solution, limit = found.moved.solution, offered[0].host.limit_bytes
    held = sum(v.size_bytes for v in captured.graph.values if v.kind is Kind.OPTIMIZER)
    if solution.schedule is not None or limit is None or held <= limit:
        return found
    most = max((c.states.moved_bytes for c in offered if c.states is not None), default=0)
    said = (
        f"the host may hold {format_both(limit)}, which is room for "
        f"{format_both(most) if most else 'none'} of the optimizer's states"
    )
    message = "; ".join(filter(None, (solution.message, said)))
    return replace(found, moved=replace(found.moved, solution=replace(solution, message=message)))


def quickest(offered: Sequence[WithStates], request: Request, solve: Solve) -> Chosen:
    """Solve each choice that may be quicker than those before it, and return the quickest.

    Args:
        offered: the choices, at least one.
        request: whose seconds are for all of them together.
        solve: one of them.
    """
    limits = replace(request.limits, seconds=request.limits.seconds / len(offered))
    best: tuple[float, Chosen] | None = None
    bounds: list[float] = []
    for choice in offered:
        if best is not None and choice.graph.seconds >= best[0]:
            bounds.append(choice.graph.seconds)
            continue
        if choice.states is not None:
            request.tell(f"with {format_both(choice.states.moved_bytes)} of states on the host")
        moved = solve(choice, replace(request, limits=limits, offload=choice.host))
        found = Chosen(choice, moved)
        solution = found.moved.solution
        bounds.append(solution.bound_seconds)
        if solution.schedule is None:
            last = found
            continue
        rates = choice.host.rates
        seconds = simulate(choice.graph, solution.schedule, link_bytes_per_second=rates).seconds
        if best is None or seconds < best[0]:
            best = seconds, found
    if best is None:
        return last
    return _judged(best[1], best[0], min(bounds), request)


def _judged(found: Chosen, seconds: float, bound: float, request: Request) -> Chosen:
    """Return the choice with the bound of all, and what is to be said of it."""
    bound = min(bound, seconds)
    close = seconds - bound <= request.limits.gap * found.choice.graph.seconds
    solution = replace(
        found.moved.solution,
        bound_seconds=bound,
        status=Status.OPTIMAL if close else Status.FEASIBLE,
    )
    states = found.choice.states
    if states is None:
        said = "the optimizer's states may wait on the host, and do not: that would be no quicker"
    else:
        said = told(states)
    return replace(
        found, moved=replace(found.moved, solution=solution, remarks=(*found.moved.remarks, said))
    )


def told(states: StatesOnHost) -> str:
    """Say what a person has to do for states to wait on the host.

    Args:
        states: that a plan has there.
    """
    return (
        f"{format_both(states.moved_bytes)} of the optimizer's states wait on the host: give "
        "the optimizer to plan.offload_states(optimizer, model) where it is made"
    )


def choices(captured: Captured, request: Request) -> Iterator[WithStates]:
    """Yield the step with every share of the states on the host that there is room for.

    Args:
        captured: the step.
        request: of its model, optimizer and host.

    Raises:
        BadRequest: the optimizer has no states, or its step cannot be taken in parts.
    """
    assert request.host is not None, "it was asked for"
    yield from shares(captured.graph, request.host, parts_of(captured, request))


def shares(graph: Graph, host: HostTier, parts: Sequence[StatePart]) -> Iterator[WithStates]:
    """Yield a step with every share of its states on the host that there is room for, none first.

    Args:
        graph: the step.
        host: where they may go.
        parts: of the optimizer's step.
    """
    plain = simulate(graph, plain_schedule(graph))
    host = replace(host, states=False)
    yield WithStates(graph, host)
    for count in dict.fromkeys(round(share * len(parts)) for share in SHARES):
        moved = _away_bytes(parts[:count])
        room = room_bytes(moved, sum(len(part.parameters) for part in parts[:count]))
        if moved <= 0 or not host.admits(room):
            continue
        names = tuple(part.parameters for part in parts)
        states = StatesOnHost(names, count, moved, plain.seconds, plain.peak_bytes)
        left = None if host.limit_bytes is None else max(1, host.limit_bytes - room)
        yield WithStates(_moved(graph, parts, count, host), replace(host, limit_bytes=left), states)


def parts_of(captured: Captured, request: Request) -> tuple[StatePart, ...]:
    """Return the parts in which the optimizer takes its step; any batch has the same.

    Args:
        captured: the step.
        request: of its model and optimizer.

    Raises:
        BadRequest: the optimizer has no states, or its step cannot be taken in parts.
    """
    from torch.optim import Optimizer

    from planner.graphs.capture.optimizer_parts import state_parts, stepped_by

    graph = captured.graph
    held = sum(v.size_bytes for v in graph.values if v.kind is Kind.OPTIMIZER)
    if request.optimizer is None or not held:
        raise BadRequest(
            'offload={"states": True} moves the states of the optimizer, and it has none: leave '
            "that out, or say which optimizer= is used"
        )
    from planner.graphs.torch_api.module_internals import named_parameters_of

    trained = {n: p for n, p in named_parameters_of(request.model) if p.requires_grad}
    if isinstance(request.optimizer, Optimizer):
        stepped = stepped_by(request.optimizer)
        trained = {n: p for n, p in trained.items() if id(p) in stepped}
    if not trained:
        raise BadRequest(
            f"optimizer= is a {request.optimizer_name} that steps none of the model's parameters; "
            "pass one that does, or its name"
        )
    kernels = str(captured.signature.get("kernels", "cpu"))
    parts = state_parts(trained, request.optimizer, request.hardware, kernels=kernels, count=PARTS)
    parted = sum(part.state_bytes for part in parts)
    counts = COUNT_BYTES * len(trained) + request.hardware.granularity_bytes
    if abs(parted - held) > counts:
        raise BadRequest(
            f"the step of {request.optimizer_name} cannot be taken in parts: together they have "
            f"states of {parted} bytes, and all at once {held}; leave offload's states out"
        )
    return parts


def _away_bytes(parts: Sequence[StatePart]) -> int:
    return sum(part.state_bytes - COUNT_BYTES * len(part.parameters) for part in parts)


def _moved(graph: Graph, parts: Sequence[StatePart], count: int, host: HostTier) -> Graph:
    """Return the step whose optimizer has the states of the first parts on the host."""
    moved = _away_bytes(parts[:count])
    values = tuple(
        replace(v, size_bytes=v.size_bytes - moved) if v.kind is Kind.OPTIMIZER else v
        for v in graph.values
    )
    ops = tuple(
        replace(
            op,
            seconds=parted_seconds(parts, count, host),
            workspace_bytes=parted_bytes(parts, count),
        )
        if op.phase is Phase.OPTIMIZER
        else op
        for op in graph.ops
    )
    return replace(graph, ops=ops, values=values)


def parted_bytes(parts: Sequence[StatePart], count: int) -> int:
    """Return what a step in parts holds at once of what is not there all the time.

    While a part is computed its states are there, those of the one before may be leaving, and those
    of the next arriving.

    Args:
        parts: in their order.
        count: how many, the first ones, have their states on the host.

    >>> from planner.graphs.capture.optimizer_parts import StatePart
    >>> parts = [StatePart((str(i),), size, 1, 1.0) for i, size in enumerate((5, 6, 7, 8))]
    >>> parted_bytes(parts, 4), parted_bytes(parts, 1), parted_bytes(parts, 0)
    (22, 6, 1)
    """
    away = [part.state_bytes if k < count else 0 for k, part in enumerate(parts)]
    near = [sum(away[max(0, k - 1) : k + 2]) for k in range(len(parts))]
    return max(n + part.workspace_bytes for n, part in zip(near, parts, strict=True))


def parted_seconds(parts: Sequence[StatePart], count: int, host: HostTier) -> float:
    """Return what a step in parts takes: its computing, and what of the copies that does not hide.

    Args:
        parts, count: as for ``parted_bytes``.
        host: whose link copies.

    >>> from planner.graphs.capture.optimizer_parts import StatePart
    >>> parts = [StatePart((str(i),), 4, 0, 1.0) for i in range(3)]
    >>> [parted_seconds(parts, n, HostTier(2.0, 2.0)) for n in (0, 1, 3)]
    [3.0, 6.0, 9.0]
    """
    now = back = out = 0.0
    arrived, left = [0.0] * len(parts), [0.0] * len(parts)
    for k, part in enumerate(parts):
        for coming in range(k + 1 if k else 0, min(k + 2, count)):
            back = max(back, now) + parts[coming].state_bytes / host.from_host
            arrived[coming] = back
        now = max(now, arrived[k]) + part.seconds
        if k < count:
            out = max(out, now) + part.state_bytes / host.to_host
            left[k] = out
        if 0 < k <= count:
            now = max(now, left[k - 1])
    return max(now, out)
