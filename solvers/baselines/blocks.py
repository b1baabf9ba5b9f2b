"""Per-block checkpointing: what ``gradient_checkpointing_enable`` does, and better uses of it.

A block is what the model's author repeats: the numbered children of a container, ``h.0``, ``h.1``
or ``layers.3``. Found from ``Op.module``; a graph without such paths has no blocks. A block that is
checkpointed keeps what other blocks read and recomputes the rest late, which never costs more
than running the whole block again as ``torch.utils.checkpoint`` does.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator

from planner.graphs import Graph, schedule_from_order, simulate
from planner.solvers.api import Answer, Limits, Status, register
from planner.solvers.baselines.sweep import cheapest, sizes_up_to
from planner.solvers.model.order_from_kept import order_from_kept, turning_point

Block = frozenset[int]
"""The ops of one block."""


def find_blocks(graph: Graph) -> list[Block]:
    """Return the outermost repeated blocks of the forward pass, in order of execution.

    >>> from planner.graphs import Op, Value
    >>> paths = ["wte", "h.0.attn", "h.0.mlp.1", "h.1.attn", "head"]
    >>> ops = tuple(Op(p, "f", (), (i,), module=p) for i, p in enumerate(paths))
    >>> g = Graph(ops, tuple(Value(p, 1) for p in paths), outputs=frozenset(range(5)))
    >>> [sorted(block) for block in find_blocks(g)]
    [[1, 2], [3]]
    """
    members: defaultdict[str, set[int]] = defaultdict(set)
    forward = graph.ops[: turning_point(graph)]
    names = repeated_blocks(op.module for op in forward)
    for index, op in enumerate(forward):
        if name := names.get(op.module):
            members[name].add(index)
    return sorted(map(frozenset, members.values()), key=min)


def repeated_blocks(modules: Iterable[str]) -> dict[str, str]:
    """Return the repeated block that each module lies in, if it does.

    Args:
        modules: paths.

    >>> repeated_blocks(["wte", "h.0.attn", "h.1.attn", "tail.0"])
    {'h.0.attn': 'h.0', 'h.1.attn': 'h.1'}
    """
    names = {module: name for module in modules if (name := _block_name(module))}
    siblings: defaultdict[str, int] = defaultdict(int)
    for name in set(names.values()):
        siblings[name.rpartition(".")[0]] += 1
    return {m: name for m, name in names.items() if siblings[name.rpartition(".")[0]] > 1}


def _block_name(module: str) -> str:
    parts = module.split(".")
    numbered = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return "" if numbered is None else ".".join(parts[: numbered + 1])


def _order(graph: Graph, checkpointed: Iterable[Block]) -> list[int]:
    """Keep every forward value but those only read inside one of the checkpointed blocks."""
    turn = turning_point(graph)
    kept = {v for op in graph.ops[:turn] for v in op.outputs}
    for block in checkpointed:
        kept.difference_update(inner_values(graph, block, turn))
    return order_from_kept(graph, kept, turn)


def inner_values(graph: Graph, block: Block, turn: int) -> set[int]:
    """Return what a block makes and no other op of the forward pass reads.

    Args:
        graph: the step.
        block: its ops.
        turn: the first backward op.
    """
    made = {v for index in block for v in graph.ops[index].outputs}
    return {v for v in made if all(op in block for op in graph.consumers[v] if op < turn)}


def no_blocks(family: str) -> Answer:
    """Return the answer for a graph that has none."""
    message = f"{family}: no op has a module path like h.0 or layers.3, so there are no blocks"
    return Answer(Status.UNKNOWN, None, message=message)


@register("blocks")
def blocks(graph: Graph, budget_bytes: int, limits: Limits) -> Answer:
    """Checkpoint every block.

    Args:
        graph, budget_bytes, limits: as for ``solve``.
    """
    del limits  # nothing to search
    if not (found := find_blocks(graph)):
        return no_blocks("blocks")
    return cheapest(graph, budget_bytes, [_order(graph, found)], family="blocks")


@register("blocks_uniform")
def blocks_uniform(graph: Graph, budget_bytes: int, limits: Limits) -> Answer:
    """Sweep the three dials people turn.

    Every n-th block is checkpointed, or the first n, or all in groups of n whose inner boundaries
    are not kept.

    Args:
        graph, budget_bytes, limits: as for ``solve``.
    """
    if not (found := find_blocks(graph)):
        return no_blocks("blocks_uniform")
    orders = uniform_orders(graph, found)
    return cheapest(graph, budget_bytes, orders, family="blocks_uniform", seconds=limits.seconds)


def uniform_orders(graph: Graph, found: list[Block]) -> Iterator[list[int]]:
    """Yield the orders of ``blocks_uniform``, whatever the budget."""
    yield _order(graph, [])
    for n in sizes_up_to(len(found)):
        yield _order(graph, found[::n])
        yield _order(graph, found[:n])
        yield _order(graph, [Block().union(*found[i : i + n]) for i in range(0, len(found), n)])


@register("blocks_greedy")
def blocks_greedy(graph: Graph, budget_bytes: int, limits: Limits) -> Answer:
    """Checkpoint blocks by bytes saved per second recomputed until the budget is met.

    Then take back, dearest first, each block that the budget does not need.

    Args:
        graph, budget_bytes, limits: as for ``solve``.
    """
    deadline = time.monotonic() + limits.seconds
    if not (found := find_blocks(graph)):
        return no_blocks("blocks_greedy")
    return cheapest(
        graph, budget_bytes, _greedy(graph, budget_bytes, found, deadline), family="blocks_greedy"
    )


def _greedy(
    graph: Graph, budget_bytes: int, found: list[Block], deadline: float
) -> Iterator[list[int]]:
    turn = turning_point(graph)

    def seconds(block: Block) -> float:
        return sum(graph.ops[index].seconds for index in block)

    def worth(block: Block) -> float:
        saved = sum(graph.values[v].size_bytes for v in inner_values(graph, block, turn))
        return saved / max(seconds(block), 1e-30)

    def fits(order: list[int]) -> bool:
        return simulate(graph, schedule_from_order(graph, order)).peak_bytes <= budget_bytes

    chosen: list[Block] = []
    ranked = sorted(found, key=worth, reverse=True)
    while len(chosen) < len(ranked) and not fits(_order(graph, chosen)):
        if time.monotonic() > deadline:
            chosen = ranked
            break
        chosen.append(ranked[len(chosen)])
    yield _order(graph, chosen)
    for block in sorted(chosen, key=seconds, reverse=True):
        if time.monotonic() > deadline:
            return
        if fits(order := _order(graph, [other for other in chosen if other != block])):
            chosen.remove(block)
            yield order
