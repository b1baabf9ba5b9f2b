"""Workspace and time of single operators, measured on made-up data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from planner.graphs.costs import measured
from planner.graphs.costs.measured import MeasureError, Memory, measure_memory, measure_seconds
from planner.graphs.costs.operator_call import (
    OperatorCall,
    materialise,
    output_bytes,
    random,
    signature,
)
from planner.graphs.costs.workspace import estimate_workspace, needs_no_workspace
from planner.graphs.torch_api.allocation_records import measure_peak
from planner.graphs.torch_api.fake_tensors import FakeTensorMode
from planner.graphs.torch_api.storages import storage_key

aten = torch.ops.aten
GEOMETRY = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)


def calls() -> dict[str, tuple[OperatorCall, int, float]]:
    """Return calls on fake tensors, their bytes of workspace, and how far a formula may be off."""
    with FakeTensorMode():
        image, weight = torch.empty(2, 64, 28, 28), torch.empty(64, 64, 3, 3)
        mixed = torch.empty(64, 64, dtype=torch.bfloat16)
        square = torch.empty(64, 64)
    backward = (image, image, weight, None, *GEOMETRY, [True, True, False])
    convolved = image.nbytes + weight.nbytes
    return {
        "add": (OperatorCall(aten.add.Tensor, (square, square)), 0, 0),
        "mm": (OperatorCall(aten.mm.default, (square, square.t())), 0, 0),
        "view": (OperatorCall(aten.t.default, (square,)), 0, 0),
        "mixed": (OperatorCall(aten.add.Tensor, (square, mixed)), square.nbytes, 0),
        "dropout": (
            OperatorCall(aten.native_dropout.default, (square, 0.1, True)),
            square.nbytes,
            0,
        ),
        "convolution": (
            OperatorCall(aten.convolution.default, (image, weight, None, *GEOMETRY)),
            convolved,
            0,
        ),
        "convolution_backward": (
            OperatorCall(aten.convolution_backward.default, backward),
            2 * image.nbytes,
            0.2,
        ),
    }


@pytest.mark.parametrize("name", calls())
def test_workspace_is_known_and_its_formula_agrees(name: str) -> None:
    call, expected, slack = calls()[name]
    measured = measure_memory([call])[0].workspace_bytes
    assert measured == pytest.approx(expected, rel=slack)
    assert estimate_workspace(call) == pytest.approx(measured, rel=slack)


@pytest.mark.parametrize("transposed", [False, True])
def test_convolution_formula_knows_the_size_of_the_result(transposed: bool) -> None:
    image, weight = torch.empty(2, 16, 15, 20), torch.empty(16, 16, 3, 2)
    geometry = ([2, 1], [1, 0], [1, 2], transposed, [1, 0] if transposed else [0, 0], 1)
    call = OperatorCall(aten.convolution.default, (image, weight, None, *geometry))
    expected = 2 * output_bytes(call) if transposed else image.nbytes + weight.nbytes
    assert estimate_workspace(call) == expected


@pytest.mark.parametrize("length", [100, 300, 1000])
def test_attention_formula_follows_the_tiles_of_the_kernel(length: int) -> None:
    query = torch.empty(2, 4, length, 32)
    call = OperatorCall(aten._scaled_dot_product_flash_attention_for_cpu.default, (query,) * 3)
    assert estimate_workspace(call) == measure_memory([call])[0].workspace_bytes


def test_an_attention_backward_is_estimated_within_a_tenth() -> None:
    query, rows = torch.empty(2, 4, 300, 32), torch.empty(2, 4, 300)
    target = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    call = OperatorCall(target, (query, query, query, query, query, rows, 0.0, True))
    assert estimate_workspace(call) == pytest.approx(
        measure_memory([call])[0].workspace_bytes, rel=0.1
    )


LAYOUTS = {
    "plain": lambda x: x,
    "transposed": lambda x: x.transpose(-1, -2),
    "slice": lambda x: x[..., :32, :32],
    "strided": lambda x: x[..., ::2, ::2],
    "expanded": lambda x: x[..., :1].expand(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("target", [aten.mm.default, aten.addmm.default, aten.bmm.default])
def test_a_product_said_to_need_no_workspace_needs_none(target: Any, layout: str) -> None:
    shape = (4, 64, 64) if target is aten.bmm.default else (64, 64)
    left = LAYOUTS[layout](torch.rand(shape))
    right = torch.rand((*shape[:-2], left.shape[-1], 40))
    bias = [torch.rand(40)] if target is aten.addmm.default else []
    call = OperatorCall(target, (*bias, left, right))
    record = measure_peak(lambda: call.run() is None)
    assert needs_no_workspace(call) == (layout not in {"strided", "expanded"})
    assert not needs_no_workspace(call) or record.peak_bytes == output_bytes(call)


def test_repeated_calls_are_measured_once_and_remembered(tmp_path: Path) -> None:
    x = torch.empty(300, 300)
    call = OperatorCall(aten.mm.default, (x, x))
    first = measure_seconds([call, call], cache=tmp_path)
    assert first[0] == first[1] > 0
    assert measure_seconds([call], cache=tmp_path) == first[:1]
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text())["entries"] == {signature(call): first[0]}


def test_a_damaged_cache_warns_and_is_measured_again(tmp_path: Path) -> None:
    call = OperatorCall(aten.relu.default, (torch.empty(10),))
    measure_memory([call], cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text()[:20])
    with pytest.warns(UserWarning, match="is damaged"):
        assert measure_memory([call], cache=tmp_path) == [Memory(0, (40,))]
    assert measure_memory([call], cache=tmp_path) == [Memory(0, (40,))]


def test_random_operators_leave_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    call = OperatorCall(aten.native_dropout.default, (torch.empty(100), 0.5, True))
    measure_seconds([call])
    assert torch.equal(torch.get_rng_state(), state)


def test_what_autocast_would_widen_is_measured_as_it_is() -> None:
    call = OperatorCall(aten.prod.dim_int, (torch.ones(4, 512, dtype=torch.bfloat16), 0))
    with torch.autocast("cpu", torch.bfloat16):
        assert measure_memory([call])[0].output_bytes == (1024,)


def test_an_operator_that_does_not_fit_is_refused() -> None:
    size = psutil.virtual_memory().total // 4
    with FakeTensorMode():
        call = OperatorCall(aten.relu.default, (torch.empty(size, dtype=torch.uint8),))
    with pytest.raises(MeasureError, match=r"aten.relu.default needs \d+ bytes, more than half"):
        measure_memory([call])
    assert measure_memory([call], fallback=lambda _: 7) == [Memory(7)]


def test_a_device_that_is_not_here_is_refused() -> None:
    call = OperatorCall(aten.relu.default, (torch.empty(4, device="meta"),))
    with pytest.raises(MeasureError, match="is for meta, which is not on this machine"):
        measure_seconds([call])


def test_data_that_an_operator_refuses_is_an_error() -> None:
    call = OperatorCall(aten.mm.default, (torch.empty(2, 3), torch.empty(2, 3)))
    with pytest.raises(MeasureError, match=r"aten.mm.default does not run on made-up data: .*"):
        measure_memory([call])


def test_indices_are_valid_for_any_dimension() -> None:
    weight, grad = torch.empty(50, 8), torch.empty(4, 16, 8)
    index = torch.empty(4, 16, dtype=torch.int64)
    some = [
        OperatorCall(aten.embedding.default, (weight, index)),
        OperatorCall(aten.embedding_dense_backward.default, (grad, index, 3, -1, False)),
        OperatorCall(
            aten.gather.default, (torch.empty(4, 5), 1, torch.empty(4, 2, dtype=torch.int64))
        ),
    ]
    assert all(seconds > 0 for seconds in measure_seconds(some))


def test_grouped_products_do_all_of_their_work() -> None:
    left, right = (torch.empty(s, dtype=torch.bfloat16) for s in ((64, 32), (4, 32, 16)))
    call = OperatorCall(aten._grouped_mm.default, (left, right, torch.empty(4, dtype=torch.int32)))
    real = materialise(call, random)
    assert real.args[2].tolist() == [16, 32, 48, 64]
    assert real.run().isfinite().all()


def test_a_recurrent_layer_keeps_more_than_fake_tensors_know() -> None:
    weight, bias, state = torch.empty(64, 16), torch.empty(64), torch.empty(1, 4, 16)
    flags = (False, [], 2, 16, 1, True, False, False, True)
    arguments = (torch.empty(5, 4, 16), weight, weight, bias, bias, state, state, *flags)
    call = OperatorCall(aten.mkldnn_rnn_layer.default, arguments)
    assert sum(measure_memory([call])[0].output_bytes) > output_bytes(call)


def test_workspace_that_depends_on_data_is_measured_on_data() -> None:
    call = OperatorCall(torch.ops.aten.linalg_matrix_exp.default, (torch.empty(48, 48),))
    zeros = measure_peak(lambda: torch.linalg.matrix_exp(torch.zeros(48, 48)).sum().item())
    (found,) = measure_memory([call])
    assert found.workspace_bytes > zeros.peak_bytes


def test_a_signature_tells_sharing_from_likeness() -> None:
    x, y = torch.empty(3), torch.empty(3)
    add = aten.add.Tensor
    assert signature(OperatorCall(add, (x, y))) == signature(OperatorCall(add, (y, x)))
    assert signature(OperatorCall(add, (x, x))) != signature(OperatorCall(add, (x, y)))
    shared = materialise(OperatorCall(aten.add_.Tensor, (x[1:], x[:-1])), random)
    assert storage_key(shared.args[0]) == storage_key(shared.args[1])


def test_an_operator_that_fails_on_fake_tensors_is_told_of_by_its_error_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows, weights = torch.empty(8, 16), torch.empty(2, 16, 16)
    ends = torch.tensor([4, 8], dtype=torch.int32)
    call = OperatorCall(torch.ops.aten._grouped_mm.default, (rows, weights, ends))
    assert measure_memory([call], fallback=lambda _: 7)[0].workspace_bytes == 7
    assert not caplog.messages


def test_what_else_runs_on_the_machine_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that had to wait for a core says nothing of the operator."""
    runs = iter((9.0, 5.0, 0.03, 5.0))  # the first one warms up
    monkeypatch.setattr(measured, "_wall_seconds", lambda call: next(runs))
    assert measure_seconds([OperatorCall(aten.relu.default, (torch.empty(10),))]) == [0.03]
