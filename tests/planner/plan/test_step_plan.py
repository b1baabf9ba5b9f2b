"""What a plan says is what ``simulate`` says."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace

import pytest

import planner
from planner.graphs import Graph, Kind, Phase, plain_schedule, schedule_from_order, simulate
from planner.plan.step_plan import StepPlan
from planner.plans import Plan
from planner.request import checked_method

MB = 10**6


def test_cost_and_memory_come_from_simulate(plan: Plan) -> None:
    trace, plain = (
        simulate(plan.graph, plan.schedule),
        simulate(plan.graph, plain_schedule(plan.graph)),
    )
    assert (plan.peak_bytes, plan.seconds) == (trace.peak_bytes, trace.seconds)
    assert (plan.plain_peak_bytes, plan.plain_seconds) == (plain.peak_bytes, plain.seconds)


def test_time_is_a_fraction_of_the_plain_step(plan: Plan) -> None:
    # 50 ms plain; three layers of attention (1 ms) and mlp (2 ms) again; 4 ms proved necessary
    assert plan.overhead == pytest.approx(9 / 50)
    assert plan.bound_overhead == pytest.approx(4 / 50)
    assert plan.gap == pytest.approx(5 / 50)
    assert plan.overhead == pytest.approx(plan.bound_overhead + plan.gap)


def test_recomputed_ops_and_what_they_save(plan: Plan) -> None:
    assert [plan.graph.ops[r.index].name for r in plan.recomputed] == [
        name for i in range(3) for name in (f"attn_{i}", f"mlp_{i}")
    ]
    assert {(r.extra_runs, r.saved_bytes) for r in plan.recomputed} == {(1, 30 * MB), (1, 10 * MB)}
    assert sum(r.extra_seconds for r in plan.recomputed) == pytest.approx(
        plan.seconds - plan.plain_seconds
    )


def test_what_is_made_again_but_never_read_saves_nothing(make_plan: Callable[..., Plan]) -> None:
    graph = make_plan().graph
    idle = schedule_from_order(graph, [*range(len(graph.ops)), 0])
    (again,) = make_plan(schedule=idle).recomputed
    assert (again.extra_runs, again.saved_bytes) == (1, 0)


def test_memory_adds_up_to_the_peak(plan: Plan) -> None:
    totals = {phase: sum(kinds.values()) for phase, kinds in plan.memory.items()}
    assert list(totals) == [Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER]
    assert max(totals.values()) == plan.peak_bytes
    assert plan.memory[Phase.OPTIMIZER][Kind.OPTIMIZER] == 32 * MB
    assert plan.memory[Phase.OPTIMIZER][Kind.GRADIENT] == 16 * MB


def test_binding_names_the_op_at_the_peak(plan: Plan) -> None:
    found = plan.binding
    assert (found.op, found.module, found.phase) == ("backward_3", "h.3", Phase.BACKWARD)
    assert (found.peak_bytes, found.category) == (plan.peak_bytes, Kind.ACTIVATION)
    assert found.category_bytes == plan.memory[Phase.BACKWARD][Kind.ACTIVATION]


def test_fits_to_the_byte(plan: Plan) -> None:
    assert replace(plan, budget_bytes=plan.peak_bytes).fits
    assert not replace(plan, budget_bytes=plan.peak_bytes - 1).fits


def test_time_spent_planning_is_not_part_of_equality(plan: Plan) -> None:
    assert replace(plan, capture_seconds=1.0, solve_seconds=2.0, message="slow") == plan
    assert replace(plan, method="milp") != plan
    assert hash(replace(plan, solve_seconds=2.0)) == hash(plan)


def test_a_step_without_times_has_no_overhead(graph: Graph, make_plan: Callable[..., Plan]) -> None:
    timeless = Graph(tuple(replace(op, seconds=0.0) for op in graph.ops), graph.values)
    plan = make_plan(graph=timeless, bound_seconds=0.0)
    assert (plan.overhead, plan.bound_overhead, plan.gap) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"budget_bytes": 0}, "positive"),
        ({"bound_seconds": float("inf")}, "finite"),
        ({"bound_seconds": float("nan")}, "finite"),
        ({"signature": {"shape": (1, 2)}}, "lists, not tuples"),
        ({"graph": Graph((), ())}, "no ops"),
    ],
)
def test_constructor_checks(
    make_plan: Callable[..., Plan], changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        make_plan(**changes)


def test_frozen(plan: Plan) -> None:
    with pytest.raises(FrozenInstanceError):
        plan.method = "milp"  # type: ignore[misc]


def test_it_introduces_itself_in_a_line(plan: Plan) -> None:
    assert repr(plan) == ("Plan(Toy: fits, peak 147 MB of 148 MB, time +18.00%, gap 10.00%)")
    assert "<svg" in plan._repr_html_()


def test_former_names_say_the_new_ones(plan: Plan) -> None:
    with pytest.warns(DeprecationWarning, match="plain_peak_bytes"):
        assert plan.baseline_peak_bytes == plan.plain_peak_bytes
    with pytest.warns(DeprecationWarning, match="plain_seconds"):
        assert plan.baseline_seconds == plan.plain_seconds


def test_a_plan_equals_its_value(plan: Plan) -> None:
    assert StepPlan(**{f.name: getattr(plan, f.name) for f in fields(plan)}) == plan


def test_former_names_of_the_plain_method() -> None:
    with pytest.warns(DeprecationWarning, match="plain_schedule"):
        assert planner.graphs.store_all is plain_schedule
    with pytest.warns(DeprecationWarning, match="'plain' now"):
        assert checked_method("store_all") == "plain"
