"""From a set of kept values to an order of ops, the way checkpointing runs.

Knows how to recompute what is missing; what to keep is for others to choose.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set

from planner.graphs import Graph, Phase, Subject, plain_schedule, simulate


def turning_point(graph: Graph) -> int:
    """Return the index of the first backward op, where the forward pass is over.

    A graph without a backward op (the random instances of the papers) turns where it holds most.

    >>> from planner.graphs import Op, Value
    >>> ops = (Op("f", "f", (), (0,)), Op("b", "b", (0,), (1,), phase=Phase.BACKWARD))
    >>> turning_point(Graph(ops, (Value("x", 1), Value("g", 1))))
    1
    """
    backward = (i for i, op in enumerate(graph.ops) if op.phase is Phase.BACKWARD)
    if (first := next(backward, None)) is not None:
        return first
    schedule = plain_schedule(graph)
    held = simulate(graph, schedule).peak_step if graph.ops else 0
    return sum(step.action.subject is Subject.OP for step in schedule.steps[: held + 1])


def ops_to_make(graph: Graph, wanted: Iterable[int], live: Set[int]) -> list[int]:
    """Return the ops, in graph order, that make the wanted values from those that are live.

    Resident values are always there. Nothing live is remade, unless it shares its op with a value
    that is missing.

    Args:
        graph: the step.
        wanted: the values to make.
        live: the values that are there.

    >>> from planner.graphs import Op, Value
    >>> ops = tuple(Op(f"f{i}", "f", (i,), (i + 1,)) for i in range(3))
    >>> g = Graph(ops, tuple(Value(f"x{i}", 1) for i in range(4)))
    >>> ops_to_make(g, [3], {1}), ops_to_make(g, [3], set()), ops_to_make(g, [3], {3})
    ([1, 2], [0, 1, 2], [])
    """
    producer, found, stack = graph.producer, set[int](), list(wanted)
    while stack:
        value = stack.pop()
        maker = producer[value]
        if maker is None or value in live or maker in found:
            continue
        found.add(maker)
        stack.extend(graph.ops[maker].inputs)
    return sorted(found)


def order_from_kept(graph: Graph, kept: Set[int], turn: int | None = None) -> list[int]:
    """Return an order that keeps only the values of ``kept`` from the forward pass to the backward.

    Every op before ``turn`` (by default ``turning_point``) runs once, in order. Then the others
    run in order; what one of them reads and is not there is recomputed just before it, from kept
    and resident values, and stays until its last use, so no op runs more than twice. The outputs
    of an op that is not recomputable are kept whether named or not.

    Args:
        graph: the step.
        kept: the values to keep.
        turn: the first backward op.

    >>> from planner.graphs import Op, Value
    >>> ops = (Op("f", "f", (), (0,)), Op("g", "g", (0,), (1,)),
    ...        Op("b", "b", (0, 1), (2,), phase=Phase.BACKWARD))
    >>> g = Graph(ops, tuple(Value(n, 1) for n in "xyz"))
    >>> order_from_kept(g, {1}), order_from_kept(g, set()), order_from_kept(g, {0, 1})
    ([0, 1, 0, 2], [0, 1, 0, 1, 2], [0, 1, 2])
    """
    turn = turning_point(graph) if turn is None else turn
    order = list(range(turn))
    live = {
        v
        for op in graph.ops[:turn]
        for v in op.outputs
        if v in kept or v in graph.outputs or not op.recomputable
    }
    for index in range(turn, len(graph.ops)):
        for op in (*ops_to_make(graph, graph.ops[index].inputs, live), index):
            order.append(op)
            live.update(graph.ops[op].outputs)
    return order


def order_from_stages(graph: Graph, kept: Sequence[Set[int]]) -> list[int]:
    """Return an order from the values to hold as each op first runs, ``kept[t]`` for op ``t``.

    Before op ``t`` what it reads and what ``kept[t + 1]`` wants is recomputed from what ``kept[t]``
    held; ``kept`` may have one more entry than there are ops, for the end. Outputs of an op that is
    not recomputable are always held.

    >>> from planner.graphs import Op, Value
    >>> ops = (Op("a", "f", (), (0,)), Op("b", "f", (), (1,)), Op("c", "f", (0, 1), (2,)))
    >>> g = Graph(ops, tuple(Value(n, 1) for n in "xyz"))
    >>> order_from_stages(g, [set(), {0}, {0, 1}]), order_from_stages(g, [set(), set(), {1}])
    ([0, 1, 2], [0, 1, 0, 2])
    """
    order: list[int] = []
    live: set[int] = set()
    fixed: set[int] = set()
    count = len(graph.ops)
    for t in range(count + 1):
        after = kept[t + 1] if t + 1 < len(kept) else graph.outputs
        wanted = (
            [*graph.ops[t].inputs, *(after - set(graph.ops[t].outputs))] if t < count else after
        )
        for index in (*ops_to_make(graph, wanted, live), *range(t, count)[:1]):
            op = graph.ops[index]
            order.append(index)
            live.update(op.outputs)
            fixed.update(() if op.recomputable else op.outputs)
        live = {v for v in live if v in after or v in fixed}
    return order


def without_unread(graph: Graph, order: Sequence[int]) -> list[int]:
    """Drop the repeated runs that nobody reads; the rest holds no more and costs less.

    >>> from planner.graphs import Op, Value
    >>> ops = (Op("a", "f", (), (0,)), Op("b", "f", (0,), (1,)))
    >>> g = Graph(ops, (Value("x", 1), Value("y", 1)))
    >>> without_unread(g, [0, 1, 1, 0])
    [0, 1]
    """
    first = {op: i for i, op in reversed(list(enumerate(order)))}
    needed, found = set(graph.outputs), list[int]()
    for i in range(len(order) - 1, -1, -1):
        op = graph.ops[order[i]]
        if first[order[i]] == i or not needed.isdisjoint(op.outputs):
            found.append(order[i])
            needed.difference_update(op.outputs)
            needed.update(op.inputs)
    return found[::-1]
