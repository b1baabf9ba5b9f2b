"""The last op of a step: the optimizer on this rank's part, its state and its time.

Parameters on the host are stepped there.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, islice

from planner.graphs import Kind, Op, Phase
from planner.graphs.capture.optimizer_step import OptimizerLike, OptimizerStep, optimizer_step
from planner.sharding.step_graph.builder import ROOT, Draft
from planner.sharding.step_graph.step_rules import StepRules

HOST_BYTES_PER_SECOND = 20e9
"""What one rank gets of its host's memory, when the optimizer runs there: assumed, on the safe side
(eight channels of DDR4 or DDR5 move 200 GB/s and more, for eight ranks)."""


def add_optimizer(draft: Draft, rules: StepRules, optimizer: OptimizerLike | None) -> OptimizerStep:
    """Add the optimizer's step on the fullest rank's part and the state it keeps.

    Returns what it is on the host.

    Args:
        draft: with forward and backward.
        rules: of the strategy.
        optimizer: a name or a class; none adds nothing.
    """
    accelerated = draft.cluster.device.name != "cpu"
    parts = parts_of(draft, rules)
    here, there = (
        optimizer_of([parts[i] for i in among], optimizer, accelerated=accelerated)
        for among in (
            [i for i in parts if not draft.elsewhere(i)],
            [i for i in parts if draft.on_host(i)],
        )
    )
    if optimizer is None:
        return there
    if here.state_bytes:
        draft.value(f"{here.name} state", here.state_bytes, Kind.OPTIMIZER)
    draft.ops.append(
        Op(
            "optimizer.step",
            (here if here.calls else there).name,
            tuple(draft.shards),
            (),
            _seconds(draft, rules, here)
            + (there.moved_bytes / HOST_BYTES_PER_SECOND if accelerated else 0.0),
            moved_bytes=here.moved_bytes + (there.moved_bytes if accelerated else 0),
            workspace_bytes=here.workspace_bytes,
            phase=Phase.OPTIMIZER,
            recomputable=False,
        )
    )
    return there


Described = tuple[tuple[tuple[int, ...], int], ...]
"""Shapes of parameters and bytes of an element."""


def parts_of(draft: Draft, rules: StepRules) -> dict[int, Described]:
    """Return what the fullest rank's optimizer sees: of root and units each, if it sees of all."""
    groups = {i: [p for p in c.parameters if p.trainable] for i, c in draft.captures_by_index()}
    trained = [p for group in groups.values() for p in group]
    part = rules.optimizer_part(trained, draft.configuration.spread)
    seen = iter([(p.shape, p.itemsize) for p in part])
    if len(part) != len(trained):  # whole parameters are handed out
        return {ROOT: tuple(seen)}
    return {i: tuple(islice(seen, len(group))) for i, group in groups.items() if group}


def optimizer_of(
    parts: Sequence[Described], optimizer: OptimizerLike | None, *, accelerated: bool
) -> OptimizerStep:
    """Run the optimizer on fakes; an accelerator's default is foreach, also for ``DTensor``.

    Units that follow each other and are alike add alike to what one of torch's own optimizers
    holds, which takes parameters one by one or in lists: a few of them show how much. Where they
    do not, and for all other optimizers, all are run.

    Args:
        parts: what the root and each unit have, in order.
        optimizer: a name or a class; none is no step.
        accelerated: it does not run on a CPU.
    """
    if not isinstance(optimizer, str):
        return _optimizer_step(sum(parts, ()), optimizer)  # type: ignore[arg-type] # all can be hashed
    if accelerated and "_" not in optimizer:
        optimizer = f"{optimizer}_foreach"
    runs = [(part, len(list(alike))) for part, alike in groupby(parts)]
    return _folded(runs, optimizer) or _optimizer_step(sum(parts, ()), optimizer)


_SHOWN = 2
"""How many alike units that follow each other are run at least, to see what another one adds."""
_FIELDS = ("state_bytes", "workspace_bytes", "moved_bytes", "calls")


def _folded(runs: Sequence[tuple[Described, int]], optimizer: str) -> OptimizerStep | None:
    """Return the step of all units, seen of a few; none where that does not tell.

    It tells where a third one and a fourth add the same.
    """
    few = [min(count, _SHOWN) for _, count in runs]

    def step(counts: Sequence[int]) -> OptimizerStep:
        shown = (part * n for (part, _), n in zip(runs, counts, strict=True))
        return _optimizer_step(sum(shown, ()), optimizer)

    found = first = step(few)
    for i, (_, count) in enumerate(runs):
        if count <= _SHOWN:
            continue
        more = [step([n + (j == i) * m for j, n in enumerate(few)]) for m in (1, 2)]
        for field in _FIELDS:
            before, one, two = (getattr(s, field) for s in (first, *more))
            if two - one != one - before:
                return None
            added = (one - before) * (count - _SHOWN)
            found = replace(found, **{field: getattr(found, field) + added})
    return found


@functools.lru_cache(maxsize=256)
def _optimizer_step(parameters: Described, optimizer: OptimizerLike | None) -> OptimizerStep:
    import torch

    dtypes = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}
    fakes = [torch.empty(s, dtype=dtypes[size], device="meta") for s, size in parameters]
    return optimizer_step(fakes, optimizer, device="cpu")


def _seconds(draft: Draft, rules: StepRules, step: OptimizerStep) -> float:
    parameter_bytes = sum(group.shard for group in draft.groups.values())
    after = rules.after_update_seconds(parameter_bytes, draft.configuration.spread, draft.cluster)
    return step.seconds_on(draft.cluster.device) + after
