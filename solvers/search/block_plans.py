"""Plans from blocks: what to hold between layers first, then what runs again within each.

A fix-and-optimize: a small graph of blocks says what is handed from the forward pass to each part
of the backward pass; given that, the stretches of the order are independent of one another, and
each is solved as a graph of its own, those alike once. A stretch that does not fit beside what is
held during it is granted more memory, and the small graph is solved again (in the manner of
Benders' feasibility cuts; what is granted may rule out plans that fit). Effort is counted, not
timed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from planner.graphs import Graph
from planner.solvers.api import Limits
from planner.solvers.model.contraction import Contraction, contract
from planner.solvers.model.order_from_kept import ops_to_make, turning_point
from planner.solvers.model.positions import Positions
from planner.solvers.model.problem import Problem, flatten, held_bytes
from planner.solvers.model.stretch import Stretch, stretch
from planner.solvers.search.incumbent import Search
from planner.solvers.search.polish import polish
from planner.solvers.search.time_cuts import run_cuts
from planner.solvers.tuning import (
    BLOCK_GAP,
    BLOCK_GRANTS,
    BLOCK_LEVELS,
    BLOCK_MORE,
    BLOCK_POLISH_WORK,
    BLOCK_ROUNDS,
    BLOCK_WORK,
    BLOCKS_TOGETHER,
    MOST_BLOCKS,
)


def plan_blocks(
    search: Search,
    graph: Graph,
    limits: Limits,
    *,
    target: float = 0.0,
    together: Sequence[int] = BLOCKS_TOGETHER,
    most_ops: int | None = None,
) -> None:
    """Offer what blocks of several sizes lead to, larger ones where smaller ones do not help.

    Args:
        search: what is known; it takes in what is found.
        graph: the step.
        limits: the gap and the seed count; the deadline is that of the search.
        target: the gap, as a fraction of the step, at which to stop.
        together: how many neighbouring blocks count as one.
        most_ops: of a stretch that is solved, if it does not fit as it is; any by default.
    """
    stretches = _Stretches(search, replace(limits, gap=max(limits.gap, BLOCK_GAP)), most_ops)
    turn = turning_point(graph)
    for depth in range(1, BLOCK_LEVELS + 1):
        for starts in partitions(graph, turn, depth, together):
            step, before = contract(graph, starts), search.extra
            for grant in BLOCK_GRANTS:
                if search.gap <= target or search.over():
                    return
                _plan(search, step, stretches, grant)
            if search.extra < before:
                break


def partitions(
    graph: Graph, turn: int, depth: int, sizes: Sequence[int] = BLOCKS_TOGETHER
) -> Iterator[list[int]]:
    """Yield where blocks begin: the numbered modules of a depth, alone, in pairs, in threes.

    A block such as ``h.0`` is of depth 1, one such as ``stages.2.layers.0`` of depth 2.

    Args:
        graph: the step.
        turn: the first backward op.
        depth: of the modules.
        sizes: how many neighbouring ones count as one block.

    >>> from planner.graphs import Op, Value
    >>> paths = ["wte", "h.0.attn", "h.0.mlp.1", "h.1.attn", "h.2.attn", "h.3.attn", "head"]
    >>> ops = tuple(Op(p, "f", (), (i,), module=p) for i, p in enumerate(paths))
    >>> g = Graph(ops, tuple(Value(p, 1) for p in paths), outputs=frozenset(range(7)))
    >>> list(partitions(g, 7, 1))
    [[1, 3, 4, 5], [3, 5], [4]]
    """
    first: dict[str, int] = {}
    for index, op in enumerate(graph.ops[:turn]):
        first.setdefault(_numbered(op.module, depth), index)
    first.pop("", None)
    places = sorted(set(first.values()) - {0})
    for together in sizes:
        starts = places[together - 1 :: together]
        if 0 < len(starts) <= MOST_BLOCKS:
            yield starts


def _numbered(module: str, depth: int) -> str:
    """Return the path up to its number of some depth, nothing if it has fewer."""
    parts = module.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[depth - 1] + 1]) if len(numbers) >= depth else ""


def _plan(search: Search, step: Contraction, stretches: _Stretches, grant: float) -> None:
    """Solve the small graph, then its stretches; grant more to those that do not fit, and repeat.

    ``grant`` is how much of what each part holds above the least it may.
    """
    demands = [p.floor_bytes + int(grant * (p.peak_bytes - p.floor_bytes)) for p in step.parts]
    for _ in range(BLOCK_ROUNDS):
        small = step.small(demands)
        chosen = stretches.plan(flatten(small))
        if chosen is None or search.over():
            return
        order, ends = step.expand(small, chosen)
        most = search.base + search.extra
        if step.problem.order_seconds(order) >= most:
            return
        spans = list(pairwise(ends))
        found = stretches.orders([stretch(step.problem, order, a, b) for a, b in spans], most)
        if not found:
            return
        found = _made_anew(step, order, spans, found, stretches)
        if all(local is not None for local in found):
            whole = [o for local in found if local is not None for o in local]
            search.offer(whole, evict=False)
            return
        first = list(dict.fromkeys(chosen))
        short = [first[i] for i, local in enumerate(found) if local is None]
        _grant_more(small, chosen, demands, short, search.budget)


def _made_anew(
    step: Contraction,
    order: Sequence[int],
    spans: Sequence[tuple[int, int]],
    found: Sequence[list[int] | None],
    stretches: _Stretches,
) -> list[list[int] | None]:
    """Solve stretches that do not fit once more, longer by what makes their own inputs anew.

    An input that is there from the beginning could not be given up and made again in between.
    """
    longer = {
        i: part
        for i, (start, stop) in enumerate(spans)
        if found[i] is None and (part := _with_makers(step, order, start, stop)) is not None
    }
    again = dict(zip(longer, stretches.orders(list(longer.values()), math.inf), strict=True))
    return [again.get(i, local) for i, local in enumerate(found)]


def _with_makers(step: Contraction, order: Sequence[int], start: int, stop: int) -> Stretch | None:
    """Return a stretch that first makes what nothing after it reads of its inputs; ``None`` if none
    can be made."""
    problem = step.problem
    positions = Positions(problem, order)
    before = {v for o in set(order[:start]) for v in problem.outputs[o]}
    before = {v for v in before if positions.holds(v, start)}
    read = {v for o in order[start:stop] for v in problem.inputs[o]}
    own = {
        v
        for v in before & read - step.fixed
        if problem.maker[v] < step.turn and not positions.holds(v, stop)
    }
    again = ops_to_make(step.graph, sorted(own), before - own)
    if not again or not all(problem.recomputable[o] for o in again):
        return None
    longer = [*order[:start], *again, *order[start:]]
    return stretch(problem, longer, start, stop + len(again))


def _grant_more(
    small: Graph, order: Sequence[int], demands: list[int], short: Sequence[int], budget: int
) -> None:
    """Grant parts more than what was left to them beside all else that was held meanwhile."""
    held = held_bytes(flatten(small), order)
    for number in short:
        left = budget - int(held[order.index(number)])
        demands[number] += max(left + 1, int(BLOCK_MORE * budget))


class _Stretches:
    """Orders of stretches within a budget, each kind of stretch solved once for each room.

    What fits in less room also fits in more; where two rooms cost the same, so do those between.
    """

    def __init__(self, search: Search, limits: Limits, most_ops: int | None = None) -> None:
        self.budget, self.deadline, self.limits = search.budget, search.deadline, limits
        self.most_ops = most_ops
        self.known: dict[object, dict[int, tuple[float, Sequence[int]] | None]] = {}

    def plan(self, problem: Problem) -> list[int] | None:
        """Return an order of a small problem, ``None`` if none that fits is found."""
        if self.most_ops is not None and problem.n > self.most_ops:
            return None
        search = Search(problem, self.budget, deadline=self.deadline)
        run_cuts(search, self.limits.until(self.deadline), most_work=BLOCK_WORK, tight=False)
        if search.order is not None:
            polish(search, target=self.limits.gap, work=BLOCK_POLISH_WORK, deadline=self.deadline)
        return search.order

    def orders(self, parts: Sequence[Stretch], most: float) -> list[list[int] | None]:
        """Return the best order found of each stretch, ``None`` where none was found.

        Args:
            parts: the stretches.
            most: the seconds that all may take; nothing is returned if they will take more.
        """
        alike: dict[object, list[Stretch]] = {}
        for part in sorted(parts, key=self._room):
            alike.setdefault(_kind(part), []).append(part)
        least = 0.0
        for kind, members in alike.items():
            widest = self._solved(kind, members[-1])
            least += len(members) * (widest[0] if widest else members[-1].graph.seconds)
            if least >= most:
                return []
        for kind, members in alike.items():
            self._solved(kind, members[0])
            self._between(kind, members)
        found = (self._solved(_kind(part), part) for part in parts)
        return [
            None if known is None else part.order(known[1])
            for part, known in zip(parts, found, strict=True)
        ]

    def _room(self, part: Stretch) -> int:
        return self.budget - part.background_bytes

    def _between(self, kind: object, parts: Sequence[Stretch]) -> None:
        """Solve stretches alike, in order of room, of which the first and the last are solved."""
        if len(parts) <= 2:
            return
        tight, wide = self._solved(kind, parts[0]), self._solved(kind, parts[-1])
        if wide is None or (tight is not None and tight[0] <= wide[0]):
            self.known[kind].update({self._room(part): tight for part in parts[:-1]})
            return
        middle = len(parts) // 2
        self._solved(kind, parts[middle])
        self._between(kind, parts[: middle + 1])
        self._between(kind, parts[middle:])

    def _solved(self, kind: object, part: Stretch) -> tuple[float, Sequence[int]] | None:
        """Return the seconds and the order found of a stretch, solving it if it is new."""
        known, room = self.known.setdefault(kind, {}), self._room(part)
        if room not in known:
            problem = flatten(part.graph)
            local: Sequence[int] | None = range(problem.n)
            if held_bytes(problem, range(problem.n)).max() > self.budget:
                local = self.plan(problem)
            known[room] = None if local is None else (problem.order_seconds(local), local)
        fits = [found for other, found in known.items() if found is not None and other <= room]
        return min(fits, key=lambda found: found[0], default=None)


def _kind(part: Stretch) -> object:
    """Return what stretches alike share: all but what is held beside them."""
    graph = part.graph
    return graph.ops, graph.values[:-1], graph.outputs
