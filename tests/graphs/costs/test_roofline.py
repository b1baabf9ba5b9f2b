"""FLOPs and bytes of operators against counts by hand and torch's own counter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from planner.graphs.costs.roofline import OpCost, op_cost, roofline_seconds
from planner.graphs.costs.tensor_float import tf32_kernels
from planner.graphs.hardware.devices import DEVICES, Kernel, device

aten = torch.ops.aten


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


def flops(target: Any, *args: Any) -> int:
    return op_cost(target, args, {}, target(*args)).flops


@pytest.mark.parametrize(("transposed", "stride"), [(False, 1), (False, 2), (True, 1), (True, 2)])
def test_convolutions_count_like_torch(transposed: bool, stride: int) -> None:
    image, weight = meta(2, 8, 16, 16), meta(8, 8, 3, 3)
    geometry = ([stride] * 2, [1, 1], [1, 1], transposed, [0, 0], 1)
    with FlopCounterMode(display=False) as counter:
        out = aten.convolution.default(image, weight, None, *geometry)
    assert (
        flops(aten.convolution.default, image, weight, None, *geometry) == counter.get_total_flops()
    )
    backward = (out, image, weight, None, *geometry, [True, True, False])
    with FlopCounterMode(display=False) as counter:
        aten.convolution_backward.default(*backward)
    assert flops(aten.convolution_backward.default, *backward) == counter.get_total_flops()


def test_grouped_convolution_backward_costs_twice_its_forward() -> None:
    image, weight = meta(2, 32, 16, 16), meta(32, 1, 3, 3)
    geometry = ([1, 1], [1, 1], [1, 1], False, [0, 0], 32)
    forward = flops(aten.convolution.default, image, weight, None, *geometry)
    assert forward == 2 * image.numel() * 9
    backward = (image, image, weight, None, *geometry, [True, True, False])
    assert flops(aten.convolution_backward.default, *backward) == 2 * forward


def test_attention_with_fewer_key_heads_counts_every_query() -> None:
    query, key = meta(2, 8, 10, 16), meta(2, 2, 20, 16)
    target = aten._scaled_dot_product_flash_attention_for_cpu.default
    cost = op_cost(target, (query, key, key), {}, (query, meta(2, 8, 10)))
    assert cost.flops == 2 * 2 * (2 * 8 * 10) * 20 * 16


def test_attention_and_its_backward_count_like_torch() -> None:
    query = meta(2, 8, 128, 64)
    rows = meta(2, 8, 128)
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    forward = aten._scaled_dot_product_flash_attention_for_cpu.default
    assert op_cost(forward, (query,) * 3, {}, (query, rows)).flops == counter.get_total_flops()
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    args = (query, query, query, query, query, rows, 0.0)
    cost = op_cost(backward, (*args, False), {}, (query,) * 3)
    assert cost.flops == counter.get_total_flops() * 5 // 2
    hidden = op_cost(backward, (*args, True), {}, (query,) * 3)  # by a causal mask, half
    assert hidden.flops == cost.flops // 2
    said = op_cost(forward, (query,) * 3, {"is_causal": True}, (query, rows))
    assert said.flops == counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("left", "right", "out", "expected"),
    [
        ((64, 32), (4, 32, 16), (64, 16), 2 * 64 * 32 * 16),
        ((64, 128), (128, 16), (4, 64, 16), 2 * 64 * 128 * 16),
        ((4, 8, 32), (32, 64), (8, 64), 2 * 8 * 32 * 64),
        ((4, 8, 32), (4, 32, 16), (4, 8, 16), 2 * 4 * 8 * 32 * 16),
    ],
)
def test_grouped_products(left: Any, right: Any, out: Any, expected: int) -> None:
    cost = op_cost(aten._grouped_mm.default, (meta(*left), meta(*right)), {}, meta(*out))
    assert cost.flops == expected


def test_a_product_added_in_place_counts_like_one_that_is_not() -> None:
    total, left, right = (torch.empty(sizes) for sizes in ((8, 4), (8, 16), (16, 4)))
    args = (total, left, right)
    found, made = (op_cost(f, args, {}, total) for f in (aten.addmm_.default, aten.addmm.default))
    assert found.flops == made.flops == 2 * 8 * 4 * 16


def test_a_recurrent_layer_meets_every_token_with_every_weight() -> None:
    x, state = meta(5, 4, 16), [meta(2, 4, 16), meta(2, 4, 16)]
    weights = [meta(64, 16), meta(64, 16), meta(64), meta(64)] * 2
    args = (x, state, weights, True, 2, 0.0, True, False, False)
    assert op_cost(aten.lstm.input, args, {}, (x, *state)).flops == 2 * 20 * 4 * 64 * 16


def test_bytes_are_those_touched() -> None:
    x = meta(10, 10)
    assert op_cost(aten.add.Tensor, (x, x), {}, x).moved_bytes == 1200
    expanded = meta(10, 1).expand(10, 10)
    assert op_cost(aten.add.Tensor, (x, expanded), {}, x).moved_bytes == 400 + 40 + 400
    table, index = meta(50_000, 8), meta(3, dtype=torch.int64)
    assert (
        op_cost(aten.embedding.default, (table, index), {}, meta(3, 8)).moved_bytes == 96 + 24 + 96
    )
    lists = ([x, x], [x, x])
    assert op_cost(aten._foreach_add_.List, lists, {}, None).moved_bytes == 2400
    for view in (aten.t.default, aten.view.default, aten._unsafe_view.default):
        assert op_cost(view, (x, [100]), {}, x).moved_bytes == 0
    assert op_cost(aten.empty_like.default, (x,), {}, x).moved_bytes == 0


def test_roofline_takes_the_slower_side() -> None:
    gpu = DEVICES["A100-80GB"]
    compute = OpCost(312 * 10**12, 8, "bfloat16")
    assert roofline_seconds(compute, gpu) == pytest.approx(1 / gpu.compute_efficiency, rel=1e-3)
    memory = OpCost(8, 2039 * 10**9, "bfloat16")
    assert roofline_seconds(memory, gpu) == pytest.approx(1 / gpu.bandwidth_efficiency, rel=1e-3)
    single = OpCost(10**14, 0, "float32")
    assert roofline_seconds(single, gpu) / roofline_seconds(
        single, gpu, tf32={Kernel.PRODUCT}
    ) == pytest.approx(8, rel=1e-3)
    assert roofline_seconds(OpCost(0, 1, "float32"), device("cpu")) >= device("cpu").launch_seconds


def test_no_call_takes_less_than_to_issue_it() -> None:
    gpu, tiny = DEVICES["A100-80GB"], OpCost(0, 1, "float32")
    assert roofline_seconds(tiny, gpu) == gpu.issue_seconds
    assert roofline_seconds(tiny, replace(gpu, issue_seconds=0)) < 2 * gpu.launch_seconds
    assert device("cpu").issue_seconds == 0


def test_images_are_laid_out_anew_for_tensor_cores_alone() -> None:
    weight, geometry = meta(64, 64, 3, 3), ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    planar = meta(8, 64, 56, 56)
    last = planar.to(memory_format=torch.channels_last)

    def seconds(image: torch.Tensor, name: str, tf32: frozenset[Kernel]) -> float:
        call = op_cost(aten.convolution.default, (image, weight, None, *geometry), {}, image)
        return roofline_seconds(call, device(name), tf32=tf32)

    on, off = frozenset({Kernel.CONVOLUTION}), frozenset[Kernel]()
    moved = 2 * 2 * planar.nbytes / DEVICES["A100-40GB"].bytes_per_second()
    added = seconds(planar, "A100-40GB", on) - seconds(last, "A100-40GB", on)
    assert added == pytest.approx(moved)
    for name, tf32 in (("A100-40GB", off), ("cpu", on), ("V100-16GB", on), ("MI300X", on)):
        assert seconds(planar, name, tf32) == seconds(last, name, tf32)
    backward = aten.convolution_backward.default
    for image, times in ((planar, 3), (last, 0)):
        args = (image, image, weight, None, *geometry, [True, True, False])
        cost = op_cost(backward, args, {}, (image, weight))
        assert cost.reordered_bytes == 2 * times * planar.nbytes
    grouped = (planar, meta(64, 1, 3, 3), None, *geometry[:-1], 64)
    assert op_cost(aten.convolution.default, grouped, {}, planar).reordered_bytes == 0


def test_convolutions_round_float32_and_products_do_not() -> None:
    """Torch's defaults: see ``graphs.costs.tensor_float``."""
    image, weight = meta(8, 64, 56, 56), meta(64, 64, 3, 3)
    geometry = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    convolution = op_cost(aten.convolution.default, (image, weight, None, *geometry), {}, image)
    product = op_cost(aten.mm.default, (meta(64, 64), meta(64, 64)), {}, meta(64, 64))
    assert (convolution.kernel, product.kernel) == (Kernel.CONVOLUTION, Kernel.PRODUCT)
    gpu, rounded = DEVICES["A100-80GB"], {Kernel.CONVOLUTION}
    plain = roofline_seconds(replace(convolution, moved_bytes=0), gpu)
    assert roofline_seconds(replace(convolution, moved_bytes=0), gpu, tf32=rounded) < plain / 5
    assert roofline_seconds(product, gpu, tf32=rounded) == roofline_seconds(product, gpu)
    assert tf32_kernels() == rounded
    torch.set_float32_matmul_precision("high")
    try:
        assert Kernel.PRODUCT in tf32_kernels()
    finally:
        torch.set_float32_matmul_precision("highest")
