"""Two searches at once: both count in the end, neither before, and a failure stops the other."""

from __future__ import annotations

import threading
import time

import pytest

from planner.solvers import Limits
from planner.solvers.model.problem import flatten, held_bytes
from planner.solvers.search.beside import beside
from planner.solvers.search.incumbent import Search
from planner.solvers.search.time_cuts import CutRun, prove
from tests.strategies import transformer

PROBLEM = flatten(transformer(2))
PEAK = int(held_bytes(PROBLEM, range(PROBLEM.n)).max())


def test_both_count_in_the_end_and_neither_before() -> None:
    search = Search(PROBLEM, PEAK)
    search.raise_bound(1.0)
    go = threading.Event()

    def work(own: Search) -> None:
        assert (own.bound, own.order) == (1.0, None)
        own.raise_bound(2.0)
        own.offer(range(PROBLEM.n))
        own.stopped = True
        go.set()

    with beside(search, work):
        assert go.wait(30)
        assert (search.bound, search.order, search.stopped) == (1.0, None, False)
        search.raise_bound(1.5)
    assert (search.bound, search.order, search.stopped) == (2.0, list(range(PROBLEM.n)), True)


def test_the_better_of_two_plans_is_kept() -> None:
    search = Search(PROBLEM, PEAK)
    twice = [0, *range(PROBLEM.n)]
    with beside(search, lambda own: own.take(range(PROBLEM.n))):
        search.order, search.extra = twice, 5.0
    assert (search.order, search.extra) == (list(range(PROBLEM.n)), 0.0)
    with beside(search, lambda own: None):
        pass
    assert search.extra == 0.0


def test_what_the_work_raises_is_raised() -> None:
    def work(own: Search) -> None:
        raise ZeroDivisionError(own.budget)

    with pytest.raises(ZeroDivisionError), beside(Search(PROBLEM, PEAK), work):
        pass


def test_a_body_that_fails_stops_the_work_and_does_not_wait() -> None:
    search, stopped = Search(PROBLEM, PEAK, deadline=time.monotonic() + 60), threading.Event()

    def work(own: Search) -> None:
        while not own.over():
            time.sleep(0.01)
        stopped.set()

    with pytest.raises(KeyboardInterrupt), beside(search, work):
        raise KeyboardInterrupt
    assert stopped.wait(30)
    assert not search.over()


@pytest.mark.parametrize("tenths", [5, 7])
def test_proving_goes_on_where_relaxations_end(tenths: int) -> None:
    budget = PEAK * tenths // 10
    relaxed, proved = (Search(PROBLEM, budget) for _ in range(2))
    CutRun(relaxed, Limits(gap=0.0)).relaxations()
    prove(proved, Limits(gap=0.0))
    assert relaxed.bound < proved.bound <= proved.extra * (1 + 1e-9)
