"""``torch.utils.checkpoint`` around blocks, as torch itself runs it.

A block that is checkpointed keeps its inputs and what others read of it. When backward first needs
something else of it, the whole block runs again, up to the last thing that backward needs, and all
of that is held until it is used. On a graph captured as eager mode runs it this is what
``gradient_checkpointing_enable`` and ``checkpoint_sequential`` hold; ``blocks`` recomputes later
and less, as only a plan can.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.graphs import Graph
from planner.solvers.api import Answer, Limits, register
from planner.solvers.baselines.blocks import Block, find_blocks, inner_values, no_blocks
from planner.solvers.baselines.sweep import cheapest, sizes_up_to
from planner.solvers.model.order_from_kept import turning_point


@register("checkpoint")
def checkpoint(graph: Graph, budget_bytes: int, limits: Limits) -> Answer:
    """Checkpoint no block, or every n-th, or the first n, or all in groups of n.

    Args:
        graph, budget_bytes, limits: as for ``solve``.
    """
    del limits  # a sweep over the number of blocks
    found = find_blocks(graph)
    answer = cheapest(graph, budget_bytes, orders(graph, found), family="checkpoint")
    return no_blocks("checkpoint") if answer.schedule is None and not found else answer


def orders(graph: Graph, found: list[Block]) -> Iterator[list[int]]:
    """Yield the orders of ``checkpoint``, whatever the budget.

    Args:
        graph: the step.
        found: its blocks.
    """
    yield order_of(graph, [])
    for n in sizes_up_to(len(found)):
        yield order_of(graph, found[::n])
        yield order_of(graph, found[:n])
        if n > 1:
            groups = range(0, len(found), n)
            yield order_of(graph, [Block().union(*found[i : i + n]) for i in groups])


def order_of(graph: Graph, checkpointed: Sequence[Block]) -> list[int]:
    """Return the order in which torch runs a step with some blocks checkpointed.

    Args:
        graph: the step.
        checkpointed: blocks, each as one call of ``torch.utils.checkpoint``.

    >>> from planner.graphs import Op, Phase, Value
    >>> ops = (Op("a", "f", (0,), (1,)), Op("b", "f", (1,), (2,)), Op("loss", "f", (2,), (3,)),
    ...        Op("d", "b", (1, 2), (4,), phase=Phase.BACKWARD))
    >>> g = Graph(ops, tuple(Value(n, 1) for n in ("x", "a", "b", "loss", "d")))
    >>> order_of(g, [frozenset({0, 1})])  # b is what others read of the block
    [0, 1, 2, 0, 3]
    """
    turn = turning_point(graph)
    owner: dict[int, int] = {}
    runs: list[list[int]] = []
    for number, block in enumerate(checkpointed):
        needed = {
            v
            for v in inner_values(graph, block, turn)
            if any(reader >= turn for reader in graph.consumers[v])
        }
        owner |= dict.fromkeys(needed, number)
        last = max((made for v in needed if (made := graph.producer[v]) is not None), default=-1)
        runs.append([i for i in sorted(block) if i <= last and graph.ops[i].recomputable])
    order = list(range(turn))
    for index in range(turn, len(graph.ops)):
        for v in graph.ops[index].inputs:
            if (number := owner.get(v, -1)) >= 0:
                order += runs[number]
                runs[number] = []
        order.append(index)
    return order
