"""What was tuned stands in one file, says what it does, and is used."""

from __future__ import annotations

import ast

import pytest

from tests import house

SOURCES = {m: p for m, p in house.sources().items() if m.startswith("solvers")}
TUNING = house.tree(SOURCES["solvers.tuning"]).body
PROVED = {"ROUNDING", "SLACK", "TOLERANCE"}
"""Numbers that a proof rests on; they stand beside it."""


def _numbers(body: list[ast.stmt]) -> list[str]:
    """Return the names at the top of a file that stand for numbers."""
    return [
        ast.unparse(node.targets[0])
        for node in body
        if isinstance(node, ast.Assign)
        for parts in [list(ast.walk(node.value))]
        if all(isinstance(n, ast.Constant | ast.Tuple | ast.Load) for n in parts)
        and any(isinstance(n, ast.Constant) and isinstance(n.value, int | float) for n in parts)
    ]


NAMES = _numbers(TUNING)


def test_every_number_says_what_it_does() -> None:
    names, texts = TUNING[1::2], TUNING[2::2]
    assert all(isinstance(node, ast.Assign) for node in names)
    assert all(isinstance(node, ast.Expr) for node in texts)
    assert len(names) == len(texts) == len(set(NAMES))


@pytest.mark.parametrize("name", NAMES)
def test_every_number_is_used(name: str) -> None:
    used = {n for path in SOURCES.values() for n in house.imported(path)}
    assert f"planner.solvers.tuning.{name}" in used


@pytest.mark.parametrize("module", sorted(set(SOURCES) - {"solvers.tuning"}))
def test_no_other_file_has_numbers_of_its_own(module: str) -> None:
    assert set(_numbers(house.tree(SOURCES[module]).body)) <= PROVED
