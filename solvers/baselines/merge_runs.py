"""A large graph as a small one: runs of consecutive ops become one op each.

Values made in one run and read by the same others become one value; what a run makes and only
itself reads becomes workspace. An order of the small graph expands to a valid order of the large
one. What it holds differs where an op in a run may not run again: then its outputs are kept, which
the small graph does not see. Bounds of the small graph say nothing about the large one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from planner.graphs import Graph, Kind, Op, Value


@dataclass(frozen=True)
class MergedGraph:
    """The small graph, the large one, and the ops of the large one behind each of the small."""

    graph: Graph
    large: Graph
    runs: tuple[range, ...]

    def expand(self, order: Sequence[int]) -> list[int]:
        """Return the order in ops of the large graph."""
        seen, found = set[int](), list[int]()
        for run in order:
            again = run in seen
            found += [op for op in self.runs[run] if not again or self.large.ops[op].recomputable]
            seen.add(run)
        return found


def merge_runs(graph: Graph, most_ops: int) -> MergedGraph:
    """Part the ops into about ``most_ops`` runs of one phase each.

    >>> from planner.graphs import Op, Value
    >>> ops = tuple(Op(f"f{i}", "f", (i,), (i + 1,), 1.0) for i in range(6))
    >>> small = merge_runs(Graph(ops, tuple(Value(f"x{i}", 3) for i in range(7))), 2)
    >>> small.runs, small.graph.ops[0].workspace_bytes, small.expand([1])
    ((range(0, 3), range(3, 6)), 6, [3, 4, 5])
    """
    n, runs = len(graph.ops), list[range]()
    for _, group in groupby(range(n), lambda i: graph.ops[i].phase):
        members = list(group)
        pieces = max(1, min(len(members), most_ops * len(members) // n))
        marks = [members[0] + len(members) * k // pieces for k in range(pieces + 1)]
        runs += [range(a, b) for a, b in pairwise(marks)]
    run_of = [k for k, run in enumerate(runs) for _ in run]
    values = [Value("resident", graph.resident_bytes, Kind.PARAMETER)]
    inputs: list[list[int]] = [[] for _ in runs]
    outputs: list[list[int]] = [[] for _ in runs]
    kept: set[int] = set()
    for (maker, readers, is_output), bundle in _bundles(graph, run_of).items():
        outputs[maker].append(len(values))
        for reader in readers:
            inputs[reader].append(len(values))
        kept.update([len(values)] if is_output else [])
        values.append(Value("bundle", sum(graph.values[v].size_bytes for v in bundle)))
    ops = [
        _merged(graph, run, run_of, ins, outs)
        for run, ins, outs in zip(runs, inputs, outputs, strict=True)
    ]
    small = Graph(tuple(ops), tuple(values), frozenset(kept), graph.name)
    return MergedGraph(small, graph, tuple(runs))


Bundle = tuple[int, tuple[int, ...], bool]
"""What values in a bundle share: the run that makes them, those that read them, if they stay."""


def _readers(graph: Graph, value: int, run_of: list[int], maker: int) -> tuple[int, ...]:
    return tuple(sorted({run_of[op] for op in graph.consumers[value]} - {maker}))


def _bundles(graph: Graph, run_of: list[int]) -> dict[Bundle, list[int]]:
    """Return the values that leave their run, by what they share."""
    found: defaultdict[Bundle, list[int]] = defaultdict(list)
    for value, producer in enumerate(graph.producer):
        if producer is not None:
            maker, stays = run_of[producer], value in graph.outputs
            if (readers := _readers(graph, value, run_of, maker)) or stays:
                found[maker, readers, stays].append(value)
    return found


def _merged(
    graph: Graph, run: range, run_of: list[int], inputs: list[int], outputs: list[int]
) -> Op:
    """Return the op that stands for a run."""
    ops, here = graph.ops[run.start : run.stop], run_of[run.start]
    hidden = {v for op in ops for v in op.outputs} - graph.outputs
    hidden = {v for v in hidden if not _readers(graph, v, run_of, here)}
    return replace(
        ops[0],
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        seconds=sum(op.seconds for op in ops),
        recomputable=any(op.recomputable for op in ops),
        workspace_bytes=_inner_peak(graph, run, hidden),
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
