"""The wheel holds one package; it works beside a user's own ``graphs.py`` and ``solvers/``."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("graphs", "solvers", "planner")


def _run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources, so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    skip = shutil.ignore_patterns("__pycache__")
    for floor in FLOORS:
        shutil.copytree(ROOT / floor, source / floor, ignore=skip, symlinks=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = ("-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", source)
    _run(sys.executable, *command, cwd=folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel alone into an empty folder."""
    target = tmp_path_factory.mktemp("environment")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    _run(*pip, "--target", target, wheel, cwd=target)
    return target


def test_wheel_holds_every_source_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.startswith("remat_planner-")}
    sources = {
        path.relative_to(ROOT).as_posix()
        for floor in FLOORS
        for path in (ROOT / floor).rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    inside = {name if name.startswith("planner/") else f"planner/{name}" for name in sources}
    assert held == inside
    assert {"planner/py.typed", "planner/graphs/py.typed", "planner/solvers/py.typed"} <= held


def test_wheel_imports_from_an_empty_environment(installed: Path, tmp_path: Path) -> None:
    names = "planner, planner.graphs, planner.solvers"
    code = f"import {names}; print(*(m.__file__ for m in ({names})))"
    found = _run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).split()
    inside = [installed / "planner" / part for part in ("", "graphs", "solvers")]
    assert [Path(name).parent for name in found] == inside
    assert (installed / "bin" / "planner").exists()


def test_wheel_works_beside_modules_of_the_same_names(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "graphs.py").write_text("mine = 'my own graphs'\n")
    (tmp_path / "solvers").mkdir()
    (tmp_path / "solvers" / "__init__.py").write_text("mine = 'my own solvers'\n")
    (tmp_path / "train.py").write_text(
        "import graphs, solvers\n"
        "import torch\n"
        "import planner\n"
        "plan = planner.fit(\n"
        "    torch.nn.Linear(4, 1), '1MB', inputs=torch.zeros(2, 4), loss=torch.mean\n"
        ")\n"
        "print(graphs.mine, solvers.mine, plan.fits)\n"
    )
    said = _run(sys.executable, "train.py", cwd=tmp_path, PYTHONPATH=str(installed))
    assert said.strip() == "my own graphs my own solvers True"
