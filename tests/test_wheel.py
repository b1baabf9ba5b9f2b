"""The wheel holds the packages: built offline, unpacked alone, imported from there."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("graphs", "solvers", "planner")


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
    for package in PACKAGES:
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, source / package, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = ("-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", source)
    _run(sys.executable, *command, cwd=folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


def test_wheel_holds_every_source_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.startswith("remat_planner-")}
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    assert held == sources
    assert {f"{package}/py.typed" for package in PACKAGES} <= held


def test_wheel_imports_from_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "environment"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    _run(*pip, "--target", target, wheel, cwd=tmp_path)
    code = f"import {', '.join(PACKAGES)}; print(*(m.__file__ for m in ({', '.join(PACKAGES)})))"
    found = _run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(target)).split()
    assert [Path(name).parent for name in found] == [target / package for package in PACKAGES]
    assert (target / "bin" / "planner").exists()
