"""Checkmate's integer program (arXiv 1910.02653) as a PuLP model, in its tight form.

Time is a row of stages. Window ``t`` ends with the first run of op ``t`` (the frontier advances by
one) and may first recompute older ops; one more window follows the last op, for outputs that were
dropped on the way. A window is one stage, or ``passes`` of them. In a stage each op runs at most
once, in the graph's order. The letters, ``p`` a stage, ``v`` a value, ``i, j, k`` ops:

    S[p, v]     v is held when stage p begins
    R[p, i]     op i runs in stage p
    F[p, v, k]  v is freed right after op k in stage p; k makes or reads v
    M[p, k]     bytes held while op k may run in stage p, workspace apart

    parents     R[p, i] <= S[p, v] + R[p, maker(v)]             v an input of i
    carry       S[p + 1, v] <= S[p, v] + R[p, maker(v)]
    no twins    S[p, v] + R[p, maker(v)] <= 1
    free        F[p, v, k] <= R[p, k];  sum over k of F[p, v, k] + S[p + 1, v] <= 1
    last use    sum over k < j of F[p, v, k] + R[p, j] <= 1     j reads v
    memory      M[p, k] = M[p, k - 1] - freed after k - 1 + made by k;  M + workspace R <= 1

Bytes are fractions of the budget left beside the resident values. "No twins" loses nothing: a copy
held into a stage that remakes it is read by nobody, for an op's readers come after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pulp

from planner.graphs import Graph

Term = tuple[Any, float]
"""A PuLP variable and its coefficient; PuLP is untyped."""


@dataclass(frozen=True, slots=True)
class ProgramStage:
    """The ops that may run in a stage, and the one that must (``None`` if none runs first here)."""

    window: int
    ops: tuple[int, ...]
    new: int | None


def stages_of(graph: Graph, passes: int = 1) -> tuple[ProgramStage, ...]:
    """Return the stages of a graph.

    >>> from planner.graphs import Op, Value
    >>> g = Graph(tuple(Op(n, "f", (), (i,)) for i, n in enumerate("ab")),
    ...           (Value("a", 1), Value("b", 1)), frozenset({0}))
    >>> [(s.ops, s.new) for s in stages_of(g)]
    [((0,), 0), ((0, 1), 1), ((0, 1), None)]
    """
    stages, count = list[ProgramStage](), len(graph.ops)
    for t in range(count + bool(graph.outputs - graph.resident)):
        again = tuple(i for i in range(t) if graph.ops[i].recomputable)
        extra = passes - 1 if again else 0
        stages += [ProgramStage(t, again, None)] * extra
        stages.append(
            ProgramStage(t, (*again, t), t) if t < count else ProgramStage(t, again, None)
        )
    return tuple(stages)


@dataclass(frozen=True)
class Checkmate:
    """The program and its decision variables. ``keep[p]`` and ``run[p]`` are ``S`` and ``R``."""

    problem: Any
    stages: tuple[ProgramStage, ...]
    keep: tuple[dict[int, Any], ...]
    run: tuple[dict[int, Any], ...]

    def order(self) -> list[int]:
        """Return the order of the solution that the solver left in the variables."""
        return [
            i
            for stage, run in zip(self.stages, self.run, strict=True)
            for i in stage.ops
            if run[i].value() > 0.5
        ]

    def keep_fractions(self) -> tuple[dict[int, float], ...]:
        """Return ``S`` of the solution, fractional if the program was relaxed."""
        return tuple({v: s.value() for v, s in keep.items()} for keep in self.keep)


def build(graph: Graph, budget_bytes: int, *, passes: int = 1, relax: bool = False) -> Checkmate:
    """Build the program for a budget above the resident bytes; ``relax`` makes it linear.

    Args:
        graph: the step.
        budget_bytes: what a schedule may hold.
        passes: times an op may run again between two first runs.
        relax: let integer columns be fractional.
    """
    problem = pulp.LpProblem("checkmate", pulp.LpMinimize)
    stages = stages_of(graph, passes)
    kind = pulp.LpContinuous if relax else pulp.LpInteger
    made = [v for v in range(len(graph.values)) if v not in graph.resident]
    maker = [len(graph.ops) if p is None else p for p in graph.producer]
    keep = [
        {v: problem.add_variable(f"S_{p}_{v}", 0, 1, kind) for v in made if maker[v] < s.window}
        for p, s in enumerate(stages)
    ]
    # after the last stage the outputs are held, and nothing else needs to be
    keep.append({v: problem.add_variable(f"S_end_{v}", v in graph.outputs, 1, kind) for v in made})
    run = [
        {i: problem.add_variable(f"R_{p}_{i}", i == s.new, 1, kind) for i in s.ops}
        for p, s in enumerate(stages)
    ]
    unit = 1.0 / max(1, budget_bytes - graph.resident_bytes)
    for p in range(len(stages)):
        _StageRows(problem, graph, keep[p], run[p], keep[p + 1], unit, f"{p}").add(kind)
    cost = [(run[p][i], graph.ops[i].seconds) for p, s in enumerate(stages) for i in s.ops]
    problem.setObjective(pulp.LpAffineExpression(cost))
    return Checkmate(problem, stages, tuple(keep[:-1]), tuple(run))


@dataclass(frozen=True)
class _StageRows:
    """The rows of one stage: ``keep`` (S), ``run`` (R) and the S of the ``after`` stage."""

    problem: Any
    graph: Graph
    keep: dict[int, Any]
    run: dict[int, Any]
    after: dict[int, Any]
    unit: float
    name: str

    def add(self, kind: str) -> None:
        for i in self.run:
            for v in self.graph.ops[i].inputs:
                if v not in self.graph.resident:
                    self._at_most([(self.run[i], 1.0), *self._present(v, -1.0)], 0.0)
        freed: dict[int, list[Term]] = {k: [] for k in self.run}
        for v, after in self.after.items():
            present = self._present(v, -1.0)
            self._at_most([(after, 1.0), *present], 0.0)
            if len(present) == 2:
                self._at_most(self._present(v, 1.0), 1.0)
            for k, free in self._frees(v, after, kind):
                freed[k].append((free, -self.graph.values[v].size_bytes * self.unit))
        self._memory(freed)

    def _at_most(self, terms: Sequence[Term], bound: float) -> None:
        expression = pulp.LpAffineExpression(terms)
        self.problem.addConstraint(pulp.LpConstraint(expression, pulp.LpConstraintLE, rhs=bound))

    def _present(self, v: int, sign: float) -> list[Term]:
        """Return the terms of S[p, v] + R[p, maker(v)]; either may not exist."""
        maker = self.graph.producer[v]
        found = [self.keep.get(v), None if maker is None else self.run.get(maker)]
        return [(x, sign) for x in found if x is not None]

    def _frees(self, v: int, after: Any, kind: str) -> Iterator[tuple[int, Any]]:
        """Add F of one value, its rows "free" and "last use", and yield it by op."""
        readers = [j for j in self.graph.consumers[v] if j in self.run]
        maker = self.graph.producer[v]
        frees: dict[int, Any] = {}
        for k in ([maker] if maker in self.run else []) + readers:
            if frees and k in readers:
                self._at_most([*((f, 1.0) for f in frees.values()), (self.run[k], 1.0)], 1.0)
            frees[k] = self.problem.add_variable(f"F_{self.name}_{v}_{k}", 0, 1, kind)
            self._at_most([(frees[k], 1.0), (self.run[k], -1.0)], 0.0)
        if frees:
            self._at_most([*((f, 1.0) for f in frees.values()), (after, 1.0)], 1.0)
        yield from frees.items()

    def _memory(self, freed: dict[int, list[Term]]) -> None:
        """Follow the bytes held from op to op."""
        sizes = self.graph.values
        changes = [(s, sizes[v].size_bytes * self.unit) for v, s in self.keep.items()]
        for k in self.run:
            op = self.graph.ops[k]
            made = sum(sizes[v].size_bytes for v in op.outputs) * self.unit
            held = self.problem.add_variable(f"M_{self.name}_{k}", 0, 1)
            terms = [*changes, (self.run[k], made), (held, -1.0)]
            row = pulp.LpConstraint(pulp.LpAffineExpression(terms), pulp.LpConstraintEQ, rhs=0.0)
            self.problem.addConstraint(row)
            if op.workspace_bytes:
                workspace = op.workspace_bytes * self.unit
                self._at_most([(held, 1.0), (self.run[k], workspace)], 1.0)
            changes = [(held, 1.0), *freed[k]]
