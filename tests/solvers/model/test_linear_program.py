"""What a linear program is said to cost at least holds in exact arithmetic, and when cut off."""

from __future__ import annotations

import random
from fractions import Fraction

import highspy
import numpy as np
import pytest

from planner.solvers.model.linear_program import Model, bound_of, minimize


def random_model(draw: random.Random, columns: int = 8, rows: int = 6) -> Model:
    """Return a model with rows of every kind; the point of ones satisfies them."""
    model = Model()
    for _ in range(columns):
        model.column(draw.uniform(-1, 3), lower=draw.choice((-1.0, 0.0, 0.3)), upper=2.0)
    for _ in range(rows):
        index = draw.sample(range(columns), draw.randint(1, columns))
        value = [draw.uniform(-2, 2) for _ in index]
        total = sum(value)
        low = draw.choice((total - 0.1, -float("inf")))
        high = total + draw.choice((0.0, 0.5)) if low < -9 else draw.choice((total, float("inf")))
        model.row(index, value, low=low, high=high)
    return model


def exact_bound(model: Model, duals: np.ndarray) -> Fraction:
    """Return what multipliers of the right signs prove, in exact arithmetic."""
    prices, total = [Fraction(c) for c in model.cost], Fraction(0)
    for r, dual in enumerate(duals):
        y, side = Fraction(float(dual)), model.low[r] if dual > 0 else model.high[r]
        if abs(side) == float("inf") or not y:
            continue
        total += y * Fraction(side)
        for i in range(model.start[r], model.start[r + 1]):
            prices[model.index[i]] -= y * Fraction(model.value[i])
    ends = zip(prices, model.lower, model.upper, strict=True)
    return total + sum(min(c * Fraction(low), c * Fraction(high)) for c, low, high in ends)


@pytest.mark.parametrize("scale", [1.0, 1e8])
def test_any_multipliers_prove_no_more_than_is_true(scale: float) -> None:
    for seed in range(200):
        draw = random.Random(seed)
        model = random_model(draw)
        duals = scale * np.array([draw.gauss(0, 1) for _ in model.low])
        exact, found = exact_bound(model, duals), bound_of(model, duals)
        assert found <= exact, seed
        assert found == pytest.approx(float(exact), abs=1e-11 * scale), seed


def test_the_multipliers_of_the_best_point_prove_its_cost() -> None:
    for seed in range(100):
        model = random_model(random.Random(seed))
        found = minimize(model, relax=True)
        assert found.x is not None
        assert found.duals is not None
        assert found.bound <= exact_bound(model, found.duals)
        assert found.bound == pytest.approx(float(np.dot(model.cost, found.x)), abs=1e-5), seed


def test_a_program_cut_off_by_time_still_proves_something() -> None:
    draw = random.Random(0)
    model = Model()
    for _ in range(3000):
        model.column(draw.uniform(1, 2))
    for _ in range(3000):
        index = draw.sample(range(3000), 20)
        model.row(index, [draw.uniform(1, 2) for _ in index], low=draw.uniform(3, 8))
    cut_off = minimize(model, relax=True, seconds=0.3)
    assert cut_off.duals is None, "the machine is too fast for this test"
    assert 0 < cut_off.bound < sum(model.cost)


def contradiction() -> Model:
    """Return a model that no point satisfies."""
    model = Model()
    columns = [model.column(1.0) for _ in range(5)]
    for i in range(5):
        model.row([columns[i], columns[i - 1]], [1.0, 1.0], low=1.2)
    model.row(columns, [1.0] * 5, high=2.9)
    return model


def test_no_point_is_proved_by_a_ray() -> None:
    assert minimize(contradiction(), relax=True).bound == float("inf")


@pytest.mark.parametrize("ray", [[], [0.0] * 6, [1.0] * 6, [float("nan")] * 6])
def test_a_ray_that_proves_nothing_is_not_believed(
    ray: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = (highspy.HighsStatus.kOk, bool(ray), np.array(ray))
    monkeypatch.setattr(highspy.Highs, "getDualRay", lambda self: said)
    found = minimize(contradiction(), relax=True)
    assert found.x is None
    assert found.bound < 5.0
