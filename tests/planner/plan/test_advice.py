"""What is advised when nothing fits, and what it is read from."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import planner
from planner.graphs import Kind, Phase, Value, plain_schedule, simulate
from planner.graphs.binding import binding
from planner.plan.advice import Tightest, advice, infeasible, tightest
from planner.solvers import MinimumBudget

MB = 10**6


@pytest.mark.parametrize(
    ("tight", "expected"),
    [
        # room for half of what grows with the batch: half the batch
        (Tightest(40, 40, 120, Phase.BACKWARD), "micro-batch 2 times smaller"),
        (Tightest(40, 40, 121, Phase.BACKWARD), "micro-batch 3 times smaller"),
        (Tightest(40, 120, 9, Phase.BACKWARD), "which no smaller batch lowers"),
        (Tightest(40, 40, 90, Phase.OPTIMIZER), "foreach=False"),
        (Tightest(101, 101, 5, Phase.FORWARD), "neither recomputation nor a smaller batch"),
    ],
)
def test_advice_follows_what_is_held(tight: Tightest, expected: str) -> None:
    text = advice(100, tight)
    assert expected in text
    words = ("lower precision", "shard", "smaller model")
    assert sorted(words, key=text.index) == list(words)  # the order practitioners use


def test_only_gradients_of_parameters_are_model_states(captured: Any) -> None:
    graph = captured.graph
    schedule = plain_schedule(graph)
    peak = binding(graph, schedule, simulate(graph, schedule))
    # parameters 16 MB, optimizer 32 MB; at the peak h.3 has its gradient of 4 MB
    assert tightest(graph, schedule, peak) == Tightest(
        48 * MB, 52 * MB, 247 * MB - 52 * MB, Phase.BACKWARD
    )
    values = tuple(
        replace(v, kind=Kind.GRADIENT) if v.name.startswith("up_") else v for v in graph.values
    )
    needing = tightest(graph, schedule, peak, 300 * MB)  # through an allocator
    assert needing == Tightest(48 * MB, 52 * MB, 248 * MB, Phase.BACKWARD)
    again = replace(graph, values=values)  # gradients of activations leave before the step
    assert tightest(again, schedule, peak) == tightest(graph, schedule, peak)


def test_what_only_the_allocator_makes_too_much_is_never_one_times_smaller(captured: Any) -> None:
    """Tensors' bytes would fit."""
    graph, peak = captured.graph, simulate(captured.graph, plain_schedule(captured.graph))
    least = MinimumBudget(peak.peak_bytes, peak.peak_bytes, plain_schedule(graph))
    error = infeasible(graph, peak.peak_bytes + MB, least, "", peak.peak_bytes + 2 * MB)
    assert "a micro-batch 2 times smaller" in str(error)


RESERVE = 1_073_741_824


@pytest.mark.parametrize(
    ("tight", "expected", "not_said"),
    [
        # a 2-layer GPT-2 within 1 GB of an accelerator: the reserve is more than that
        (Tightest(40, 40, 9, Phase.BACKWARD, RESERVE), "a Device with its reserve_bytes", "lower"),
        (Tightest(40, 40, 9, Phase.OPTIMIZER, RESERVE), "A budget covers the 1.07 GB", "foreach"),
    ],
)
def test_the_reserve_is_the_devices_own(tight: Tightest, expected: str, not_said: str) -> None:
    text = advice(10**9, tight)
    assert expected in text
    assert "model states" not in text
    assert not_said not in text


def test_the_reserve_takes_of_the_budget_but_is_no_state() -> None:
    text = advice(100 * MB, Tightest(45 * MB, 45 * MB, MB, Phase.FORWARD, 60 * MB))
    assert "The model states alone hold 45.0 MB beside the 60.0 MB that the device keeps" in text
    text = advice(100 * MB, Tightest(20 * MB, 45 * MB, MB, Phase.FORWARD, 60 * MB))
    assert (
        "45.0 MB there is model states beside the 60.0 MB that the device keeps for itself" in text
    )
    # 40 MB are left, half of what grows
    text = advice(100 * MB, Tightest(0, 0, 80 * MB, Phase.BACKWARD, 60 * MB))
    assert "micro-batch 2 times smaller" in text


def test_the_reserve_is_told_apart_in_a_graph(captured: Any) -> None:
    graph = captured.graph
    values = (*graph.values, Value("device reserve", 100 * MB, Kind.RESERVE))
    graph = replace(graph, values=values)
    schedule = plain_schedule(graph)
    peak = binding(graph, schedule, simulate(graph, schedule))
    assert tightest(graph, schedule, peak) == Tightest(
        48 * MB, 52 * MB, 247 * MB - 52 * MB, Phase.BACKWARD, 100 * MB
    )


def test_a_small_model_is_not_told_to_lower_its_precision() -> None:
    model = torch.nn.Linear(8, 8, device="meta")
    inputs = torch.zeros(4, 8, device="meta")
    with pytest.raises(planner.InfeasibleBudget) as caught:
        planner.fit(model, "1GB", inputs=inputs, device="A100-40GB")
    assert "The least budget known to work is 1.08 GB" in str(caught.value)
    assert "that the device keeps for itself" in str(caught.value)
    assert "precision for" not in str(caught.value)
