"""The parts of the scale benchmark: its hand-made stack, its rows, its growth exponents."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.scale import growth, measure, stack
from planner.graphs import plain_schedule, simulate


def test_a_stack_grows_by_the_layer_and_holds_all_of_them() -> None:
    small, large = stack(2, width=10), stack(4, width=10)
    assert (len(small.ops), len(large.ops)) == (36, 72)
    peaks = [simulate(g, plain_schedule(g)).peak_bytes - g.resident_bytes for g in (small, large)]
    assert peaks[1] > 1.8 * peaks[0]


def test_rows_have_cost_above_bound_and_peak_within_budget() -> None:
    rows = list(measure("stack-2", stack(2), 0.5, seconds=10.0))
    assert [row.ops for row in rows] == [36] * 7
    fitting = [row for row in rows if row.peak_fraction == row.peak_fraction]
    assert fitting
    for row in fitting:
        assert 0 <= row.bound_percent <= row.cost_percent + 1e-3
        assert row.peak_fraction <= row.budget_fraction


def test_growth_of_a_square_law_is_two() -> None:
    (row,) = list(measure("gpt2-1", stack(1), 0.0, seconds=10.0))[:1]
    rows = [replace(row, ops=n, solve_seconds=float(n * n)) for n in (10, 20, 40)]
    assert [g.exponent for g in growth(rows)] == pytest.approx([2.0, 2.0])
