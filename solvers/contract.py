"""A large graph as a small one: runs of consecutive ops become one op each.

What a run makes and only itself reads becomes workspace, and stays in the small graph as a resident
value without weight. An order of the small graph expands to an
order of the large one that holds no more; the converse fails, so bounds do not carry over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from graphs import Graph, Op


@dataclass(frozen=True)
class Contracted:
    """The small graph, which shares the large one's values, and the ops behind each of its own."""

    graph: Graph
    runs: tuple[range, ...]

    def expand(self, order: Sequence[int]) -> list[int]:
        """Return the order in ops of the large graph."""
        return [op for run in order for op in self.runs[run]]


def contract(graph: Graph, most_ops: int) -> Contracted:
    """Part the ops into about ``most_ops`` runs of one phase, all recomputable or none.

    There are more runs if the phase or ``recomputable`` changes more often.

    >>> from graphs import Op, Value
    >>> ops = tuple(Op(f"f{i}", "f", (i,), (i + 1,), 1.0) for i in range(6))
    >>> small = contract(Graph(ops, tuple(Value(f"x{i}", 3) for i in range(7))), 2)
    >>> small.runs, small.graph.ops[0].workspace_bytes, small.expand([1])
    ((range(0, 3), range(3, 6)), 6, [3, 4, 5])
    """
    n = len(graph.ops)
    runs: list[range] = []
    for _, group in groupby(range(n), lambda i: (graph.ops[i].phase, graph.ops[i].recomputable)):
        members = list(group)
        pieces = max(1, min(len(members), most_ops * len(members) // n))
        marks = [members[0] + len(members) * k // pieces for k in range(pieces + 1)]
        runs += [range(a, b) for a, b in pairwise(marks)]
    ops = tuple(_merged(graph, run) for run in runs)
    shown = graph.resident | {v for op in ops for v in op.outputs}
    values = tuple(
        x if v in shown else replace(x, size_bytes=0) for v, x in enumerate(graph.values)
    )
    return Contracted(Graph(ops, values, graph.outputs, graph.name), tuple(runs))


def _merged(graph: Graph, run: range) -> Op:
    """Return the op that stands for a run."""
    ops = graph.ops[run.start : run.stop]
    made = {v for op in ops for v in op.outputs}
    shown = {v for v in made if v in graph.outputs or any(c not in run for c in graph.consumers[v])}
    return replace(
        ops[0],
        inputs=tuple(sorted({v for op in ops for v in op.inputs} - made)),
        outputs=tuple(sorted(shown)),
        seconds=sum(op.seconds for op in ops),
        workspace_bytes=_inner_peak(graph, run, made - shown),
    )


def _inner_peak(graph: Graph, run: range, hidden: set[int]) -> int:
    """Return the most that a run's hidden values and workspace hold at once."""
    held = peak = 0
    for index in run:
        op = graph.ops[index]
        held += sum(graph.values[v].size_bytes for v in op.outputs if v in hidden)
        peak = max(peak, held + op.workspace_bytes)
        dead = {v for v in (*op.inputs, *op.outputs) if v in hidden}
        dead = {v for v in dead if max(graph.consumers[v], default=index) == index}
        held -= sum(graph.values[v].size_bytes for v in dead)
    return peak
