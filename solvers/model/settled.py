"""Ops that leave no choice, taken out of a step and put back into its schedules.

An op that may not run again, makes nothing, and reads only what is resident or what the op before
it made for it alone, such as the update of a batch norm's statistics, runs once, right beside
another. Without it the step has the same schedules, which cost as many seconds less and hold as
much: so a bound for the smaller step, and the best schedule of it, are the larger one's.

- After the op ``a`` that made what it reads: those bytes are ``a``'s workspace instead. Whenever
  ``a`` runs, again too, they are there while it does, and can be free at once. The op itself holds
  no more than ``a`` does if its workspace is no more than ``a``'s.
- Else before the next op ``b``: any schedule may run it right there, since what runs again in
  between reads nothing of it. It holds no more than ``b`` does if its workspace is no more than
  what ``b`` makes and works with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from planner.graphs import Graph, Op


@dataclass
class _Step:
    """A step that ops are taken out of; ``before`` and ``after`` say beside which others."""

    graph: Graph
    ops: list[Op]
    kept: list[int]
    dropped: set[int] = field(default_factory=set)
    before: dict[int, list[int]] = field(default_factory=dict)
    after: dict[int, list[int]] = field(default_factory=dict)

    def take_out(self) -> bool:
        """Take out what can be; tell whether anything was."""
        kept = list[int]()
        for place, index in enumerate(self.kept):
            last = kept[-1] if kept else None
            following = self.kept[place + 1] if place + 1 < len(self.kept) else None
            if not (self._goes_after(index, last) or self._goes_before(index, following)):
                kept.append(index)
        changed = len(kept) < len(self.kept)
        self.kept = kept
        return changed

    def _reads(self, index: int) -> set[int]:
        return set(self.ops[index].inputs) - self.graph.resident

    def _is_settled(self, index: int) -> bool:
        op = self.ops[index]
        return not op.recomputable and not op.outputs

    def _goes_after(self, index: int, last: int | None) -> bool:
        if last is None or not self._is_settled(index) or not (reads := self._reads(index)):
            return False
        op, maker = self.ops[index], self.ops[last]
        mine = all(
            v in maker.outputs
            and self.graph.consumers[v] == (index,)
            and v not in self.graph.outputs
            for v in reads
        )
        if not mine or op.workspace_bytes > maker.workspace_bytes:
            return False
        beside = sum(self.graph.values[v].size_bytes for v in reads)
        outputs = tuple(v for v in maker.outputs if v not in reads)
        workspace = maker.workspace_bytes + beside
        self.ops[last] = replace(maker, outputs=outputs, workspace_bytes=workspace)
        self.dropped |= reads
        self.after.setdefault(last, []).append(index)
        return True

    def _goes_before(self, index: int, following: int | None) -> bool:
        if following is None or not self._is_settled(index) or self._reads(index):
            return False
        host = self.ops[following]
        room = sum(self.graph.values[v].size_bytes for v in host.outputs) + host.workspace_bytes
        if self.ops[index].workspace_bytes > room:
            return False
        self.before.setdefault(following, []).append(index)
        return True


@dataclass(frozen=True)
class Shortened:
    """A step without its settled ops. ``seconds`` is what those take."""

    graph: Graph
    seconds: float
    _kept: Sequence[int]
    _before: dict[int, list[int]]
    _after: dict[int, list[int]]

    def expand(self, order: Sequence[int]) -> list[int]:
        """Return an order of the whole step, from one of the short one."""
        found, seen = list[int](), set[int]()
        for index in (self._kept[i] for i in order):
            found += [index] if index in seen else self._with_settled(index)
            seen.add(index)
        return found

    def _with_settled(self, index: int) -> Iterator[int]:
        for other in self._before.get(index, ()):
            yield from self._with_settled(other)
        yield index
        for other in self._after.get(index, ()):
            yield from self._with_settled(other)


def shorten(graph: Graph) -> Shortened | None:
    """Return a step without the ops that leave no choice, ``None`` if it has none.

    >>> from planner.graphs import Kind, Value
    >>> ops = (Op("norm", "f", (0,), (1, 2), 2.0),
    ...        Op("update", "copy_", (2, 3), (), 0.5, recomputable=False),
    ...        Op("loss", "f", (1,), (4,), 1.0))
    >>> values = [Value(name, 8) for name in ("x", "y", "mean", "running", "loss")]
    >>> short = shorten(Graph(ops, tuple(values), frozenset({4})))
    >>> [op.name for op in short.graph.ops], short.graph.ops[0].workspace_bytes, short.seconds
    (['norm', 'loss'], 8, 0.5)
    >>> short.expand([0, 1, 0])
    [0, 1, 2, 0]
    """
    step = _Step(graph, list(graph.ops), list(range(len(graph.ops))))
    while step.take_out():
        pass
    if len(step.kept) == len(graph.ops):
        return None
    gone = set(range(len(graph.ops))).difference(step.kept)
    values = [
        replace(x, size_bytes=0) if v in step.dropped else x for v, x in enumerate(graph.values)
    ]
    short = Graph(tuple(step.ops[i] for i in step.kept), tuple(values), graph.outputs, graph.name)
    seconds = sum(graph.ops[i].seconds for i in gone)
    return Shortened(short, seconds, tuple(step.kept), step.before, step.after)
