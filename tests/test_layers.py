"""The import rules, read from the import statements themselves: see ``tests/house.py``."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests import house

SOURCES = house.sources()
WITHOUT_TORCH = {
    "solvers": (),
    "graphs.hardware": ("graphs.hardware.detect",),
}


def test_every_room_is_in_the_order() -> None:
    assert {house.room(module) for module in SOURCES} == set(house.ORDER)


def test_no_file_is_in_a_circle() -> None:
    assert house.circles() == []


def test_no_arrow_points_up() -> None:
    assert house.arrows_up() == []


@pytest.mark.parametrize("module", SOURCES)
def test_only_the_command_line_prints(module: str) -> None:
    tree = house.tree(SOURCES[module])
    calls = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
    prints = {ast.unparse(f) for f in calls} & {"print", "click.echo"}
    assert not prints or module.startswith("planner.cli")


@pytest.mark.parametrize("module", SOURCES)
def test_torch_stays_where_it_is_needed(module: str) -> None:
    folder, spared = next(
        ((f, s) for f, s in WITHOUT_TORCH.items() if module.startswith(f)), ("", (module,))
    )
    at_the_root = module.startswith("graphs") and module.count(".") < 2
    if (folder and module not in spared) or (at_the_root and module in SOURCES):
        used = {name.partition(".")[0] for name in house.imported(SOURCES[module])}
        assert not used & {"torch", "transformers"} or SOURCES[module].name == "__init__.py"


def test_the_rules_see_files() -> None:
    assert {p.relative_to(house.ROOT).parts[0] for p in SOURCES.values()} == set(house.FLOORS)
    assert "graphs" in house.arrows()["solvers.api"]


def test_every_file_name_is_used_once() -> None:
    names = [p.name for p in SOURCES.values() if not p.name.startswith("__")]
    assert len(names) == len(set(names))


def test_folders_of_the_checkout_are_those_inside_the_package() -> None:
    import graphs.graph
    import planner.graphs.graph
    import planner.solvers.api
    import solvers.api

    assert graphs.graph is planner.graphs.graph
    assert solvers.api is planner.solvers.api
    assert graphs is planner.graphs
    assert Path(graphs.graph.__file__).samefile(house.ROOT / "graphs" / "graph.py")
