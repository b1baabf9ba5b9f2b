"""Each example runs as a reader would run it and prints what it promises.

One runs in a process of its own, the others in this one: importing torch takes longer than they do.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "first_plan.ipynb"
PRINTS = {
    "cnn.py": "losses equal: True\nweights and statistics equal: True",
    "export.py": "bytes in accelerate.yaml",
    "lora.py": "no frozen weight has a gradient: True",
    "loss_in_chunks.py": "gradients agree to 1e-5: True",
    "loss_outside.py": "inside:  loss",
    "max_batch.py": "Largest batch",
    "pareto.py": "no plan takes less than",
    "plain_loop.py": "step 4, loss",
    "saved_plan.py": "another model is refused",
    "sharded.py": "Rejected",
}


def test_every_example_is_run() -> None:
    assert sorted(PRINTS) == sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", sorted(PRINTS))
def test_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLES / name)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert PRINTS[name] in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_example_runs_by_itself(tmp_path: Path) -> None:
    name = "saved_plan.py"
    found = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},  # quicker if busy
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert PRINTS[name] in found.stdout
    assert list(tmp_path.iterdir()) == []


def test_notebook_is_stripped_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    monkeypatch.chdir(tmp_path)
    said: dict[str, Any] = {"__name__": "__notebook__"}
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("code", "markdown")
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            exec(compile("".join(cell["source"]), f"{NOTEBOOK}:{cell['id']}", "exec"), said)
    assert "gradients equal: True" in capsys.readouterr().out
