"""The measured peak against allocations whose bytes are known."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from planner.graphs.capture.storage_meter import StorageMeter
from planner.graphs.torch_api.allocation_records import measure_peak, recorded_changes


def test_peak_and_what_is_left_are_exact_to_the_byte() -> None:
    def run() -> torch.Tensor:
        first = torch.empty(1_000_003, dtype=torch.uint8)
        second = torch.empty(17, dtype=torch.uint8)
        del first
        return torch.empty(5, dtype=torch.uint8) if len(second) else second

    record = measure_peak(run)
    assert record.peak_bytes == 1_000_003 + 17
    assert record.left_bytes == 5
    assert record.changes == (1_000_003, 17, -1_000_003, 5, -17)


def test_backward_is_seen_whole() -> None:
    weight = torch.zeros(1000, 1000, requires_grad=True)
    x = torch.zeros(1000, 1000)

    def run() -> None:
        weight.mm(x).mm(x).backward(x)

    record = measure_peak(run)
    assert record.left_bytes == weight.nbytes  # its gradient
    # The result, the gradient of the product before it, and the weight's.
    assert record.peak_bytes == 3 * weight.nbytes
    weight.grad = None


def test_threads_of_autograd_are_merged_in_time() -> None:
    class Nested(torch.autograd.Function):
        """A backward inside backward, deep enough for autograd to move it to another thread."""

        @staticmethod
        def forward(ctx: object, x: torch.Tensor, depth: int) -> torch.Tensor:
            ctx.depth = depth  # type: ignore[attr-defined]
            return x.clone()

        @staticmethod
        def backward(ctx: object, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
            depth = ctx.depth  # type: ignore[attr-defined]
            if depth:
                with torch.enable_grad():
                    inner = torch.ones(10, requires_grad=True)
                    Nested.apply(inner, depth - 1).sum().backward()
            big = torch.empty(1_000_000)
            return grad + big[:10] * 0, None

    def run() -> None:
        x = torch.ones(10, requires_grad=True)
        Nested.apply(x, 80).sum().backward()

    record = measure_peak(run)
    assert record.left_bytes == 0
    assert 4_000_000 <= record.peak_bytes < 8_000_000


def test_records_are_those_of_the_public_profiler() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    image = torch.randn(2, 3, 16, 16)

    def run() -> None:
        model(image).sum().backward()
        model.zero_grad()

    run()
    ours = measure_peak(run).changes
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as session:
        run()
    results = session.profiler.kineto_results  # type: ignore[union-attr]
    theirs = [event.nbytes() for event in results.events() if event.name() == "[memory]"]
    assert sorted(ours) == sorted(theirs)


def test_fifty_thousand_allocations_are_cheap_and_exact() -> None:
    def run() -> None:
        held = [torch.empty(4, dtype=torch.uint8) for _ in range(25_000)]
        held.clear()

    record = measure_peak(run)
    assert record.peak_bytes == 100_000
    assert len(record.changes) == 50_000


def test_an_error_ends_the_recording() -> None:
    with pytest.raises(ZeroDivisionError), recorded_changes():
        _ = 1 / 0
    assert measure_peak(lambda: None).changes == ()


def test_what_is_older_than_the_run_is_not_seen_freed() -> None:
    held = [torch.empty(1000)]

    def run() -> None:
        held.clear()
        held.append(torch.empty(1000))

    record = measure_peak(run)
    assert record.peak_bytes == 4000
    assert record.left_bytes == 4000


def test_storage_meter_agrees_with_the_allocator() -> None:
    x = torch.ones(1000)

    def run() -> tuple[int, int]:
        with StorageMeter("cpu") as meter:
            a = torch.ones_like(x)
            b = torch.cat([a, a])
            del a
            c = b[:500].relu()
        return meter.peak_bytes, meter.level_bytes - 0 * c.numel()

    record = measure_peak(run)
    assert record.result == (record.peak_bytes, 8000 + 2000)


def test_storage_meter_counts_views_once_and_other_devices_never() -> None:
    with StorageMeter("cpu") as meter:
        x = torch.ones(100)
        views = [x[:10], x.t(), x.view(10, 10)]
        elsewhere = torch.ones(100, device="meta")
    assert meter.level_bytes == 400
    assert len(views) + len(elsewhere) == 103
    del x, views
    assert meter.level_bytes == 0
