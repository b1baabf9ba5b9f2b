"""What a node of autograd is given it holds until it is done; temporaries as long as a formula."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from planner.graphs import Graph, Op, Phase, Value, plain_schedule, simulate
from planner.graphs.capture.eager_lifetimes import AutogradFacts, held_by_autograd
from planner.graphs.capture.training_step import capture
from tests.scenes import Apply


def _backward(*ops: tuple[tuple[int, ...], tuple[int, ...]]) -> list[Op]:
    return [Op(f"b{i}", "b", *io, phase=Phase.BACKWARD) for i, io in enumerate(ops)]


def _facts(numbers: list[int | None], results: set[int], **more: dict[int, int]) -> AutogradFacts:
    return AutogradFacts(numbers, {}, more.get("workspace_bytes", {}), results)


def test_temporaries_and_what_is_given_are_held_to_the_end_of_the_node() -> None:
    """x -> t -> u -> y of one node; z, of another, needs y alone."""
    values = [Value(name, 1) for name in "xtuyz"]
    ops = _backward(((0,), (1,)), ((1,), (2,)), ((2,), (3,)), ((3,), (4,)))
    held_by_autograd(ops, values, _facts([7, 7, 7, 8], {4}))
    assert set(ops[2].inputs) == {0, 1, 2}
    assert ops[3].inputs == (3,)


def test_a_formula_ends_with_what_leaves_the_node() -> None:
    """The first formula's temporary is gone when the second begins; the gradient is not."""
    values = [Value(name, 1) for name in "gtyuz"]
    ops = _backward(((0,), (1,)), ((1,), (2,)), ((0,), (3,)), ((3,), (4,)))
    held_by_autograd(ops, values, _facts([7, 7, 7, 7], {2, 4}))
    assert set(ops[1].inputs) == {1}
    assert set(ops[3].inputs) == {0, 3}


def test_a_node_that_asks_takes_what_its_answer_needs() -> None:
    values = [Value(name, 10) for name in "gty"]
    ops = _backward(((0,), (1,)), ((1,), (2,)))
    held_by_autograd(ops, values, _facts([7, 7], {2}, workspace_bytes={7: 3}))
    assert [v.size_bytes for v in values] == [10, 0, 10]
    assert [op.workspace_bytes for op in ops] == [0, 3]


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        return (y.sin() + y.tanh() + y.exp()).sum()


def test_gradients_that_meet_are_added_into_the_older_one() -> None:
    found = capture(Branches(), torch.zeros(64, requires_grad=True), optimizer=None)
    graph = found.eager
    assert isinstance(graph, Graph)
    sums = [op for op in graph.ops if op.target == "aten.add.Tensor" and not op.outputs]
    assert all(op.phase is Phase.BACKWARD for op in sums)
    assert simulate(graph, plain_schedule(graph)).peak_bytes == found.eager_peak_bytes
    assert graph.seconds > 0


def test_eager_mode_takes_as_long_as_the_plain_step() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 8))
    found = capture(model, torch.zeros(4, 8), loss=lambda out: out.square().mean())
    assert found.eager is not None
    assert abs(found.eager.seconds / found.graph.seconds - 1) < 1e-9


def test_operators_of_others_are_known_by_more_than_their_names() -> None:
    made = torch.library.custom_op(
        "planner_tests::index_add", torch.sin, mutates_args=(), schema="(Tensor x) -> Tensor"
    )
    made.register_fake(torch.empty_like)
    made.register_autograd(lambda _, gradient: gradient)
    found = capture(
        Apply(lambda _, x: made(x).sum()), torch.zeros(4, requires_grad=True), optimizer=None
    )
    assert found.eager is not None
