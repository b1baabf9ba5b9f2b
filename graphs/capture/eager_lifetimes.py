"""A step's ops read as autograd holds their values: nothing goes before its node is done.

Holding is reading: the last kernel of a node of autograd reads all that the node was given, so
that simulation keeps it until then. A temporary is held as long as its formula, the kernels that
lead to one of the node's results. Knows ops and values; which kernels belong together is known to
``passes.autograd_nodes``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import groupby

from planner.graphs.graph import Op, Value

_FITTING = ("aten.sum.", "aten._to_copy.")


@dataclass(frozen=True)
class AutogradFacts:
    """What autograd knows of ops: ``numbers`` are those of their nodes, ``None`` for no node.

    By number: ``saved`` are values held although no kernel reads them, ``workspace_bytes`` what a
    node takes in place of the temporaries that were traced. ``results`` are the step's gradients.
    """

    numbers: Sequence[int | None]
    saved: Mapping[int, Set[int]]
    workspace_bytes: Mapping[int, int]
    results: Set[int]


def held_by_autograd(ops: list[Op], values: list[Value], facts: AutogradFacts) -> None:
    """Let ops read, in place, what autograd holds until they have run.

    Args:
        ops, values: of the step.
        facts: what autograd knows of them.
    """
    readers: defaultdict[int, set[int]] = defaultdict(set)
    for i, op in enumerate(ops):
        for v in op.inputs:
            readers[v].add(i)
    for number, group in groupby(range(len(ops)), facts.numbers.__getitem__):
        if number is None:
            continue
        node = list(group)
        leaving = {v for i in _fitting(ops, node) for v in ops[i].inputs} | facts.results
        leaving |= {v for i in node for v in ops[i].outputs if not readers[v] <= set(node)}
        _hold(ops, node, leaving, set(facts.saved.get(number, ())))
        if number in facts.workspace_bytes:
            _take_instead(ops, values, node, facts.workspace_bytes[number])


def _hold(ops: list[Op], node: Sequence[int], leaving: Set[int], given: set[int]) -> None:
    made, formula = set[int](), set[int]()
    for i in node:
        given |= {v for v in ops[i].inputs if v not in made}
        made.update(ops[i].outputs)
        formula.update(ops[i].outputs)
        if not leaving.isdisjoint(ops[i].outputs):
            _read_too(ops, i, formula)
            formula.clear()
    _read_too(ops, node[-1], given | formula)


def _fitting(ops: Sequence[Op], node: Sequence[int]) -> Iterator[int]:
    """Yield the kernels at a node's end by which autograd fits a gradient to its operand."""
    for i in reversed(node):
        if not ops[i].target.startswith(_FITTING):
            return
        yield i


def _read_too(ops: list[Op], index: int, held: Set[int]) -> None:
    op = ops[index]
    inputs = dict.fromkeys((*op.inputs, *sorted(held)))
    ops[index] = replace(op, inputs=tuple(v for v in inputs if v not in op.outputs))


def _take_instead(
    ops: list[Op], values: list[Value], node: Sequence[int], workspace_bytes: int
) -> None:
    """Let a node take so much workspace and its last result, and nothing else."""
    for i in node:
        ops[i] = replace(ops[i], workspace_bytes=0)
        for v in ops[i].outputs:
            if i != node[-1]:
                values[v] = replace(values[v], size_bytes=0)
    ops[node[-1]] = replace(ops[node[-1]], workspace_bytes=workspace_bytes)
