"""Plan files: the same plan back, and everything else refused with its reason."""

import json
import platform
import stat
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

import planner
from planner import InvalidPlan
from planner.graphs import MEMORY_MODELS, Action, Change, Kind, Schedule
from planner.graphs.memory import ExactBytes
from planner.plans import Plan
from tests.forgery import edit


@pytest.fixture
def file(plan: Plan, tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    plan.save(path)
    return path


def test_round_trip(plan: Plan, file: Path) -> None:
    again = planner.load(file)
    assert again == plan
    assert (again.message, again.solve_seconds) == (plan.message, plan.solve_seconds)
    assert str(again) == str(plan)


def test_what_a_compiler_says_is_the_peak_of_a_file_too(plan: Plan, tmp_path: Path) -> None:
    said = replace(plan, held_bytes=plan.peak_bytes - 1)
    said.save(tmp_path / "said.json")
    again = planner.load(tmp_path / "said.json")
    assert again == said != plan
    assert again.peak_bytes == plan.peak_bytes - 1


def test_frees_are_kept_as_they_are(plan: Plan, tmp_path: Path) -> None:
    steps = list(plan.schedule.steps)
    late = next(i for i, s in enumerate(steps) if s.action is Action.FREE)
    steps.insert(late + 1, steps.pop(late))  # free one op later than possible
    held = replace(plan, schedule=Schedule(tuple(steps)))
    held.save(tmp_path / "late.json")
    assert planner.load(tmp_path / "late.json") == held != plan


def test_same_plan_same_bytes(plan: Plan, file: Path, tmp_path: Path) -> None:
    planner.load(file).save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"a": NaN}'])
def test_what_is_not_json(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(InvalidPlan, match=r"not (text|whole JSON).*planner\.fit"):
        planner.load(tmp_path / "x")


@pytest.mark.parametrize("data", [[], 3, {}, {"format": "remat-planner-graph", "version": 1}])
def test_foreign_files(tmp_path: Path, data: object) -> None:
    (tmp_path / "x").write_text(json.dumps(data))
    with pytest.raises(InvalidPlan, match="not a plan of this package"):
        planner.load(tmp_path / "x")


def test_newer_version_says_update(file: Path) -> None:
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"version": 3}))
    with pytest.raises(InvalidPlan, match="version 3, this package reads up to 2; update"):
        planner.load(file)


def test_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        planner.load(tmp_path / "none.json")


def test_truncation_anywhere_is_noticed(file: Path) -> None:
    text = file.read_text()
    for length in range(0, len(text), max(1, len(text) // 50)):
        file.write_text(text[:length])
        with pytest.raises(InvalidPlan):
            planner.load(file)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_one_changed_byte_is_noticed_or_harmless(
    plan: Plan, file: Path, data: st.DataObject
) -> None:
    plan.save(file)
    raw = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    file.write_bytes(raw)
    try:
        again = planner.load(file)
    except InvalidPlan:
        return  # noticed
    assert again == plan


def _forge(steps: dict[str, Any], change: Callable[[list[int]], Any]) -> None:
    for name in ("action", "index"):
        change(steps[name])


def _append(steps: dict[str, Any], action: str, index: int) -> None:
    steps["action"].append(steps["actions"].index(action))
    steps["index"].append(index)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: p.update(peak_bytes=p["peak_bytes"] - 1), "states a peak of"),
        (lambda p: p.update(seconds=p["seconds"] * 1.001), "states a step of"),
        (lambda p: p.update(budget_bytes="6GB"), "field 'budget_bytes'"),
        (lambda p: p.update(bound_seconds=-1.0), "field 'bound_seconds'"),
        (lambda p: p.update(status="GREAT"), "field 'status'"),
        (lambda p: p.update(extra=1), "field 'extra'"),
        (lambda p: p.pop("method"), "field 'method'"),
        (lambda p: _forge(p["steps"], lambda column: column.pop(0)), "not live"),
        (lambda p: _append(p["steps"], "compute", 10**6), "computes op 1000000"),
        (lambda p: _append(p["steps"], "free", 999_999), "frees value 999999"),
        (lambda p: _forge(p["steps"], list.clear), "never runs"),
        (lambda p: p["steps"]["index"].pop(0), "columns"),
        (lambda p: p["steps"]["actions"].append("beam"), "unknown action 'beam'"),
        (lambda p: p["steps"].update(action=[7] * len(p["steps"]["action"])), "columns"),
        (lambda p: p["features"].update({"action beam": 1}), "'action beam'.*has none; update"),
        (lambda p: p["features"].update({"engine op_by_op": 2}), "has version 1; update"),
        (lambda p: p["memory_models"].update({"exact bytes": 2}), "has version 1; update"),
        (lambda p: p.update(memory_model="best guess"), "no memory model 'best guess'"),
        (lambda p: p.pop("features"), "field 'features'"),
        (lambda p: p["graph"]["ops"].pop(0), "graph|op"),
        (lambda p: p["graph"].pop("values"), "damaged graph"),
    ],
)
def test_forged_files(file: Path, change: Callable[[dict[str, Any]], None], reason: str) -> None:
    edit(file, change)
    with pytest.raises(InvalidPlan, match=reason):
        planner.load(file)


def test_edit_without_seal(file: Path) -> None:
    file.write_text(file.read_text().replace('"method":"auto"', '"method":"milp"'))
    with pytest.raises(InvalidPlan, match="sha256"):
        planner.load(file)


def test_nothing_half_written(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        plan.save(tmp_path / "no" / "plan.json")
    plan.save(tmp_path / "plan.json")
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    assert stat.S_IMODE((tmp_path / "plan.json").stat().st_mode) == 0o644


class Checked(nn.Module):
    """Installed code, code of this file, and a check, each of which a plan names by its line."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if torch.isnan(x).any():
            raise ValueError("not a number")
        return self.inner(x).mean()


@pytest.mark.parametrize("engine", ["op_by_op", "inductor"])
def test_a_file_says_nothing_of_the_host(engine: str, tmp_path: Path) -> None:
    model = Checked() if engine == "op_by_op" else nn.Sequential(nn.Linear(4, 4), nn.GELU())
    asked: dict[str, Any] = {"inputs": torch.ones(2, 4), "engine": engine, "optimizer": None}
    plan = planner.fit(model, "1GB", loss=torch.mean, **asked)
    assert isinstance(plan, Plan)
    plan.save(tmp_path / "plan.json")
    words = (tmp_path / "plan.json").read_text()
    lines = {op.source for op in plan.graph.ops if op.source}
    assert lines
    assert not any(Path(line).is_absolute() for line in lines)
    assert engine == "inductor" or f"{Path(__file__).name}:" in words
    hosts = (sys.prefix, tempfile.gettempdir(), str(Path.home()), str(Path.cwd()), platform.node())
    assert not [name for name in hosts if f"{name}/" in words]


def test_a_file_names_what_it_uses(file: Path) -> None:
    body = json.loads(file.read_text())["plan"]
    assert body["features"] == {
        "action compute": 1,
        "action free": 1,
        "engine op_by_op": 1,
        "rewrite as_captured": 1,
    }
    assert body["memory_models"] == {"exact bytes": 1}


@dataclass(frozen=True)
class _Later(ExactBytes):
    """Exact bytes, once a constant has been corrected."""

    version: int = 2

    def held(self, changes: Sequence[Change], count: int) -> NDArray[np.int64]:
        return super().held(changes, count) + 7


def test_a_file_judged_by_an_older_model_loads_and_says_so(
    plan: Plan, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MEMORY_MODELS, "exact bytes", _Later())
    again = planner.load(file)
    assert again.peak_bytes == plan.peak_bytes + 7 * len(Kind)
    said = " ".join(str(again).split())
    assert f"found a peak of {plan.peak_bytes:,} bytes; by version 2" in said


def test_a_plan_of_an_engine_that_is_not_here_can_be_looked_at(file: Path) -> None:
    edit(file, lambda p: p.update(engine="steam"))
    edit(file, lambda p: p["features"].update({"engine steam": 3}))
    plan = planner.load(file)
    assert isinstance(plan, Plan)
    with pytest.raises(planner.UnknownEngine, match="valid engines: inductor, op_by_op"):
        replace(plan, signature=dict(plan.signature) | {"loss": False}).apply(torch.nn.Linear(1, 1))
