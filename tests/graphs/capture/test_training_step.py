"""What capture makes of a model, and how it says what it cannot take."""

from __future__ import annotations

import inspect
import resource
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planner.graphs import Graph, Kind, Phase, plain_schedule, simulate
from planner.graphs.capture.source_line import short_line
from planner.graphs.capture.training_step import capture
from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.fake_tensors import FakeTensorMode
from tests.scenes import Apply, mlp

X = torch.zeros(4, 16)


def graph_of(function: Callable[..., Any], *inputs: Any, **options: Any) -> Graph:
    """Capture a function of an ``mlp`` (called ``m.a``) and the inputs."""
    call = inputs or (X,)
    return capture(Apply(function, a=mlp()), call, **{"optimizer": None} | options).graph


def line_of(function: Callable[..., Any], words: str) -> str:
    """Return ``file:line`` of the line of a function that holds these words."""
    lines, start = inspect.getsourcelines(function)
    offset = next(i for i, line in enumerate(lines) if words in line)
    return rf"{__file__}:{start + offset}\b"


def sizes(graph: Graph, kind: Kind) -> dict[str, int]:
    return {v.name: v.size_bytes for v in graph.values if v.kind is kind}


# What a graph says


def test_every_op_knows_its_module_and_line() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        return h.sigmoid().mean()

    graph = graph_of(run)
    sigmoid = next(op for op in graph.ops if "aten.sigmoid.default" in op.target)
    assert sigmoid.source == short_line(line_of(run, "sigmoid").removesuffix(r"\b"))
    modules = {(op.module, op.phase) for op in graph.ops}
    for layer in ("a.0", "a.2"):
        assert {(layer, Phase.FORWARD), (layer, Phase.BACKWARD)} <= modules
    backward = [op for op in graph.ops if op.phase is Phase.BACKWARD and op.module == "a.0"]
    assert all(op.source for op in backward)


def test_values_are_storages() -> None:
    graph = graph_of(lambda m, x: m.a(x.view(2, 2, 16).transpose(0, 1)[1:]).mean())
    assert sizes(graph, Kind.INPUT) == {"input[0]": 4 * 16 * 4}
    assert not any("transpose" in op.target or "view" in op.target for op in graph.ops)


def test_tied_parameters_are_one_value() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    found = sizes(capture(model, X, optimizer=None).graph, Kind.PARAMETER)
    assert found == {"0.weight": 1024, "0.bias": 64, "1.bias": 64}


def test_frozen_parameters_have_no_gradient_and_no_optimizer_state() -> None:
    model = nn.Sequential(nn.Linear(16, 16).requires_grad_(False), nn.Linear(16, 2))
    graph = capture(model, X, optimizer="adamw").graph
    trained = (16 * 2 + 2) * 4
    state = sum(sizes(graph, Kind.OPTIMIZER).values())
    assert 2 * trained <= state <= 2 * trained + 64
    assert graph.resident_bytes >= (16 * 16 + 16) * 4 + trained + state


def test_accumulated_gradients_are_resident() -> None:
    plain, more = (capture(mlp(), X, optimizer=None, accumulate=a).graph for a in (False, True))
    held = sum(p.numel() * 4 for p in mlp().parameters())
    assert more.resident_bytes == plain.resident_bytes + held


def test_each_way_to_pass_inputs_is_the_same_step() -> None:
    model = mlp()
    ways: list[Any] = [X, (X,), [X], {"input": X}]
    graphs = [capture(model, way, optimizer=None).graph for way in ways]
    assert all(g == graphs[0] for g in graphs)


def test_nothing_of_a_model_is_changed() -> None:
    model = nn.Sequential(mlp(), nn.BatchNorm1d(16), nn.Dropout(0.5))
    before = {k: (id(v), v.clone()) for k, v in model.state_dict(keep_vars=True).items()}
    state = torch.get_rng_state()
    capture(model, torch.randn(4, 16, generator=torch.Generator()))
    assert torch.equal(state, torch.get_rng_state())
    after = model.state_dict(keep_vars=True)
    assert all(id(after[k]) == i and torch.equal(after[k], v) for k, (i, v) in before.items())
    assert all(p.grad is None for p in model.parameters())


# Models without memory


@pytest.mark.slow
def test_seventy_billion_parameters_are_captured_on_meta() -> None:
    with torch.device("meta"):
        model = nn.Sequential(
            *(nn.Sequential(nn.Linear(16384, 16384), nn.GELU()) for _ in range(261))
        )
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters > 70e9
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    graph = capture(model, torch.zeros(2, 16384, device="meta"), optimizer="adamw").graph
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1e6  # kilobytes
    assert time.perf_counter() - start < 60
    peak = simulate(graph, plain_schedule(graph)).peak_bytes
    assert peak >= 16 * parameters  # weights, gradients and two moments in single precision


def test_a_model_made_of_fake_tensors_is_captured() -> None:
    with FakeTensorMode():
        model, x = mlp(), torch.zeros(4, 16)
    torch.manual_seed(0)
    real = mlp()
    ops = [op.target for op in capture(real, X).graph.ops]
    assert [op.target for op in capture(model, x).graph.ops] == ops


def test_a_meta_model_takes_real_inputs() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Embedding(11, 16), mlp())
    graph = capture(model, torch.zeros(4, 6, dtype=torch.long), optimizer=None).graph
    assert sizes(graph, Kind.INPUT) == {"input[0]": 4 * 6 * 8}


# What cannot be captured says where


def test_a_branch_on_float_data_names_its_line() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        if h.mean() > 0:
            h = -h
        return h.mean()

    with pytest.raises(CaptureError, match=line_of(run, "if h.mean")):
        graph_of(run)


def test_a_shape_that_depends_on_data_names_its_line() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        chosen = (x > 0).nonzero()
        return m.a(x)[chosen[:, 0]].mean()

    with pytest.raises(CaptureError, match=line_of(run, "nonzero")):
        graph_of(run)


def test_integers_that_come_from_floats_cannot_be_known() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        best = m.a(x).argmax()
        return m.a(x)[: int(best)].mean()

    with pytest.raises(CaptureError, match=line_of(run, "int(best)")):
        graph_of(run)


def test_an_error_of_the_model_names_its_line() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.a(x) @ torch.zeros(3, 3)

    with pytest.raises(CaptureError, match=line_of(run, "zeros(3, 3)")):
        graph_of(run)


def test_numpy_in_the_middle_names_its_line() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        data = m.a(x).detach().numpy()
        return m.a(x).mean() * float(data.mean())

    with pytest.raises(CaptureError, match=line_of(run, "numpy()")):
        graph_of(run)


def test_a_tensor_that_nobody_can_watch_is_refused() -> None:
    batches = [torch.ones(4, 16) for _ in range(5000)]  # too many to look at each

    def run(m: Any, x: Tensor) -> Tensor:
        return (m.a(x) * batches[7]).mean()

    with pytest.raises(CaptureError, match=line_of(run, "batches")):
        graph_of(run)


def test_a_parameter_by_the_back_door_is_refused() -> None:
    model = Apply(lambda m, x: (m.a(x) * m.others[0]).mean(), a=mlp())
    model.others = [model.a[0].bias[:16]]
    with pytest.raises(CaptureError):
        capture(model, X)


def test_a_model_without_anything_to_train_is_refused() -> None:
    with pytest.raises(CaptureError, match="no output requires grad"):
        capture(mlp().requires_grad_(False), X)
    with pytest.raises(CaptureError, match="no output requires grad"):
        graph_of(lambda m, x: m.a(x).argmax())


def test_outputs_that_are_not_tensors_are_refused_by_name() -> None:
    def run(m: Any, x: Tensor) -> Any:
        return {"loss": m.a(x).mean(), "cache": object()}

    with pytest.raises(CaptureError, match=r"output 'cache' is a object.*use_cache=False"):
        graph_of(run)


def test_inputs_changed_in_place_are_refused() -> None:
    with pytest.raises(CaptureError, match="in place"):
        graph_of(lambda m, x: m.a(x.add_(1)).mean())


@pytest.mark.parametrize("inputs", [3, "x", {1: X}, None])
def test_inputs_of_another_kind_are_refused(inputs: Any) -> None:
    with pytest.raises(CaptureError, match="expected a tensor, a tuple"):
        capture(mlp(), inputs)


def test_arguments_of_another_kind_are_refused() -> None:
    with pytest.raises(CaptureError, match="an argument is a object"):
        graph_of(lambda m, x, other: m.a(x).mean(), X, object())


def test_unknown_costs_are_refused() -> None:
    with pytest.raises(ValueError, match="roofline, measured"):
        capture(mlp(), X, costs="guessed")


def test_sparse_gradients_are_refused() -> None:
    model = nn.Sequential(nn.Embedding(11, 16, sparse=True), mlp())
    with pytest.raises(CaptureError, match="sparse"):
        capture(model, torch.zeros(4, 6, dtype=torch.long))


def test_averages_over_all_batches_are_refused() -> None:
    model = nn.Sequential(mlp(), nn.BatchNorm1d(16, momentum=None))
    with pytest.raises(CaptureError, match=r"asks for a value .* that it changes in every call"):
        capture(model, X)
