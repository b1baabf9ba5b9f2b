"""What it takes, and what it gives, to have the states of one group of parameters on the host.

The numbers are one-sided: whichever other groups are there, too, moving a group frees no more and
takes no less. So they add up to bounds for every choice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from planner.graphs import Phase
from planner.graphs.capture.optimizer_step import OptimizerLike
from planner.sharding.step_graph.builder import Draft
from planner.sharding.step_graph.optimizer_pass import HOST_BYTES_PER_SECOND, optimizer_of, parts_of
from planner.sharding.step_graph.sharded_step import ShardedStep
from planner.sharding.step_graph.step_rules import StepRules


@dataclass(frozen=True, slots=True)
class Movable:
    """The states of one unit, or of the root, whose path is empty.

    On the device at most ``saved_bytes`` less are held at any moment, and ``workspace_bytes`` less
    of the optimizer's temporaries; on the host at least ``host_bytes`` more. The step takes at
    least ``seconds`` more.
    """

    path: str
    saved_bytes: int
    workspace_bytes: int
    host_bytes: int
    seconds: float


@dataclass(frozen=True)
class MovableStates:
    """A step none of whose states is on the host, and what of it may be.

    ``step`` takes no longer and holds no more than that: its optimizer takes only the time in which
    its bytes pass, and has no temporaries. ``optimizer_bytes`` are held in the step of the
    optimizer as it is. ``tables`` are the units whose rows are looked up where they are: they stay.
    """

    step: ShardedStep
    groups: tuple[Movable, ...]
    optimizer_bytes: int
    tables: tuple[str, ...] = ()


def movable_states(
    step: ShardedStep, draft: Draft, rules: StepRules, optimizer: OptimizerLike | None
) -> MovableStates | None:
    """Return what of a step may be on the host; ``None`` where nothing can, one by one.

    That is: on a device without other memory than its host's, under a strategy that moves nothing,
    or with an optimizer whose state is not the sum of that of its parameters. What it moves once,
    however many these are, counts for none of them.

    Args:
        step: with all states on the device.
        draft: of the step.
        rules: of the strategy.
        optimizer: that steps the parameters.
    """
    device = draft.cluster.device
    if rules.waiting_seconds is None or device.name == "cpu" or draft.configuration.offload:
        return None
    parts = parts_of(draft, rules)
    alone = {i: optimizer_of([part], optimizer, accelerated=True) for i, part in parts.items()}
    whole = optimizer_of(list(parts.values()), optimizer, accelerated=True)
    shared = max(0, sum(one.moved_bytes for one in alone.values()) - whole.moved_bytes)
    moved = {i: max(0, one.moved_bytes - shared) for i, one in alone.items()}
    if sum(one.state_bytes for one in alone.values()) != whole.state_bytes:
        return None
    groups, rate = [], device.bytes_per_second()
    for i, group in draft.groups.items():
        if i in draft.row_wise:
            continue  # its rows stay where they are looked up
        state = workspace = 0
        seconds = rules.waiting_seconds(draft, i) * draft.configuration.accumulation
        if (one := alone.get(i)) is not None:
            state, workspace = one.state_bytes, one.workspace_bytes
            seconds += moved[i] / HOST_BYTES_PER_SECOND - moved[i] / rate
        held = group.shard + group.gradient_shard + state
        groups.append(Movable(draft.module(i), held, workspace, held, seconds))
    tables = tuple(map(draft.module, draft.row_wise))
    graph, last = step.graph, step.graph.ops[-1]
    if last.phase is not Phase.OPTIMIZER:
        return MovableStates(step, tuple(groups), 0, tables)
    read = sum(graph.values[v].size_bytes for v in {*last.inputs} - graph.resident)
    needed = graph.resident_bytes + read + last.workspace_bytes
    passes = replace(last, seconds=sum(moved.values()) / rate, workspace_bytes=0)
    graph = replace(graph, ops=(*graph.ops[:-1], passes))
    return MovableStates(replace(step, graph=graph), tuple(groups), needed, tables)
