"""The import rule graphs <- solvers <- planner, read from the import statements themselves."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("graphs", "solvers", "planner")
SOURCES = sorted(p for name in PACKAGES for p in (ROOT / name).rglob("*.py"))
FORBIDDEN = {
    "graphs": {"solvers", "planner"},
    "solvers": {"planner", "torch", "transformers"},
    "planner": set[str](),
}
WITHOUT_TORCH = {
    "cluster.py",
    "collectives.py",
    "devices.py",
    "files.py",
    "graph.py",
    "instances.py",
    "schedule.py",
}


def _package(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    found = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    froms = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert not any(node.level for node in froms), f"{path.name} uses a relative import"
    return {name.partition(".")[0] for name in found | {n.module or "" for n in froms}}


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_imports_point_downwards(path: Path) -> None:
    forbidden = FORBIDDEN[_package(path)]
    if _package(path) == "graphs" and path.name in WITHOUT_TORCH:
        forbidden = forbidden | {"torch"}
    assert not _imports(path) & forbidden


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_only_the_command_line_prints(path: Path) -> None:
    calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    prints = [f for f in calls if isinstance(f, ast.Name) and f.id == "print"]
    assert not prints or path.name == "cli.py"


def test_the_rule_sees_files() -> None:
    assert {p.relative_to(ROOT).parent.as_posix() for p in SOURCES} >= {
        *PACKAGES,
        "planner/sharding",
    }
    assert "graphs" in _imports(ROOT / "solvers" / "base.py")
