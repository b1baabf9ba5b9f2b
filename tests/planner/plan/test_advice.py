"""What is advised when nothing fits, and what it is read from."""

from dataclasses import replace
from typing import Any

import pytest

from planner.graphs import Kind, Phase, simulate, store_all
from planner.graphs.binding import binding
from planner.plan.advice import Tightest, advice, tightest

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
    schedule = store_all(graph)
    peak = binding(graph, schedule, simulate(graph, schedule))
    # parameters 16 MB, optimizer 32 MB; at the peak h.3 has its gradient of 4 MB
    assert tightest(graph, schedule, peak) == Tightest(
        48 * MB, 52 * MB, 247 * MB - 52 * MB, Phase.BACKWARD
    )
    values = tuple(
        replace(v, kind=Kind.GRADIENT) if v.name.startswith("up_") else v for v in graph.values
    )
    again = replace(graph, values=values)  # gradients of activations leave before the step
    assert tightest(again, schedule, peak) == tightest(graph, schedule, peak)
