"""MODEL as people type it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from planner import BadSpec
from planner.model_argument import load_example, resolve

MODEL = """
import torch
from neighbour import WIDTH

def pair():
    return torch.nn.Linear(WIDTH, 1), torch.zeros(2, WIDTH)

def alone():
    return torch.nn.Linear(WIDTH, 1)

def inputs():
    return (torch.ones(3, WIDTH),)

def number():
    return 3

def broken():
    raise KeyError("weights")

def leaves():
    raise SystemExit(3)
"""


@pytest.fixture
def file(tmp_path: Path, forget_imports: None) -> str:
    (tmp_path / "some_model.py").write_text(MODEL)
    (tmp_path / "neighbour.py").write_text("WIDTH = 4")
    return str(tmp_path / "some_model.py")


def test_a_pair(file: str) -> None:
    example = load_example(f"{file}:pair")
    assert isinstance(example.model, torch.nn.Linear)
    assert example.inputs.shape == (2, 4)


def test_a_model_alone(file: str) -> None:
    assert load_example(f"{file}:alone").inputs is None


def test_inputs_override(file: str) -> None:
    (inputs,) = load_example(f"{file}:pair", f"{file}:inputs").inputs
    assert inputs.shape == (3, 4)


def test_a_file_is_run_once(file: str) -> None:
    assert resolve(f"{file}:pair").__globals__ is resolve(f"{file}:alone").__globals__


def test_a_file_does_not_hide_a_module_of_the_same_name(file: str, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("def make():\n    return 1\n")
    import json

    assert resolve(f"{tmp_path}/json.py:make")() == 1
    assert sys.modules["json"] is json


def test_a_module() -> None:
    assert resolve("pathlib:Path") is Path


def test_a_module_in_the_current_folder(tmp_path: Path) -> None:
    """As the console command sees it, whose own folder is elsewhere."""
    (tmp_path / "light.py").write_text("def number():\n    return 3\n")
    code = "from planner.model_argument import resolve; print(resolve('light:number')())"
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "3\n"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("{file}", "names no function: expected 'path.py:function'"),
        ("{file}:", "names no function"),
        (":pair", "names no function"),
        ("{file}:pair()", "names no function"),
        ("nowhere.py:pair", "there is no file nowhere.py"),
        ("no_such_package.models:pair", "cannot be imported: ModuleNotFoundError"),
        (
            "{file}:pear",
            "has no function 'pear'; it has pair, alone, inputs, number, broken, leaves",
        ),
        ("{file}:WIDTH", "has no function 'WIDTH'"),
        ("{file}:number", "returned int, expected an nn.Module or"),
        ("{file}:broken", r"raised KeyError: 'weights' at .*some_model.py:18"),
        ("{file}:leaves", r"raised SystemExit: 3 at .*some_model.py:21"),
    ],
)
def test_bad_specs_say_why(file: str, spec: str, reason: str) -> None:
    with pytest.raises(BadSpec, match=reason):
        load_example(spec.format(file=file))


def test_a_file_that_fails_can_be_repaired(file: str) -> None:
    Path(file).write_text("import torch\n1 / 0\n")
    with pytest.raises(BadSpec, match=r"ZeroDivisionError: division by zero at .*some_model.py:2"):
        resolve(f"{file}:pair")
    Path(file).write_text(MODEL + "\n# repaired\n")
    assert callable(resolve(f"{file}:pair"))


def test_a_syntax_error_is_said(file: str) -> None:
    Path(file).write_text("def (:\n")
    with pytest.raises(BadSpec, match="SyntaxError"):
        resolve(f"{file}:pair")
