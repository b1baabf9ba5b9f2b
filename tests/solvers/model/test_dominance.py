"""Values that need not be held: many, and the master's optimum is the same without them."""

from __future__ import annotations

import random

import pytest

from planner.graphs import Graph
from planner.solvers import floor_bytes
from planner.solvers.model import master_program
from planner.solvers.model.dominance import dominated
from planner.solvers.model.master import solve_master
from planner.solvers.model.problem import flatten, held_bytes
from planner.solvers.model.windows import windows
from tests.strategies import random_graph, transformer, unet

NOTHING: frozenset[int] = frozenset()


def _optimum(graph: Graph, cuts: list[int], fraction: float) -> float:
    problem, low = flatten(graph), floor_bytes(graph)
    high = int(held_bytes(problem, range(problem.n)).max())
    return solve_master(problem, low + int(fraction * (high - low)), cuts).bound


@pytest.mark.parametrize("first_seed", range(0, 200, 100))
def test_the_optimum_stays(first_seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = 0
    for seed in range(first_seed, first_seed + 100):
        graph, rng = random_graph(seed, max_ops=14), random.Random(seed)
        n = len(graph.ops)
        cuts = sorted(rng.sample(range(n), rng.randint(1, min(n, 4))))
        problem = flatten(graph)
        fixed += sum(map(len, dominated(problem, windows(problem, cuts, NOTHING))))
        fewer = _optimum(graph, cuts, 0.3)
        with monkeypatch.context() as patch:
            patch.setattr(master_program, "dominated", lambda p, frames, *_: [{} for _ in frames])
            assert _optimum(graph, cuts, 0.3) == pytest.approx(fewer, rel=1e-5, abs=1e-8), seed
    assert fixed > 20


@pytest.mark.parametrize("graph", [transformer(4), unet(3)], ids=lambda g: g.name)
def test_real_shapes_have_some(graph: Graph) -> None:
    problem = flatten(graph)
    frames = windows(problem, [problem.n * 3 // 4], NOTHING)
    assert 0 < len(dominated(problem, frames)[0]) < len(frames[0].relevant)
