"""PyTorch's partitioner as schedules of ours, and the tables made of them."""

from dataclasses import replace

import pytest

from benchmarks.cases import Case, capture_case
from benchmarks.models import classics, tiny
from benchmarks.partitioners import Partitioner, partitioner
from benchmarks.solvers import Row, defects
from planner.graphs import schedule_from_order, simulate


@pytest.fixture(scope="module")
def case() -> Case:
    return capture_case("perceptron", *tiny.perceptron(), optimizer=None)


@pytest.fixture(scope="module")
def step(case: Case) -> Partitioner:
    return partitioner(tiny.perceptron()[0], case.captured)


@pytest.mark.parametrize("knapsack", ["greedy", "dp"])
def test_what_pytorch_saves_is_a_schedule(case: Case, step: Partitioner, knapsack: str) -> None:
    seconds = []
    for budget in (1.0, 0.5, 0.0):
        order = step.order(budget, knapsack)
        seconds.append(simulate(case.graph, schedule_from_order(case.graph, order)).seconds)
    assert case.graph.seconds <= seconds[0] < seconds[1] < seconds[2]


def test_half_the_budget_holds_less(case: Case, step: Partitioner) -> None:
    order = step.order(0.5, "greedy")
    assert simulate(case.graph, schedule_from_order(case.graph, order)).peak_bytes < case.most_bytes


def test_asking_leaves_the_joint_graph_as_it_was(step: Partitioner) -> None:
    before = str(step.joint.graph)
    step.order(0.5, "greedy")
    assert str(step.joint.graph) == before


def test_defects_are_named() -> None:
    auto = Row("net", 9, 0.5, 100, "auto", True, 0.10, 0.10, 1.0)
    nothing = replace(auto, method="revolve", fits=False, overhead_fraction=float("nan"))
    assert defects([auto, nothing, replace(auto, method="milp")]) == []
    better = replace(auto, method="milp", overhead_fraction=0.08)
    assert defects([auto, better]) == [
        "net at 50%: milp beats auto by 2.0000%",
        "net at 50%: milp is below the bound",
    ]


@pytest.mark.parametrize(
    ("build", "count"),
    [(classics.vgg19, 143_667_240), (classics.mobilenet, 4_231_976)],
)
def test_the_classics_have_the_published_number_of_parameters(build, count) -> None:  # type: ignore[no-untyped-def]
    model = classics.on_meta(build)
    assert sum(p.numel() for p in model.parameters()) == count
    assert all(p.is_meta for p in model.parameters())
