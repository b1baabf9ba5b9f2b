"""Evicting looks at the clock by what it runs, not by how far in the order it is."""

from __future__ import annotations

from itertools import count

import pytest

from planner.graphs import Graph, Op, Value
from planner.solvers.model.problem import flatten
from planner.solvers.search import evict


def test_time_is_looked_at_while_much_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = [
        Op(f"{i}", "f", (i - 1,) if i else (), (i,), 1.0, workspace_bytes=int(i == 80))
        for i in range(100)
    ]
    last = Op("last", "f", (50, 99), (100,), 1.0)
    problem = flatten(Graph((*chain, last), tuple(Value("", 1) for _ in range(101))))
    found = evict.fit(problem, range(101), 3)
    assert found is not None
    assert len(found) == 101 + 51  # what leads to one value of the last op's runs again, at once
    ticks = count()
    monkeypatch.setattr(evict.time, "monotonic", lambda: next(ticks))
    assert evict.fit(problem, range(101), 3, deadline=0.5) is None
    assert next(ticks) == 2
