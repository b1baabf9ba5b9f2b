"""Bytes that one rank holds at some moment, whatever is recomputed: a floor of every schedule.

A unit runs again from what entered it, which is kept for it: no unit makes again what another
reads. So while others run between a unit's forward and its backward, what its backward needs is
kept, or what that is made of. A solver's order need not know that; what torch runs does it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from planner.graphs import Graph, Kind
from planner.solvers.bounds.kept_for_backward import kept_for_backward

Halves = tuple[frozenset[int], frozenset[int]]
"""The ops of a unit's forward and of its backward."""


@dataclass(frozen=True)
class _Unit:
    """The ops of a unit in the step, and the values that count as kept for it alone."""

    kind: Hashable
    forward: frozenset[int]
    backward: frozenset[int]
    kept: dict[int, int]

    def pattern(self, graph: Graph) -> tuple[int, ...]:
        """Return what tells it from others of its kind: the bytes that count, value by value."""
        ops = (graph.ops[op] for op in sorted(self.forward))
        return tuple(self.kept.get(v, -1) for op in ops for v in (*op.inputs, *op.outputs))

    @property
    def waits(self) -> range:
        """The ops that run, in the step's order, between its forward and its backward."""
        return range(max(self.forward) + 1, min(self.backward))


def least_held(graph: Graph, units: Mapping[Hashable, Sequence[Halves]]) -> int:
    """Return bytes that every schedule torch can run of a step holds at some moment.

    Each op needs its own, and what cannot be made again is live until it was read; beside that
    every unit whose backward is to come keeps what that needs.

    Args:
        graph: of one rank's step.
        units: the ops of each, by its kind.
    """
    found = list(_units(graph, units))
    owner = {v: unit for unit in found for v in unit.kept}
    held = [0] * (len(graph.ops) + 1)
    known: dict[object, int] = {}
    for unit in found:
        key = unit.kind, unit.pattern(graph)
        if key not in known:
            known[key] = kept_for_backward(graph, unit.forward, unit.backward, unit.kept)
        held[unit.waits.start] += known[key]
        held[unit.waits.stop] -= known[key]
    kept = list(accumulate(held))
    lives = _forced(graph, owner)
    return max(
        graph.resident_bytes + op.workspace_bytes + kept[t] + lives[t] + _own(graph, t, owner)
        for t, op in enumerate(graph.ops)
    )


def _units(graph: Graph, units: Mapping[Hashable, Sequence[Halves]]) -> Iterator[_Unit]:
    """Yield the units that keep something; what several read, or the root, counts for none."""
    numbered = enumerate((kind, halves) for kind, alike in units.items() for halves in alike)
    listed = [(u, kind, *halves) for u, (kind, halves) in numbered]
    inside = {op: u for u, _, *halves in listed for half in halves for op in half}
    for u, kind, forward, backward in listed:
        if forward and backward and max(forward) < min(backward):
            yield _Unit(kind, forward, backward, _kept(graph, forward, u, inside))


def _kept(graph: Graph, forward: Collection[int], u: int, inside: dict[int, int]) -> dict[int, int]:
    made = [v for op in forward for v in graph.ops[op].outputs]
    read = {v for op in forward for v in graph.ops[op].inputs}
    found = {}
    for v in dict.fromkeys((*made, *sorted(read))):
        if v in graph.resident or graph.values[v].kind is Kind.GATHERED or v in graph.outputs:
            continue
        readers = {inside.get(op) for op in graph.consumers[v] if not _is_anchor(graph, op)}
        if readers <= {u}:
            found[v] = graph.values[v].size_bytes
    return found


def _is_anchor(graph: Graph, op: int) -> bool:
    """Tell an op that only says how long what it reads lives."""
    return graph.ops[op].target in ("ended", "return")


def _forced(graph: Graph, owner: Collection[int]) -> list[int]:
    """Return, for each op, what is live beside its own values because it cannot be made again."""
    change: defaultdict[int, int] = defaultdict(int)
    for v, readers in enumerate(graph.consumers):
        maker = graph.producer[v]
        if maker is None or v in owner or graph.ops[maker].recomputable:
            continue
        size, before = graph.values[v].size_bytes, maker
        last = len(graph.ops) if v in graph.outputs else max(readers, default=maker)
        change[before + 1] += size
        change[last] -= size
        for reader in sorted({r for r in readers if r < last}):
            change[reader] -= size  # counted as its own
            change[reader + 1] += size
    return list(accumulate(change[t] for t in range(len(graph.ops))))


def _own(graph: Graph, t: int, owner: dict[int, _Unit]) -> int:
    """Return what an op reads and makes, without what counts as kept for a unit by then."""
    op = graph.ops[t]
    values = {v for v in (*op.inputs, *op.outputs) if v not in graph.resident}
    return sum(
        graph.values[v].size_bytes for v in values if v not in owner or t not in owner[v].waits
    )
