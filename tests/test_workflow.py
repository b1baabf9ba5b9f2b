"""The workflow can be read, and what it and the Makefile promise is there. Nothing is run."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / ".github" / "workflows" / "test.yml"


def workflow() -> dict[Any, Any]:
    found = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def dry_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--dry-run", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_workflow_runs_targets_that_exist() -> None:
    found = workflow()
    assert {"push", "pull_request"} <= set(found[True])  # YAML reads the key "on" so
    (job,) = found["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands
    assert all("uses" in step or "run" in step for step in job["steps"])
    for command in commands:
        made = re.fullmatch(r"make (\w+) PYTHON=python\$\{\{ matrix\.python \}\}", command)
        assert made is not None, command
        ran = dry_run(made[1])
        assert ran.returncode == 0, ran.stderr


def test_the_workflow_covers_every_python_admitted() -> None:
    (job,) = workflow()["jobs"].values()
    versions = job["strategy"]["matrix"]["python"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert versions == ["3.11", "3.12", "3.13"]
    assert project["requires-python"] == f">={versions[0]}"


def test_another_torch_has_an_environment_of_its_own() -> None:
    made = dry_run("test-torch", "TORCH=2.14.1")
    assert made.returncode == 0, made.stderr
    assert "venv .venv-torch-2.14.1" in made.stdout
    assert "torch==2.14.1" in made.stdout
    assert ".venv-torch-2.14.1/bin/python -m pytest" in made.stdout
    assert ".venv-torch-*/" in (ROOT / ".gitignore").read_text(encoding="utf-8")
