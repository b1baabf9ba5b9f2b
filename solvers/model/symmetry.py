"""Repeated blocks solved once: ops that look alike share the columns of a linear program.

Knows how to tell which ops look alike, from what they cost and what they are connected to, and how
to aggregate a linear program over classes of columns. The classes need no proof: the aggregate of
any partition bounds the program from below.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from planner.solvers.model.linear_program import Model
from planner.solvers.model.problem import Problem
from planner.solvers.tuning import LIKENESS_ROUNDS

Colors = NDArray[np.uint64]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def alike(problem: Problem, tags: Sequence[Hashable]) -> list[int]:
    """Return a number for each op, equal for ops with equal tags, costs and surroundings.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.solvers.model.problem import flatten
    >>> ops = tuple(Op(f"{i}", "f", (i,), (i + 1,), 1.0) for i in range(60))
    >>> found = alike(flatten(Graph(ops, tuple(Value(f"{i}", 1) for i in range(61)))), [0] * 60)
    >>> len(set(found)), len(set(found[12:48]))
    (25, 1)
    """
    p = problem
    edges = [(p.maker[v], o) for o in range(p.n) for v in p.inputs[o]]
    ends = np.array(edges, dtype=np.int64).reshape(-1, 2)
    color = _hashes(
        (tags[o], p.seconds[o], p.recomputable[o], tuple(p.sizes[v] for v in p.outputs[o]))
        for o in range(p.n)
    )
    for _ in range(LIKENESS_ROUNDS):
        read, made = np.zeros_like(color), np.zeros_like(color)
        mixed = _mix(color)
        np.add.at(read, ends[:, 1], mixed[ends[:, 0]])
        np.add.at(made, ends[:, 0], mixed[ends[:, 1]])
        color = _mix(color + _mix(read) * np.uint64(3) + _mix(made) * np.uint64(5))
    numbers: list[int] = np.unique(color, return_inverse=True)[1].tolist()
    return numbers


def ranks(colors: Sequence[int]) -> list[float]:
    """Return for each op how far up it stands among those of its color, between 0 and 1.

    >>> ranks([7, 7, 3, 7, 7])
    [0.125, 0.375, 0.5, 0.625, 0.875]
    """
    total, seen = Counter(colors), Counter[int]()
    found = []
    for color in colors:
        found.append((seen[color] + 0.5) / total[color])
        seen[color] += 1
    return found


def _hashes(items: Iterable[Hashable]) -> Colors:
    """Number the items, equal ones alike, in the order of their appearance."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(item, len(seen)) for item in items], dtype=np.uint64)


def _mix(x: Colors) -> Colors:
    """Spread 64-bit numbers over all 64-bit numbers (the finalizer of splitmix64)."""
    x = (x + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(31)
    x *= np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(29))


def aggregate(model: Model, classes: Ints) -> Model:
    """Return the program over the mean of each class of columns: a relaxation of the model.

    Rows that read alike once columns stand for their class are added up; their sum holds wherever
    they do. In the sum each column of a class is given the class's greatest coefficient if the row
    bounds from below, its least if from above; columns are not negative, so that the row still
    holds. Now it speaks of the sum of the class, which is its mean times its size. Costs and lower
    bounds are the least of the class, upper bounds the greatest. If alike columns have alike rows,
    as in a stack of equal layers, nothing is lost but at the ends of the stack.

    >>> m = Model()
    >>> x, y, z = m.column(1.0), m.column(1.0), m.column(5.0)
    >>> m.row([x, z], [1.0, 1.0], low=1.0)
    >>> m.row([y, z], [1.0, 1.0], low=1.0)
    >>> small = aggregate(m, np.array([0, 0, 1]))
    >>> small.cost, small.index, small.value, small.low
    ([2.0, 5.0], [0, 1], [1.0, 1.0], [1.0])
    """
    size = np.bincount(classes).astype(np.float64)
    cost, lower, upper = (np.array(x) for x in (model.cost, model.lower, model.upper))
    small = Model(
        cost=(_extreme(cost, classes, len(size), np.minimum) * size).tolist(),
        lower=_extreme(lower, classes, len(size), np.minimum).tolist(),
        upper=_extreme(upper, classes, len(size), np.maximum).tolist(),
        integer=[False] * len(size),
    )
    _add_sums(small, model, classes, size)
    return small


def _extreme(x: Floats, classes: Ints, count: int, which: np.ufunc) -> Floats:
    found = np.full(count, np.inf if which is np.minimum else -np.inf)
    which.at(found, classes, x)
    return found


def _add_sums(small: Model, model: Model, classes: Ints, size: Floats) -> None:
    """Add the mean of each set of rows alike."""
    kinds = _rows_alike(model, classes)
    rows = np.repeat(np.arange(len(kinds)), np.diff(np.array(model.start)))
    index, value = np.array(model.index), np.array(model.value)
    cells, cell = np.unique(kinds[rows] * len(classes) + index, return_inverse=True)
    sums: Floats = np.bincount(cell, weights=value).astype(np.float64)
    kind, column = cells // len(classes), cells % len(classes)
    blocks, block = np.unique(kind * len(size) + classes[column], return_inverse=True)
    kind, group = blocks // len(size), blocks % len(size)
    count = np.bincount(kinds).astype(np.float64)
    low, high = (np.bincount(kinds, np.array(x)) / count for x in (model.low, model.high))
    most, least = (_extreme(sums, block, len(blocks), f) for f in (np.maximum, np.minimum))
    partly = np.bincount(block) < size[group]
    most[partly], least[partly] = np.maximum(most[partly], 0), np.minimum(least[partly], 0)
    coefficient = np.where(np.isinf(high)[kind], most, least) * size[group] / count[kind]
    small.index, small.value = group.tolist(), coefficient.tolist()
    small.start = np.searchsorted(kind, np.arange(len(count) + 1)).tolist()
    small.low, small.high = low.tolist(), high.tolist()


def _rows_alike(model: Model, classes: Ints) -> Ints:
    """Return a number for each row, equal for rows to be added up.

    These are the rows of the same bounds over the same classes; but of rows with a negative entry
    each column's first, second and so on go with those of its class, whatever else they read: were
    they apart, the column would be in one sum and not in another, and lose its coefficient.
    """
    low, high = np.array(model.low), np.array(model.high)
    assert bool((np.isinf(low) ^ np.isinf(high)).all()), "a row bounds from one side"
    value, rows = np.array(model.value), np.repeat(np.arange(len(low)), np.diff(model.start))
    column = classes[model.index].astype(np.uint64)
    key = np.zeros(len(low), dtype=np.uint64)
    np.add.at(key, rows, _mix(_mix(column) + value.view(np.uint64)))
    negative = np.flatnonzero(value < 0)
    chained, first = np.unique(rows[negative], return_index=True)
    debtor = np.array(model.index)[negative[first]]
    key[chained] = _mix(classes[debtor].astype(np.uint64)) + _occurrence(debtor).astype(np.uint64)
    key = _mix(key + _mix(np.where(np.isinf(high), low, high).view(np.uint64)))
    key = key >> np.uint64(1) | np.isinf(high).astype(np.uint64) << np.uint64(63)
    return np.unique(key, return_inverse=True)[1].astype(np.int64)


def _occurrence(items: Ints) -> Ints:
    """Return for each item how many before it are equal.

    >>> _occurrence(np.array([5, 2, 5, 5])).tolist()
    [0, 0, 1, 2]
    """
    order = np.argsort(items, kind="stable")
    ordered = items[order]
    start = np.searchsorted(ordered, ordered)
    found = np.empty(len(items), dtype=np.int64)
    found[order] = np.arange(len(items)) - start
    return found
