"""The rooms of the solvers stand in one order: each uses those before it only."""

from __future__ import annotations

import ast

from tests import house

ROOMS = (
    "solvers/api.py",
    "solvers/tuning.py",
    "solvers/model",
    "solvers/bounds",
    "solvers/exact",
    "solvers/baselines",
    "solvers/search",
    "solvers/minimum_budget.py",
    "solvers/given_order.py",
    "solvers/reorder.py",
    "solvers/auto.py",
    "solvers/frontier.py",
    "solvers",
)


def test_no_arrow_points_up() -> None:
    modules = [m for m in house.sources() if m.startswith("solvers")]
    assert {house.room(m) for m in modules} == set(ROOMS)
    for one, other in house.arrows().edges(modules):
        if other in modules:
            assert ROOMS.index(house.room(other)) <= ROOMS.index(house.room(one)), (one, other)


def test_no_files_import_each_other() -> None:
    assert not [circle for circle in house.circles() if circle[0].startswith("solvers")]


def test_no_class_shares_its_name() -> None:
    """Private classes, too, are told apart by their names."""
    named: dict[str, set[str]] = {}
    for module, path in house.sources().items():
        for node in house.tree(path).body:
            if isinstance(node, ast.ClassDef):
                named.setdefault(node.name, set()).add(module)
    doubled = [found for found in named.values() if len(found) > 1]
    assert not [found for found in doubled if any(m.startswith("solvers") for m in found)]
