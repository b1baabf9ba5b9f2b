"""Each seam takes one more row, made here alone: nothing else has to know of it.

A strategy's is in ``tests/planner/sharding/strategies``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

import planner
from planner.graphs import (
    ACTIONS,
    MEMORY_MODELS,
    Action,
    Change,
    Clock,
    Copy,
    Graph,
    Schedule,
    Step,
    Subject,
    register_action,
)
from planner.graphs.capture.joint_graph import Joint
from planner.graphs.capture.rewrites import REWRITES, Rewrite, register_rewrite
from planner.graphs.costs import COSTS, Priced, register_cost_model
from planner.graphs.hardware.cluster import cluster
from planner.graphs.hardware.devices import Device
from planner.graphs.memory import ExactBytes
from planner.output.exporters import EXPORTERS, Exporter, register_exporter
from planner.output.exporters.exporter import AnyPlan
from planner.plan.features import FEATURES
from planner.plan.step_plan import StepPlan
from planner.running.engines import ENGINES, Engine, engine_of, register_engine
from planner.running.engines.actions import CARRIED_OUT
from planner.running.engines.program_writer import ProgramWriter
from planner.solvers import SOLVERS, Answer, Limits, Status, register

INPUTS = torch.zeros(64, 16)


class Net(nn.Module):
    """A value that is made early and read late, in the forward pass alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        early = self.first(x)
        return (self.second(early.sin()).cos() + early).square().mean()


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net()


def test_a_device() -> None:
    card = Device("abacus", {"float32": 1e9}, 2**33, 1e9, source="the market")
    plan = planner.fit(net(), "2GB", inputs=INPUTS, device=card)
    assert "abacus" in str(plan)
    with pytest.raises(ValueError, match="link"):
        cluster(card, 16)


def test_a_cost_model() -> None:
    @register_cost_model("one each")
    def one_each(priced: Priced) -> list[float]:
        return [1.0] * len(priced.calls)

    try:
        plan = planner.fit(net(), "1GB", inputs=INPUTS, costs="one each", optimizer=None)
    finally:
        del COSTS["one each"]
    assert plan.seconds == sum(op.seconds for op in plan.graph.ops) >= 10
    assert "one each estimates" in str(plan)


@pytest.fixture
def engine() -> Iterator[Engine]:
    plain = engine_of("op_by_op")
    made = Engine("steam", plain.captured, plain.program)
    yield register_engine(made)
    del ENGINES["steam"], FEATURES["engine steam"]


def test_an_engine(engine: Engine, tmp_path: Path) -> None:
    plan = planner.fit(net(), "1GB", inputs=INPUTS, engine=engine.name)
    plan.save(tmp_path / "plan.json")
    again = planner.load(tmp_path / "plan.json")
    assert isinstance(again, planner.Plan)
    assert again.engine == "steam"
    assert torch.equal(again.apply(net())(INPUTS), net()(INPUTS))
    with pytest.raises(planner.BadRequest, match="'steam' is for one device so far"):
        planner.fit(net(), "1GB", inputs=INPUTS, engine="steam", world_size=2)
    with pytest.raises(planner.UnknownEngine, match="valid engines: inductor, op_by_op, steam"):
        planner.fit(net(), "1GB", inputs=INPUTS, engine="sail")


def test_an_exporter(tmp_path: Path) -> None:
    def write(plan: AnyPlan, path: Path, plan_path: Path | None) -> tuple[str, ...]:
        path.write_text(repr(plan))
        return ("says little",)

    register_exporter(Exporter("line", (StepPlan,), write))
    try:
        plan = planner.fit(net(), "1GB", inputs=INPUTS)
        assert plan.export(tmp_path / "out", "line") == ("says little",)
    finally:
        del EXPORTERS["line"]
    assert (tmp_path / "out").read_text() == repr(plan)


def test_a_solver() -> None:
    @register("twice")
    def twice(graph: Graph, budget_bytes: int, limits: Limits) -> Answer:
        order = [i for i, op in enumerate(graph.ops) for _ in range(1 + op.recomputable)]
        return _answer(graph, order)

    try:
        plan = planner.fit(net(), "1GB", inputs=INPUTS, method="twice", optimizer=None)
        assert planner.compare(net(), "1GB", inputs=INPUTS, methods=["twice"]).rows[0].fits
    finally:
        del SOLVERS["twice"]
    assert plan.recomputed
    assert torch.equal(plan.apply(net())(INPUTS), net()(INPUTS))


def _answer(graph: Graph, order: list[int]) -> Answer:
    return Answer.of_order(graph, Status.FEASIBLE, order)


@dataclass(frozen=True)
class _Pages(ExactBytes):
    """A device that hands memory out in pages."""

    name: str = "pages"

    def held(self, changes: Sequence[Change], count: int) -> NDArray[np.int64]:
        paged = [
            (s, b, -(-abs(n) // 4096) * 4096 * (1 if n > 0 else -1), k) for s, b, n, k in changes
        ]
        return super().held(paged, count)


def test_a_memory_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(MEMORY_MODELS, "pages", _Pages())
    exact = planner.fit(net(), "1GB", inputs=INPUTS)
    plan = replace(exact, memory_model="pages")
    assert plan.peak_bytes > exact.peak_bytes
    assert plan.peak_bytes % 4096 == 0
    plan.save(tmp_path / "plan.json")
    assert planner.load(tmp_path / "plan.json") == plan


def test_a_rewrite(tmp_path: Path) -> None:
    def without_dead_code(joint: Joint) -> Joint:
        joint.graph.eliminate_dead_code()
        return joint

    register_rewrite(Rewrite("tidy", without_dead_code))
    try:
        plan = planner.fit(net(), "1GB", inputs=INPUTS, rewrites=["tidy", "as_captured"])
        plan.save(tmp_path / "plan.json")
        again = planner.load(tmp_path / "plan.json")
        assert isinstance(again, planner.Plan)
        assert again.rewrite == "tidy"
        assert torch.equal(again.apply(net())(INPUTS), net()(INPUTS))
    finally:
        del REWRITES["tidy"]


@pytest.fixture
def transfers() -> Iterator[tuple[Action, Action]]:
    """A fifth and a sixth action, and how a program carries them out."""
    away: dict[int, dict[Any, fx.Node]] = {}

    def post(writer: ProgramWriter, step: Step, graph: Graph) -> None:
        lives_in = writer.lowering.value_of
        there = {
            node: writer.graph.call_function(torch.clone, (written,))
            for node, written in writer.env.items()
            if isinstance(node, fx.Node) and step.index in lives_in.get(node, ())
        }
        away[step.index] = there
        writer.forget((step.index,))

    def receive(writer: ProgramWriter, step: Step, graph: Graph) -> None:
        writer.env |= {
            node: writer.graph.call_function(torch.clone, (copy,))
            for node, copy in away[step.index].items()
        }

    out = register_action(Action("post", Subject.VALUE, Copy.DROPPED, Copy.TAKEN, Clock.TO_HOST))
    back = register_action(
        Action("receive", Subject.VALUE, Copy.TAKEN, Copy.DROPPED, Clock.FROM_HOST)
    )
    rows: dict[Action, Callable[..., None]] = {out: post, back: receive}
    CARRIED_OUT.update(rows)
    yield out, back
    for action in rows:
        del CARRIED_OUT[action], ACTIONS[action.name]


def test_an_action(transfers: tuple[Action, Action], tmp_path: Path) -> None:
    """Through simulate, a file, the picture, the text and the program."""
    out, back = transfers
    plan = planner.fit(net(), "1GB", inputs=INPUTS)
    moved = replace(plan, schedule=_with_transfers(plan, out, back))
    assert moved.trace.host_peak_bytes == 64 * 16 * 4
    assert moved.trace.busy_seconds.keys() == {Clock.TO_HOST, Clock.FROM_HOST}
    assert moved.seconds > plan.seconds  # too small to hide the way there and back
    moved.save(tmp_path / "plan.json")
    again = planner.load(tmp_path / "plan.json")
    assert again == moved
    assert isinstance(again, planner.Plan)
    assert "Fits" in str(again)
    assert "<svg" in planner.render_timeline_svg(again)
    plain, planned = net(), again.apply(net())
    for model in (plain, planned):
        model(INPUTS).backward()
    pairs = zip(plain.parameters(), planned.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)  # type: ignore[arg-type]


def test_an_action_that_an_engine_does_not_know(transfers: tuple[Action, Action]) -> None:
    plan = planner.fit(net(), "1GB", inputs=INPUTS)
    moved = replace(plan, schedule=_with_transfers(plan, *transfers))
    row = CARRIED_OUT.pop(transfers[0])
    try:
        with pytest.raises(planner.InvalidPlan, match="'post', which this engine cannot carry"):
            moved.apply(net())
    finally:
        CARRIED_OUT[transfers[0]] = row


def _with_transfers(plan: planner.Plan, out: Action, back: Action) -> Schedule:
    """Send what the first layer made away while the second one runs."""
    graph, steps = plan.graph, list(plan.schedule.steps)
    early = graph.ops[0].outputs[0]
    reads = [i for i, s in enumerate(steps) if _reads(graph, s, early)]
    return Schedule(
        (
            *steps[: reads[0] + 1],
            Step(out, early),
            *steps[reads[0] + 1 : reads[1]],
            Step(back, early),
            *steps[reads[1] :],
        )
    )


def _reads(graph: Graph, step: Step, value: int) -> bool:
    return step.action is Action.COMPUTE and value in graph.ops[step.index].inputs
