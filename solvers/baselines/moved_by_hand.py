"""What people do today where values may move to the host, without a plan.

``offload_all`` moves all that the backward pass reads, as ``torch.autograd.graph.save_on_cpu``:
each value as soon as it is made, back when it is read, and the device waits. ``checkpoint_offload``
is per-block checkpointing whose blocks' inputs wait on the host, as ``gradient_checkpointing`` with
offload in axolotl and transformers, and torchtune's ``OffloadActivations``: an input leaves while
its block runs and comes back before that block's backward pass. Two ways to time the copies are
tried: the device waits for each, as the former do, or it goes on for one block more, as the latter
does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from planner.graphs import (
    Action,
    Graph,
    Phase,
    Schedule,
    Step,
    simulate,
)
from planner.graphs.hardware.host_tier import HostTier
from planner.graphs.host_memory import host_layout, movable
from planner.solvers.baselines.blocks import Block, find_blocks
from planner.solvers.baselines.checkpoint import order_of
from planner.solvers.model.gaps import gaps_of, with_copies
from planner.solvers.model.order_from_kept import turning_point
from planner.solvers.model.problem import flatten


@dataclass(frozen=True, slots=True)
class _Away:
    """A value that is away: positions after which it leaves, and before which it is dropped and
    begins to come back."""

    value: int
    made: int
    dropped: int
    fetched: int


def everything_moved(graph: Graph) -> Iterator[Schedule]:
    """Yield the schedule that moves all that the backward pass reads, and waits for each copy.

    Args:
        graph: the step.

    >>> from planner.graphs import Op, Value
    >>> ops = (Op("f", "f", (), (0,), 1.0), Op("g", "g", (0,), (1,), 1.0),
    ...        Op("b", "b", (1,), (2,), 1.0, phase=Phase.BACKWARD),
    ...        Op("a", "b", (0, 2), (3,), 1.0, phase=Phase.BACKWARD))
    >>> g = Graph(ops, tuple(Value(n, 1) for n in "xlgd"))
    >>> [s.action.name for s in next(everything_moved(g)).steps][:5]
    ['compute', 'compute', 'offload', 'free', 'compute']
    """
    turn = next((i for i, op in enumerate(graph.ops) if op.phase is Phase.BACKWARD), None)
    if turn is None:
        return
    order = range(len(graph.ops))
    gaps = gaps_of(flatten(graph), order, movable(graph))
    away = [
        _Away(gap.value, gap.after, gap.after + 1, gap.before)
        for gap in gaps
        if gap.after < turn <= gap.before
    ]
    yield _moved(graph, order, away)


def checkpoints_offloaded(graph: Graph) -> Iterator[Schedule]:
    """Yield per-block checkpointing of every block with the inputs of blocks away meanwhile.

    Args:
        graph: the step; without blocks nothing is yielded.
    """
    blocks = find_blocks(graph)
    if not blocks:
        return
    order = order_of(graph, blocks)
    for ahead in (0, 1):
        away = _inputs_away(graph, order, blocks, ahead)
        if away:
            yield _moved(graph, order, away)


def _inputs_away(
    graph: Graph, order: Sequence[int], blocks: Sequence[Block], ahead: int
) -> list[_Away]:
    """Return when the input of each block is away, with copies so many blocks ahead of the device.

    An input is what only this block reads of what is made outside of it: what all read stays.
    """
    turn = turning_point(graph)
    number = {op: k for k, block in enumerate(blocks) for op in block}
    begins = [min(block) for block in blocks]
    again = _first_again(order, turn, number, len(blocks))
    away: list[_Away] = []
    for gap in gaps_of(flatten(graph), order, movable(graph)):
        maker, reader = graph.producer[gap.value], number.get(order[gap.before])
        if gap.after >= turn or gap.before < turn or reader is None or maker is None:
            continue
        readers = {number[op] for op in graph.consumers[gap.value] if op in number}
        if readers != {reader} or number.get(maker) == reader:
            continue
        later = reader + 1 + ahead
        dropped = begins[later] if later < len(blocks) else turn
        fetched = again[reader + 1] if reader + 1 < len(blocks) else turn
        dropped = max(dropped if ahead else 0, gap.after + 1)
        fetched = min(max(fetched, turn, dropped), gap.before) if ahead else gap.before
        if dropped < fetched:
            away.append(_Away(gap.value, maker, dropped, fetched))  # forward ops run in order
    return away


def _first_again(order: Sequence[int], turn: int, number: dict[int, int], count: int) -> list[int]:
    """Return the position at which each block begins to run again, the end if it never does."""
    found = [len(order)] * count
    for i in range(len(order) - 1, turn - 1, -1):
        if order[i] < turn and order[i] in number:
            found[number[order[i]]] = i
    return found


def _moved(graph: Graph, order: Sequence[int], away: Iterable[_Away]) -> Schedule:
    """Add to an order the steps that move values, first what leaves, last what comes back."""
    after: defaultdict[int, list[Step]] = defaultdict(list)
    before: defaultdict[int, list[Step]] = defaultdict(list)
    moves = list(away)
    for move in moves:
        after[move.made].append(Step(Action.OFFLOAD, move.value))
        before[move.dropped].append(Step(Action.FREE, move.value))
    for move in sorted(moves, key=lambda m: m.fetched):
        before[move.fetched].append(Step(Action.FETCH, move.value))
    return with_copies(graph, order, before, after)


BY_HAND: dict[str, Callable[[Graph], Iterator[Schedule]]] = {
    "offload_all": everything_moved,
    "checkpoint_offload": checkpoints_offloaded,
}
"""Families that people use without a plan, as ``pareto_marks.RUN_BY_TORCH``."""


def admitted(graph: Graph, family: str, tier: HostTier) -> list[tuple[int, float, Schedule]]:
    """Return peak bytes, seconds and schedules of a family that the host has room for.

    Args:
        graph: the step.
        family: a name of ``BY_HAND``.
        tier: where values go.
    """
    found: list[tuple[int, float, Schedule]] = []
    for schedule in BY_HAND[family](graph):
        if tier.admits(host_layout(graph, schedule).size_bytes):
            trace = simulate(graph, schedule, link_bytes_per_second=tier.rates)
            found.append((trace.peak_bytes, trace.seconds, schedule))
    return found
