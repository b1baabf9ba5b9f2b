"""The import rule graphs <- solvers <- planner, read from the import statements themselves.

Within ``planner`` each folder may use those named here and the files beside the folders, which may
use all folders but the command line.
"""

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
FOLDERS: dict[str, set[str]] = {
    "cli": {"drawing", "sharding", "textbook", "trials"},
    "drawing": set(),
    "running": set(),
    "sharding": {"drawing", "running", "trials"},
    "textbook": set(),
    "trials": {"running"},
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
    return {name.partition(".")[0] for name in _modules(path)}


def _modules(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    found = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    froms = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert not any(node.level for node in froms), f"{path.name} uses a relative import"
    return found | {f"{n.module}.{a.name}" for n in froms for a in n.names}


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_imports_point_downwards(path: Path) -> None:
    forbidden = FORBIDDEN[_package(path)]
    if _package(path) == "graphs" and path.name in WITHOUT_TORCH:
        forbidden = forbidden | {"torch"}
    assert not _imports(path) & forbidden


@pytest.mark.parametrize("path", sorted((ROOT / "planner").rglob("*.py")), ids=_name)
def test_folders_use_what_they_may(path: Path) -> None:
    folder = path.parent.name
    used = {n.split(".")[1] for n in _modules(path) if n.startswith("planner.")} & FOLDERS.keys()
    assert used <= FOLDERS.get(folder, FOLDERS.keys() - {"cli"}) | {folder}


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_only_the_command_line_prints(path: Path) -> None:
    calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    prints = {ast.unparse(f) for f in calls} & {"print", "click.echo"}
    assert not prints or path.parent == ROOT / "planner" / "cli"


def test_the_rules_see_files() -> None:
    folders = {p.relative_to(ROOT).parent.as_posix() for p in SOURCES}
    assert folders >= set(PACKAGES)
    below = {name.removeprefix("planner/") for name in folders if name.startswith("planner/")}
    assert below == FOLDERS.keys()
    assert "graphs" in _imports(ROOT / "solvers" / "base.py")
