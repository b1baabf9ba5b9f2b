"""The graph of a compiled step, from kernels that a compiler names."""

from __future__ import annotations

import pytest

from planner.graphs.capture.fused.around_kernels import Frame, KernelCall, assemble
from planner.graphs.capture_error import CaptureError


def test_a_kernel_that_reads_what_none_made_is_refused() -> None:
    first = KernelCall("first", "fused(add)", (), {"a": 4})
    second = KernelCall("second", "fused(mul)", ("a", "b"), {"c": 4})
    with pytest.raises(CaptureError, match="'second' reads 'b', which none before it makes"):
        assemble(Frame({}, {}), [first, second], [], ["c"], [])
    made = KernelCall("made", "fused(exp)", (), {"b": 4})
    graph = assemble(Frame({}, {}), [first, made, second], [], ["c"], [])
    assert [op.name for op in graph.ops] == ["first", "made", "second", "accumulate_grad"]
