"""The graph in which only activations weigh, and what is found and refuted on it."""

from benchmarks.claim import OVERHEAD, least, only_activations, refuted_below
from planner.graphs import Kind, Phase, plain_schedule, simulate
from tests.strategies import transformer


def test_only_what_forward_made_weighs() -> None:
    full = transformer(2)
    graph = only_activations(full)
    assert graph.resident_bytes == 0
    assert graph.seconds == full.seconds
    for value, maker in zip(graph.values, graph.producer, strict=True):
        forward = maker is not None and graph.ops[maker].phase is Phase.FORWARD
        assert forward or not value.size_bytes or value.kind is not Kind.GRADIENT
    assert not any(op.workspace_bytes for op in graph.ops)


def test_found_and_refuted_enclose_the_least() -> None:
    graph = only_activations(transformer(1))
    plain = simulate(graph, plain_schedule(graph)).peak_bytes
    floor = refuted_below(graph, plain)
    found = least(graph, floor, plain)
    trace = simulate(graph, found.schedule)
    assert floor <= found.refuted_bytes <= found.peak_bytes == trace.peak_bytes < plain
    assert trace.seconds <= graph.seconds * (1 + OVERHEAD)
