"""The command line: answers, exit codes and errors people can act on."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import planner
from planner.cli import cli, main
from planner.plans import Plan

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.h = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x):
        for layer in self.h:
            x = torch.nn.functional.gelu(layer(x))
        return x.square().mean()

def make():
    return Net(), torch.zeros(4096, 16)

def alone():
    return Net()

def inputs():
    return torch.zeros(64, 16)
"""


@pytest.fixture
def spec(tmp_path: Path, forget_imports: None) -> str:
    (tmp_path / "net.py").write_text(MODEL)
    return f"{tmp_path}/net.py:make"


@pytest.fixture
def file(plan: Plan, tmp_path: Path) -> str:
    plan.save(tmp_path / "plan.json")
    return str(tmp_path / "plan.json")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)


def test_show_prints_the_plan(plan: Plan, file: str) -> None:
    result = run("show", file)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{plan}\n", "")


def test_show_as_json(plan: Plan, file: str) -> None:
    answers = json.loads(run("show", file, "--json").stdout)
    assert answers["peak_bytes"] == plan.peak_bytes
    assert answers["fits"] is True


def test_show_a_plan_that_does_not_fit(plan: Plan, tmp_path: Path) -> None:
    replace(plan, budget_bytes=10).save(tmp_path / "big.json")
    result = run("show", tmp_path / "big.json")
    assert result.exit_code == 1
    assert result.stdout.startswith("DOES NOT FIT")


def test_how_layers_are_parted_is_said(spec: str) -> None:
    several = ("fit", spec, "--budget", "1GB", "--world-size", "2")
    assert run(*several, "--tensor-parallel", "off").exit_code == 0
    _refused(run(*several, "--tensor-parallel", "perhaps"), "if_needed, or a number of ranks")
    _refused(run(*several, "--tensor-parallel", "2"), "Net declares no tensor parallelism")
    alone = run("fit", spec, "--budget", "1GB", "--tensor-parallel", "2")
    _refused(alone, "--tensor-parallel is for several devices")


@pytest.mark.parametrize("text", ["", "{}", '{"format": "remat-planner-plan", "version": 9}'])
def test_show_a_bad_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    _refused(run("show", tmp_path / "bad.json"), "bad.json")


def test_show_a_missing_file(tmp_path: Path) -> None:
    _refused(run("show", tmp_path / "none.json"), "none.json")


def _refused(result: Result, reason: str) -> None:
    """Expect exit code 2, one paragraph on standard error and nothing on standard output."""
    assert result.exit_code == 2
    assert result.stdout == ""
    assert reason in result.stderr
    assert "Traceback" not in result.stderr
    assert "\n\n" not in result.stderr.strip()


def test_fit_prints_exports_and_reports(spec: str, tmp_path: Path) -> None:
    plan_path, page = tmp_path / "plan.json", tmp_path / "page.html"
    result = run("fit", spec, "--budget", "1GB", "--export", plan_path, "--report", page)
    assert result.exit_code == 0
    assert result.stdout == f"{planner.load(plan_path)}\n"
    assert result.stderr == ""
    assert "<svg" in page.read_text()


def test_fit_as_json_takes_bytes_and_no_optimizer(spec: str) -> None:
    result = run("fit", spec, "--budget", 10**9, "--optimizer", "none", "--json")
    answers = json.loads(result.stdout)
    assert (answers["budget_bytes"], answers["optimizer"]) == (10**9, None)


@pytest.mark.slow
def test_the_compiled_engine(spec: str) -> None:
    said = (spec, "--budget", "1GB", "--optimizer", "none", "--time-limit", 3)
    result = run("fit", *said, "--engine", "inductor", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["engine"] == "inductor"
    result = run("compare", *said, "--engine", "inductor", "--method", "auto", "--json")
    rows = {row["method"]: row["footing"] for row in json.loads(result.stdout)["rows"]}
    assert rows["auto"] == "plan"
    assert rows["inductor"] == rows["auto in inductor"] == "inductor"
    for command in (("pareto", spec), ("max-batch", *said)):
        result = run(*command, "--engine", "inductor")
        assert result.exit_code == 2
        assert "is not for engine='inductor'" in " ".join(result.stderr.split())


def test_fit_with_other_inputs(spec: str) -> None:
    alone, inputs = spec.replace(":make", ":alone"), spec.replace(":make", ":inputs")
    answers = json.loads(run("fit", alone, "--inputs", inputs, "--budget", "1GB", "--json").stdout)
    assert "64, 16" in answers["signature"]["inputs"][0]
    _refused(run("fit", alone, "--budget", "1GB"), "pass inputs=")


def test_fit_an_impossible_budget(spec: str, tmp_path: Path) -> None:
    arguments = ("fit", spec, "--budget", "20KB", "--export", tmp_path / "plan.json")
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Does not fit: ")
    answers = json.loads(run(*arguments, "--json").stdout)
    assert answers["fits"] is False
    assert answers["least_bytes"] > answers["budget_bytes"] == 20_000
    assert answers["binding"]["phase"] in ("forward", "backward", "optimizer")
    assert not (tmp_path / "plan.json").exists()


def test_errors_are_json_too(spec: str, tmp_path: Path) -> None:
    for arguments, kind in (
        (("show", tmp_path / "none.json"), "FileNotFoundError"),
        (("fit", spec, "--budget", "much"), "BadBudget"),
        (("compare", spec, "--budget", "1GB", "--method", "magic"), "UnknownMethod"),
    ):
        result = run(*arguments, "--json")
        answer = json.loads(result.stdout)
        assert (result.exit_code, answer["error"]) == (2, kind)
        assert result.stderr.strip() == f"Error: {answer['message']}"


def test_what_the_model_prints_is_no_part_of_the_answer(spec: str, tmp_path: Path) -> None:
    loud = "def loud():\n    print('hello')\n    return make()\n"
    (tmp_path / "loud.py").write_text(MODEL + loud)
    result = run("fit", f"{tmp_path}/loud.py:loud", "--budget", "1GB", "--json")
    assert json.loads(result.stdout)["fits"] is True
    assert result.stderr == "hello\n"


def test_fit_a_plan_that_cannot_be_written(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(plan: Plan, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Plan, "save", full)
    result = run("fit", spec, "--budget", "1GB", "--export", tmp_path / "plan.json")
    _refused(result, "No space left on device")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--budget", "much"], "40GiB"),
        (["--budget", "1GB", "--method", "magic"], "valid methods"),
        (["--budget", "1GB", "--device", "abacus"], "abacus"),
        (["--budget", "1GB", "--optimizer", "abacus"], "abacus"),
        (["--budget", "1GB", "--costs", "guessed"], "guessed"),
        (["--budget", "1GB", "--engine", "xla"], "valid engines"),
        (["--budget", "1GB", "--time-limit", "0"], "time-limit"),
        (["--budget", "1GB", "--export", "/no/such/folder/plan.json"], "folder must exist"),
        (["--budget", "1GB", "--inputs", "nowhere.py:f"], "nowhere.py"),
        ([], "--budget"),
    ],
)
def test_fit_wrong_options(spec: str, options: list[str], reason: str) -> None:
    result = run("fit", spec, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert reason in result.stderr


def test_fit_a_model_that_is_not_there() -> None:
    _refused(run("fit", "nowhere.py:make", "--budget", "1GB"), "there is no file nowhere.py")


def test_compare(spec: str) -> None:
    arguments = ("compare", spec, "--budget", "1GB", "--method", "auto", "--method", "plain")
    result = run(*arguments)
    assert result.exit_code == 0
    assert "plain" in result.stdout
    rows = json.loads(run(*arguments, "--json").stdout)["rows"]
    assert {row["method"] for row in rows} == {"auto", "plain"}


def test_compare_when_nothing_fits(spec: str) -> None:
    result = run("compare", spec, "--budget", "20KB", "--method", "plain")
    assert result.exit_code == 1
    assert " no " in result.stdout


def test_verify_runs_the_plan(spec: str, tmp_path: Path) -> None:
    run("fit", spec, "--budget", "1500KB", "--export", tmp_path / "plan.json")
    result = run("verify", spec, tmp_path / "plan.json", "--json")
    answers = json.loads(result.stdout)
    assert (result.exit_code, answers["fits"], answers["identical"]) == (0, True, True)
    _refused(run("verify", spec, tmp_path / "none.json"), "none.json")


def test_help_names_every_command() -> None:
    text = run("--help").stdout
    assert all(f"  {name} " in text for name in ("fit", "show", "compare", "verify"))


def test_a_defect_is_not_an_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("planner.cli.commands.load", lambda path: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["planner", "show", "plan.json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_an_interrupt_is_not_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path) -> Plan:
        raise KeyboardInterrupt

    monkeypatch.setattr("planner.cli.commands.load", interrupt)
    assert run("show", "plan.json").exit_code == 130


def test_as_a_program(file: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "planner.cli", "show", file],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Fits: ")
