"""What has to be so before layers are parted: the plan's own styles, and one plan on all ranks.

Ranks that shard or part otherwise wait for each other's collectives for ever.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from planner.errors import CaptureError, PlanMismatch
from planner.plan.configuration import Configuration
from planner.plan.sharded_step_plan import ShardedStepPlan
from planner.running.one_plan import all_or_none, digest, digest_of, groups_to_ask
from planner.sharding.parted.declared import declared
from planner.sharding.parted.parallelize import Styles, described
from planner.tensor_parallel import tensor_parallel_of


def styles_of(plan: ShardedStepPlan, model: nn.Module, said: Any) -> Styles:
    """Return the styles by which a plan parts a model's layers; none if they stay whole.

    Args:
        plan: that is applied.
        model: whole, which may declare the styles.
        said: what the person says of them, as for ``fit``; none takes the model's own.

    Raises:
        PlanMismatch: they are not those that the plan was made with.
    """
    c, tensor = plan.configuration, plan.tensor
    if c.tensor_ranks == 1:
        return {}
    assert tensor is not None, "a plan that parts layers says how"
    asked = None if said is None else tensor_parallel_of(said)
    given: Styles | None = None
    if asked is not None:
        given = asked.sequence if c.sequence_parallel else asked.styles
    if given is None:
        if not tensor.declared and asked is None:
            raise PlanMismatch(
                "the plan was made with styles of tensor parallelism that are not the model's own: "
                "pass them again, plan.apply(model, tensor_parallel=...)"
            )
        given = _own(model, sequence=c.sequence_parallel)
    found = described(given)
    if found != tensor.styles:
        before, after = dict(tensor.styles), dict(found)
        path = next((p for p in {**before, **after} if before.get(p) != after.get(p)), "the order")
        raise PlanMismatch(
            f"the style of {path!r} is {after.get(path, 'missing')}, planned for "
            f"{before.get(path, 'none')}: pass tensor_parallel= as it was for fit, or plan again"
        )
    return given


def _own(model: nn.Module, *, sequence: bool) -> Styles:
    try:
        own = declared(model)
    except CaptureError as error:
        raise PlanMismatch(f"the plan parts layers as the model declares, but {error}") from error
    styles = own.sequence if sequence else own.styles
    if styles is None:
        raise PlanMismatch(
            "the plan has sequence parallelism for a stack of layers that this model does not have"
        )
    return styles


def all_apply(
    configuration: Configuration, mesh: DeviceMesh | None
) -> AbstractContextManager[dict[str, str]]:
    """Return a block that all ranks of a plan leave well, or none; see ``all_or_none``.

    Args:
        configuration: of this rank's plan.
        mesh: over the ranks; none is all there are.
    """
    asked = [mesh] if isinstance(mesh, DeviceMesh) else []
    ranks = configuration.world_size if asked else sys.maxsize
    return all_or_none(groups_to_ask(asked, ranks))


def to_be_alike(plan: ShardedStepPlan, model: nn.Module, mesh: DeviceMesh | None) -> dict[str, str]:
    """Return what has to be the same on all ranks, by what it is called.

    Args:
        plan: of this rank.
        model: whole, before its layers are parted.
        mesh: that this rank was given; without one it makes its own, together with all others.
    """
    units = [(u.path, u.kind, u.keep_gathered, u.row_wise, u.held_bytes) for u in plan.units]
    styles = plan.tensor.styles if plan.tensor else ()
    tensors = [(n, list(t.shape), str(t.dtype), t.requires_grad)
               for n, t in (*model.named_parameters(), *model.named_buffers())]  # fmt: skip
    return {
        "plan": digest_of([repr(plan.configuration), digest(plan.step), units, styles]),
        "model": digest_of(tensors),
        "mesh": "" if mesh is None else digest_of([mesh.mesh.tolist(), mesh.mesh_dim_names]),
    }
