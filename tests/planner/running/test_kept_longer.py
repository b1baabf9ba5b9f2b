"""Schedules moved at no cost run in the very order that was planned, and change no bit."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from planner.graphs import Action, Graph, Phase, Schedule, Step
from planner.plans import Plan
from planner.solvers.search.free_moves import FreeMoves
from tests.by_default import slow_but
from tests.layers import SCENES
from tests.planner.running.test_reordered import HARD
from tests.training import Scene, assert_same, measured_peak, train

LARGE = 512
"""Statistics and states of generators, which no move is about, have no name in every program."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def _moved(scene: Scene, model: nn.Module, *, reorder: bool) -> Plan:
    """Return a plan that recomputes all it can, after many moves."""
    plan = scene.plan(model, "recompute_all")
    every = [True] * len(plan.graph.values)
    moves = FreeMoves(plan.graph, random.Random(0), every, reorder=reorder)
    steps = list(plan.schedule.steps)
    assert sum(moves.make(steps) for _ in range(300)) > 0
    return replace(plan, schedule=Schedule(tuple(steps)), bound_seconds=0.0)


@pytest.mark.parametrize(
    ("name", "reorder"),
    slow_but(
        {("attention", True), ("batch_norm_called_twice", True), ("dropout", False)},
        [
            *((name, True) for name in (*HARD, "buffers_changed", "called_twice")),
            *((name, False) for name in ("batch_norm", "dropout", "tied_three_times")),
        ],
    ),
)
def test_moves_change_no_bit(name: str, *, reorder: bool) -> None:
    scene, model = SCENES[name], SCENES[name].model()
    plan = _moved(scene, model, reorder=reorder)
    plain = train(scene, scene.model(), steps=2)
    assert_same(plain, train(scene, plan.apply(model), steps=2))


@pytest.mark.parametrize(
    "name",
    slow_but({"attention", "lstm"}, ["convolutions_and_norms", "attention", "batch_norm", "lstm"]),
)
def test_what_is_kept_longer_is_held_as_long_as_planned(name: str) -> None:
    scene, model = SCENES[name], SCENES[name].model()
    plan = scene.plan(model, "recompute_all")
    early = plan.peak_bytes
    kept = replace(plan, schedule=_kept(plan), bound_seconds=0.0)
    assert kept.peak_bytes > 1.1 * early
    measured = measured_peak(scene, kept.apply(model))
    assert kept.peak_bytes == pytest.approx(measured, rel=0.02)


def _kept(plan: Plan) -> Schedule:
    """Free what backward frees only where it hands its gradients over."""
    graph, steps = plan.graph, plan.schedule.steps
    ops = [i for i, s in enumerate(steps) if s.action is Action.COMPUTE]
    begin = next(i for i in ops if graph.ops[steps[i].index].phase is Phase.BACKWARD)
    end = next(i for i in ops if graph.ops[steps[i].index].target == "accumulate_grad")
    freed = [s for s in steps[begin:end] if s.action is Action.FREE]
    large = {s for s in freed if graph.values[s.index].size_bytes >= LARGE}
    late = {
        s
        for s in large
        if not graph.values[s.index].name.endswith(".rng")
        and _made_last(graph, steps[begin:end], s)
    }
    held = [s for s in steps[begin:end] if s not in late]
    return Schedule((*steps[:begin], *held, *sorted(late, key=lambda s: s.index), *steps[end:]))


def _made_last(graph: Graph, steps: Sequence[Step], free: Step) -> bool:
    """Tell whether a value is freed once, and not made anew after that."""
    after = steps[steps.index(free) + 1 :]
    ops = [graph.ops[s.index] for s in after if s.action is Action.COMPUTE]
    return free not in after and not any(free.index in op.outputs for op in ops)
