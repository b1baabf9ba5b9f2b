"""Values that take no memory of their own, of graphs made by hand."""

from __future__ import annotations

from planner.graphs import plain_schedule, simulate
from planner.graphs.capture.fused.around_kernels import Frame, KernelCall, assemble
from planner.graphs.capture.fused.in_place import in_place, written_over
from planner.graphs.torch_api.inductor.inductor_kernels import Buffer, FusedKernel, Kernels


def call(name: str, reads: str, makes: dict[str, int]) -> KernelCall:
    return KernelCall(name, name, tuple(reads), makes, recomputable=False)


def peak(calls: list[KernelCall], gradients: str) -> int:
    graph = assemble(Frame({}, {}), (), calls, (), tuple(gradients))
    return simulate(graph, plain_schedule(graph)).peak_bytes


def test_a_chain_lies_in_the_memory_of_the_first() -> None:
    calls = [
        call("f", "", {"a": 8}),
        call("g", "a", {"b": 8}),
        call("h", "b", {"c": 8}),
        call("i", "c", {"d": 1}),
    ]
    assert peak(calls, "d") == 16
    found = in_place(calls, {"b", "c"}, {"d"})
    assert peak(found, "d") == 9
    assert [k.reads for k in found] == [(), ("a",), ("b", "a"), ("c", "a")]


def test_only_what_is_read_last_and_as_large_is_written_over() -> None:
    calls = [
        call("f", "", {"a": 8, "x": 4}),
        call("g", "ax", {"b": 8}),  # a is read later
        call("h", "ab", {"c": 8, "d": 8, "e": 8}),  # of three two have room
        call("i", "cde", {"z": 8}),
    ]
    found = in_place(calls, {"b", "c", "d", "e", "z"}, {"z"})
    assert [dict(k.makes) for k in found[1:]] == [{"b": 8}, {"c": 0, "d": 0, "e": 8}, {"z": 8}]
    assert peak(found, "z") == 32


def test_parts_of_what_is_made_later_are_not_written_over_it() -> None:
    kernels = (
        FusedKernel("f", (Buffer("buf0", 4, "part", "buf2"),), (), external=False),
        FusedKernel("g", (Buffer("buf1", 4, "over", "saved"),), ("saved",), external=False),
        FusedKernel("h", (Buffer("buf2", 8, "whole"),), ("buf0",), external=False),
        FusedKernel("i", (Buffer("buf3", 8, "next", "buf2"),), ("buf2",), external=False),
    )
    half = Kernels(kernels, (), ("saved",), (), (), ())
    assert written_over(half) == {"over", "next"}
