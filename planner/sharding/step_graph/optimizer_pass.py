"""The last op of a step: the optimizer on this rank's part, its state and its time."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from planner.graphs import Kind, Op, Phase
from planner.graphs.capture.optimizer_step import OptimizerLike, OptimizerStep, optimizer_step
from planner.sharding.step_graph.builder import Draft
from planner.sharding.step_graph.step_rules import StepRules
from planner.sharding.wrapped.boundary import Parameter

HOST_BYTES_PER_SECOND = 20e9
"""What one rank gets of its host's memory, when the optimizer runs there: assumed, on the safe side
(eight channels of DDR4 or DDR5 move 200 GB/s and more, for eight ranks)."""


def add_optimizer(draft: Draft, rules: StepRules, optimizer: OptimizerLike | None) -> OptimizerStep:
    """Add the optimizer's step on the fullest rank's part and the state it keeps.

    Args:
        draft: with forward and backward.
        rules: of the strategy.
        optimizer: a name or a class; none adds nothing.
    """
    trained = [p for _, c in draft.captures_by_index() for p in c.parameters if p.trainable]
    part = rules.optimizer_part(trained, draft.configuration.spread)
    step = _optimizer_of(part, optimizer, accelerated=draft.cluster.device.name != "cpu")
    if optimizer is None:
        return step
    if step.state_bytes and not draft.elsewhere:
        draft.value(f"{step.name} state", step.state_bytes, Kind.OPTIMIZER)
    draft.ops.append(
        Op(
            "optimizer.step",
            step.name,
            tuple(draft.shards),
            (),
            _seconds(draft, rules, step),
            moved_bytes=step.moved_bytes,
            workspace_bytes=0 if draft.elsewhere else step.workspace_bytes,
            phase=Phase.OPTIMIZER,
            recomputable=False,
        )
    )
    return step


def _optimizer_of(
    parameters: Sequence[Parameter], optimizer: OptimizerLike | None, *, accelerated: bool
) -> OptimizerStep:
    """Run the optimizer on fakes; an accelerator's default is foreach, also for ``DTensor``."""
    if isinstance(optimizer, str) and accelerated and "_" not in optimizer:
        optimizer = f"{optimizer}_foreach"
    described = tuple((p.shape, p.itemsize) for p in parameters)
    return _optimizer_step(described, optimizer)  # type: ignore[arg-type] # all can be hashed


@functools.lru_cache(maxsize=64)
def _optimizer_step(
    described: tuple[tuple[tuple[int, ...], int], ...], optimizer: OptimizerLike | None
) -> OptimizerStep:
    import torch

    dtypes = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}
    fakes = [torch.empty(s, dtype=dtypes[size], device="meta") for s, size in described]
    return optimizer_step(fakes, optimizer, device="cpu")


def _seconds(draft: Draft, rules: StepRules, step: OptimizerStep) -> float:
    if draft.elsewhere:
        return step.moved_bytes / HOST_BYTES_PER_SECOND
    parameter_bytes = sum(group.shard for group in draft.groups.values())
    after = rules.after_update_seconds(parameter_bytes, draft.configuration.spread, draft.cluster)
    return step.seconds_on(draft.cluster.device) + after
