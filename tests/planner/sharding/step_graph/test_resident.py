"""What a step holds from end to end, under which configuration."""

from __future__ import annotations

import pytest

from planner.graphs import Kind, Phase
from planner.plan.configuration import Configuration
from planner.plan.strategy import Strategy
from planner.sharding.step_graph.sharded_step import ShardedStep
from tests.planner.sharding.assembled import (
    DDP,
    FSDP,
    ZERO1,
    captures,
    resident,
    step,
    unit_parameters,
)


def test_states_are_divided_as_the_stage_says() -> None:
    whole = 4 * (64 * 32 + 2 * 32)  # the tied embedding and the norm
    whole += sum(captures().kind(0).graph.values[p.value].size_bytes for p in unit_parameters()) * 3
    assert resident(step(DDP), Kind.PARAMETER) == whole
    assert resident(step(ZERO1), Kind.PARAMETER) == whole
    assert resident(step(FSDP), Kind.PARAMETER) == whole // 2
    assert resident(step(DDP), Kind.OPTIMIZER) > resident(step(ZERO1), Kind.OPTIMIZER)
    four = step(Configuration(Strategy.FSDP, 4, micro_batch=2))
    assert resident(four, Kind.PARAMETER) == whole // 4


def test_accumulation_counts_micro_steps_and_keeps_their_gradients() -> None:
    once = step(FSDP)
    thrice = step(Configuration(Strategy.FSDP, 2, micro_batch=2, accumulation=3))
    seconds = lambda s, phase: sum(o.seconds for o in s.graph.ops if o.phase is phase)  # noqa: E731
    for phase in (Phase.FORWARD, Phase.BACKWARD, Phase.COMMUNICATION):
        assert seconds(thrice, phase) == pytest.approx(3 * seconds(once, phase))
    assert seconds(thrice, Phase.OPTIMIZER) == pytest.approx(seconds(once, Phase.OPTIMIZER))
    held = resident(thrice, Kind.GRADIENT)
    assert held == resident(once, Kind.PARAMETER)


def test_offloading_moves_states_to_the_host() -> None:
    offloaded = Configuration(Strategy.FSDP, 2, micro_batch=2, offload=True)
    found = step(offloaded, "A100-80GB")
    assert resident(found, Kind.PARAMETER) == resident(found, Kind.OPTIMIZER) == 0
    assert found.host_bytes >= 4 * resident(step(FSDP), Kind.PARAMETER)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_what_stays_and_what_leaves_is_all_there_is(accumulation: int) -> None:
    """Of any units: the device and the host hold what the device holds where nothing leaves."""

    def made(*staying: str, offload: bool = True) -> ShardedStep:
        c = Configuration(
            Strategy.FSDP, 2, accumulation=accumulation, offload=offload, staying=staying
        )
        return step(c, "A100-80GB")

    none, part, everything, root = made(offload=False), made("", "h.1"), made(), made("")
    for kind in (Kind.PARAMETER, Kind.OPTIMIZER, Kind.GRADIENT):
        of_root = resident(root, kind)
        assert resident(everything, kind) == 0
        assert resident(none, kind) - of_root == 3 * (resident(part, kind) - of_root)
    assert 0 < part.host_bytes < root.host_bytes < everything.host_bytes
    assert none.graph.seconds < min(part.graph.seconds, everything.graph.seconds)
