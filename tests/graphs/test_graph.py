"""What a graph accepts, refuses and derives."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from planner.graphs import Graph, Op, Value
from tests.strategies import chain, graphs, transformer

X, Y = Value("x", 8), Value("y", 4)


@pytest.mark.parametrize(
    ("ops", "values", "outputs", "message"),
    [
        ((), (Value("x", -1),), set(), "'x' has negative size -1"),
        ((), (X,), {1}, "output 1 is not one of its 1 values"),
        ((Op("f", "f", (), (3,)),), (X,), set(), "'f' names value 3, but there are 1 values"),
        ((Op("f", "f", (-1,), ()),), (X,), set(), "'f' names value -1"),
        ((Op("f", "f", (), (0,), -1.0),), (X,), set(), "'f' has a negative cost"),
        ((Op("f", "f", (), (0,), workspace_bytes=-1),), (X,), set(), "negative cost"),
        (
            (Op("f", "f", (1,), (0,)), Op("g", "g", (), (1,))),
            (X, Y),
            set(),
            "'f' reads 'y' before it is made",
        ),
        ((Op("f", "f", (0,), (0,)),), (X,), set(), "'f' reads 'x' before it is made"),
        (
            (Op("f", "f", (), (0,)), Op("g", "g", (), (0,))),
            (X,),
            set(),
            "'x' has two producers",
        ),
        ((Op("f", "f", (0, 0), (1,)),), (X, Y), set(), "'f' lists a value twice"),
        ((Op("f", "f", (), (0, 0)),), (X,), set(), "'f' lists a value twice"),
    ],
)
def test_refuses(
    ops: tuple[Op, ...], values: tuple[Value, ...], outputs: set[int], message: str
) -> None:
    with pytest.raises(ValueError, match="graph 'bad'") as error:
        Graph(ops, values, frozenset(outputs), "bad")
    assert message in str(error.value)


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_producers_and_consumers_agree_with_the_ops(graph: Graph) -> None:
    for v, maker in enumerate(graph.producer):
        assert [i for i, op in enumerate(graph.ops) if v in op.outputs] == (
            [] if maker is None else [maker]
        )
        assert list(graph.consumers[v]) == [i for i, op in enumerate(graph.ops) if v in op.inputs]
    residents = [v for v, x in enumerate(graph.values) if x.name.startswith("in")]
    assert graph.resident == frozenset(residents)
    assert graph.resident_bytes == sum(graph.values[v].size_bytes for v in residents)


def test_known_graphs() -> None:
    assert (chain(5).seconds, chain(5).resident_bytes) == (10.0, 1)
    assert transformer(2).resident_bytes == 8 + 2 * 2 * 4
