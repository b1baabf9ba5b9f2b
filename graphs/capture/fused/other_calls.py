"""A compiled step that is called several times before any backward pass: a block compiled once.

All calls run one schedule, and the last one is what is planned: while it runs, each of the others
holds what waits for its own backward pass. Knows what they hold together. Knows no compiler.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from planner.graphs.graph import Graph, Kind, Value
from planner.graphs.schedule import Action, Schedule
from planner.graphs.simulate import simulate

OTHERS = "other_calls"
RESIDENT = "held throughout by calls of another compilation"
WAITING, GRADIENTS = "held for backward by the other calls", "gradients of the other calls"
ARRIVING = "tangents"


@dataclass(frozen=True)
class Calls:
    """How many calls wait at once, and what those of another compilation hold at least.

    ``waiting_bytes`` is the most that one such call holds between forward and backward,
    ``burst_bytes`` the most that it holds while it runs, ``resident_bytes`` what all of them hold
    throughout, such as parameters.

    >>> Calls(6).others
    5
    """

    count: int = 1
    waiting_bytes: int = 0
    burst_bytes: int = 0
    resident_bytes: int = 0

    @property
    def others(self) -> int:
        """The calls beside the one that is planned."""
        return self.count - 1


ALONE = Calls()


def waiting_bytes(graph: Graph, schedule: Schedule) -> int:
    """Return what one call holds between forward and backward, beside what is there throughout.

    What it returns is what the next call takes, and is counted once, where there is an input of
    the size of an output.

    Args:
        graph: of one call, of many.
        schedule: of it.
    """
    place = arriving(graph)
    trace = simulate(graph, schedule)
    step = next(
        i for i, s in enumerate(schedule.steps) if s.action is Action.COMPUTE and s.index == place
    )
    op, first = graph.ops[place], graph.ops[0]
    there = graph.resident_bytes + op.workspace_bytes
    there += sum(graph.values[v].size_bytes for v in (*op.outputs, *first.outputs))
    return int(trace.live_bytes[step]) - there + handed_bytes(graph)


def arriving(graph: Graph) -> int:
    """Return the op with which backward begins: gradients arrive."""
    return next(i for i, op in enumerate(graph.ops) if op.target == ARRIVING)


def handed_bytes(graph: Graph) -> int:
    """Return the bytes of inputs that are each call's own, beside those that others return."""
    returned = Counter(graph.values[v].size_bytes for v in graph.outputs if _is_output(graph, v))
    own = 0
    for value in (graph.values[v] for v in sorted(graph.resident)):
        if value.kind is Kind.INPUT and returned[value.size_bytes] > 0:
            returned[value.size_bytes] -= 1
        elif value.kind is Kind.INPUT:
            own += value.size_bytes
    return own


def _is_output(graph: Graph, value: int) -> bool:
    return graph.values[value].kind is Kind.OUTPUT


def with_waiting(graph: Graph, waiting: int, calls: Calls) -> Graph:
    """Return the graph of the last call, the others holding some bytes each for their backward.

    The gradients that they will have made are there then, too, if those are more.

    Args:
        graph: of one call, of many.
        waiting: what one of the others holds; those of another compilation may hold more.
        calls: how many there are.
    """
    first = graph.ops[0]
    made = {graph.values[v].name: v for v in first.outputs}
    gradients = graph.values[made[GRADIENTS]].size_bytes if GRADIENTS in made else 0
    held = max(0, calls.others * max(waiting, calls.waiting_bytes) - gradients)
    values = list(graph.values)
    values[made[WAITING]] = replace(values[made[WAITING]], size_bytes=held)
    if (more := calls.resident_bytes - graph.resident_bytes) > 0:
        values.append(Value(RESIDENT, more, Kind.PARAMETER))
    ops = (replace(first, workspace_bytes=calls.burst_bytes), *graph.ops[1:])
    return replace(graph, values=tuple(values), ops=ops)


def with_others(graph: Graph, schedule: Schedule, calls: Calls) -> Graph:
    """Return the graph of the last call of a schedule, which the others have run, too.

    Args:
        graph: of one call.
        schedule: of it.
        calls: how many there are; a call alone is as it is.
    """
    if calls.count == 1:
        return graph
    return with_waiting(graph, waiting_bytes(graph, schedule), calls)


def after(graph: Graph, peak_bytes: int, calls: Calls) -> Calls:
    """Return the calls of a step that is compiled once more, after a plan was made for it.

    Args:
        graph: of the plan, with others.
        peak_bytes: of the plan.
        calls: as it was made for.
    """
    if calls.count == 1:
        return calls
    others = sum(graph.values[v].size_bytes for v in graph.ops[0].outputs)
    burst = peak_bytes - graph.resident_bytes - others
    return replace(
        calls,
        waiting_bytes=-(-others // calls.others),
        burst_bytes=burst,
        resident_bytes=graph.resident_bytes,
    )


def together(graph: Graph, peak_bytes: int, calls: Calls) -> int:
    """Return the most that calls of a plan hold with those of another compilation among them.

    Args:
        graph: of the plan, with others.
        peak_bytes: of the plan.
        calls: how many there are, and what those of the other compilation hold.
    """
    if calls.count == 1:
        return peak_bytes
    own = after(graph, peak_bytes, calls)
    waiting = max(0, calls.waiting_bytes - own.waiting_bytes)
    burst = max(0, calls.burst_bytes - own.burst_bytes)
    resident = max(0, calls.resident_bytes - own.resident_bytes)
    return peak_bytes + calls.others * waiting + burst + resident
