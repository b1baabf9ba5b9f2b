"""A small training step made by hand: layers with an attention and an mlp each, and its plans."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from planner.analysis.curve import Curve
from planner.graphs import Graph, Kind, Op, Phase, Schedule, Value, schedule_from_order, simulate
from planner.plans import Plan
from planner.solvers import Status
from tests.asked import curve_of

MB = 10**6


@dataclass(frozen=True)
class Captured:
    """What ``graphs.capture.training_step`` would return."""

    graph: Graph
    signature: dict[str, Any] = field(default_factory=dict)
    rewrite: str = "as_captured"
    eager: Graph | None = None
    eager_peak_bytes: int | None = None


@dataclass
class Builder:
    """Collects values and ops; only the tests are allowed to be this mutable."""

    values: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)

    def value(self, name: str, size_bytes: int, kind: Kind = Kind.ACTIVATION) -> int:
        self.values.append(Value(name, size_bytes, kind))
        return len(self.values) - 1

    def op(
        self, name: str, target: str, inputs: list[int], outputs: list[int], **rest: Any
    ) -> None:
        self.ops.append(Op(name, target, tuple(inputs), tuple(outputs), **rest))


def toy_graph(layers: int = 4) -> Graph:
    """Each layer holds 50 MB for backward, of which 40 MB can be made again."""
    b, backward = Builder(), {"phase": Phase.BACKWARD, "recomputable": False}
    hidden = b.value("x", 10 * MB, Kind.INPUT)
    weights = [b.value(f"h.{i}.weight", 4 * MB, Kind.PARAMETER) for i in range(layers)]
    states = [b.value(f"h.{i}.state", 8 * MB, Kind.OPTIMIZER) for i in range(layers)]
    saved = []
    for i, weight in enumerate(weights):
        attn, mlp = b.value(f"attn_{i}", 30 * MB), b.value(f"mlp_{i}", 10 * MB)
        out = b.value(f"out_{i}", 10 * MB)
        place = {"source": "model.py:12"}
        b.op(
            f"attn_{i}",
            "aten.softmax.int",
            [hidden],
            [attn],
            seconds=1e-3,
            module=f"h.{i}.attn",
            **place,
        )
        b.op(
            f"mlp_{i}",
            "aten.mm.default",
            [attn, weight],
            [mlp],
            seconds=2e-3,
            module=f"h.{i}.mlp",
            **place,
        )
        b.op(
            f"out_{i}",
            "aten.gelu.default",
            [mlp],
            [out],
            seconds=1e-3,
            module=f"h.{i}.mlp",
            **place,
        )
        saved.append((attn, mlp))
        hidden = out
    flow = b.value("loss_grad", 10 * MB)
    b.op(
        "loss_backward",
        "aten.mse_loss_backward.default",
        [hidden],
        [flow],
        seconds=1e-3,
        **backward,
    )
    gradients = []
    for i in reversed(range(layers)):
        gradient, upward = (
            b.value(f"h.{i}.grad", 4 * MB, Kind.GRADIENT),
            b.value(f"up_{i}", 10 * MB),
        )
        b.op(
            f"backward_{i}",
            "aten.mm.default",
            [flow, *saved[i], weights[i]],
            [gradient, upward],
            seconds=8e-3,
            module=f"h.{i}",
            workspace_bytes=5 * MB,
            **backward,
        )
        gradients.append(gradient)
        flow = upward
    b.op(
        "step",
        "optimizer.AdamW",
        [*gradients, *weights, *states],
        [],
        seconds=1e-3,
        workspace_bytes=16 * MB,
        phase=Phase.OPTIMIZER,
        recomputable=False,
    )
    return Graph(tuple(b.ops), tuple(b.values), name="toy")


def recompute_layers(graph: Graph, layers: int = 4, kept: int = 1) -> Schedule:
    """Run attn and mlp of all layers but the last ``kept`` again, just before their backward."""
    order = []
    for index, op in enumerate(graph.ops):
        layer = op.name.removeprefix("backward_")
        if layer.isdigit() and int(layer) < layers - kept:
            order += [3 * int(layer), 3 * int(layer) + 1]
        order.append(index)
    return schedule_from_order(graph, order)


@pytest.fixture
def graph() -> Graph:
    return toy_graph()


@pytest.fixture(scope="session")
def toy_captured() -> Captured:
    return Captured(toy_graph(), {"model": "Toy", "inputs": ["float32[8, 64]"]})


@pytest.fixture
def captured(toy_captured: Captured) -> Captured:
    return toy_captured


@pytest.fixture
def make_plan(captured: Captured) -> Callable[..., Plan]:
    """Make a plan of the toy step; keywords replace fields."""

    def make(**changes: Any) -> Plan:
        schedule = changes.pop("schedule", recompute_layers(captured.graph))
        peak_bytes = simulate(captured.graph, schedule).peak_bytes
        fields: dict[str, Any] = {
            "graph": captured.graph,
            "schedule": schedule,
            "budget_bytes": peak_bytes + MB,
            "status": Status.FEASIBLE,
            "bound_seconds": captured.graph.seconds + 4e-3,
            "method": "auto",
            "signature": captured.signature,
            "device": "cpu",
            "optimizer": "adamw",
        }
        return Plan(**fields | changes)

    return make


@pytest.fixture
def plan(make_plan: Callable[..., Plan]) -> Plan:
    return make_plan()


@pytest.fixture(scope="session")
def curve(toy_captured: Any) -> Curve:
    found = curve_of(toy_captured, 6, heuristics=True)
    return replace(found, capture_seconds=0.5, solve_seconds=0.25)


class Net(nn.Module):
    """Blocks that hold more for backward than their parameters weigh."""

    def __init__(self, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        self.h = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.h:
            x = torch.nn.functional.gelu(layer(x))
        return x.square().mean()


@pytest.fixture
def forget_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what importing files below ``tmp_path`` leaves behind."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(scope="session")
def make_net() -> Callable[[], nn.Module]:
    return Net


@pytest.fixture
def stubbed() -> Iterator[None]:
    """Compile with stubs in place of C++ kernels, from nothing compiled before."""
    from benchmarks.stubs import stubs  # slow to import: it is Inductor's

    torch._dynamo.reset()
    with stubs():
        yield
    torch._dynamo.reset()
