"""``apply``: from a plan for several ranks to a model that torch.distributed trains.

Every unit gets its own schedule and is wrapped by itself, so that torch's hooks, its reduction of
gradients and its prefetch work as they always do; the root stays as it is. How a decision is
spelled in PyTorch, the strategy says.

A rank that dies ends the others with an error: at once where the connection breaks, and after the
process group's timeout (30 minutes unless ``init_process_group(timeout=...)`` says otherwise) where
it merely falls silent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.optim import Optimizer

from planner.errors import PlanMismatch
from planner.graphs.capture.guards.call import device_of
from planner.plan.configuration import Configuration, UnitPlan
from planner.running.apply import checked_mismatch, planned_class, require_planned
from planner.running.engines import engine_of
from planner.sharding.parted.parallelize import Styles, parallelize
from planner.sharding.parted.same_plan import all_apply, styles_of, to_be_alike
from planner.sharding.planned_root import planned_root
from planner.sharding.wrapped.compute_precision import in_precision
from planner.sharding.wrapping import Wrapping

if TYPE_CHECKING:
    from planner.plan.sharded_step_plan import ShardedStepPlan


def apply(
    plan: ShardedStepPlan,
    model: nn.Module,
    *,
    mesh: DeviceMesh | None = None,
    on_mismatch: str = "error",
    tensor_parallel: Any = None,
    loss: Callable[..., Any] | None = None,
) -> nn.Module:
    """Return the model wrapped as the plan says, on this rank; call it on every rank.

    The model is taken over: its units become planned in place, and under FSDP its parameters become
    shards. Names in its ``state_dict`` stay; under DDP the wrapper adds ``module.``, as always.
    Train it as any other: each rank its own part of the batch, the optimizer made after this (under
    ZeRO-1 by ``make_optimizer``). Under autocast plans (DDP in bfloat16) call it within
    ``torch.autocast(device, torch.bfloat16)``.

    Args:
        plan: made for this model and this number of ranks.
        model: on its device, or on the CPU of a rank that has an accelerator.
        mesh: the ranks: one dimension, or (replicas, shards) for HSDP, and behind these the ranks
            over which layers are parted, if they are. Made if not given.
        on_mismatch: what a call of a unit does that is not the planned one: "error" or "plain",
            as for ``planner.running.apply.apply``.
        tensor_parallel: the styles that the plan was made with, if they were not the model's own:
            a mapping or a ``TensorParallel``, as for ``fit``.
        loss: the callable that the plan computes in chunks, if the plan comes from a file.

    Where the loss is computed in chunks the plan runs the root, too: a call of another size than
    the planned one is a mismatch then, and with ``loss=`` the model is called with ``targets=`` and
    returns the loss.

    Raises:
        PlanMismatch: another model, another number of ranks, another mesh, other styles, other
            plans on other ranks, no process group, or a loss that the plan does not compute.
        ValueError: an unknown ``on_mismatch``.
    """
    configuration = plan.configuration
    with all_apply(configuration, mesh) as told:
        told["on_mismatch"] = on_mismatch = checked_mismatch(on_mismatch, ("error", "plain"))
        styles = styles_of(plan, model, tensor_parallel)
        _check_ranks(configuration, mesh)
        told.update(to_be_alike(plan, model, mesh))
    ranks = _parted(model, configuration, mesh, styles)
    with all_apply(configuration, mesh):
        classes = _planned(plan, model, on_mismatch, loss)
    for path, cls in classes.items():
        model.get_submodule(path).__class__ = cls
    return _wrapped(model, configuration, plan.units, ranks)


def wrap(
    model: nn.Module,
    configuration: Configuration,
    units: Sequence[UnitPlan],
    mesh: DeviceMesh | None = None,
    *,
    styles: Styles | None = None,
) -> nn.Module:
    """Shard a model as a configuration says, its units running as they are.

    Args:
        model: to be taken over.
        configuration: what to shard over which ranks.
        units: which modules are units, and whose weight is kept from forward to backward.
        mesh: the ranks, as for ``apply``.
        styles: how layers are parted, where they are.
    """
    _check_ranks(configuration, mesh)
    ranks = _parted(model, configuration, mesh, styles)
    return _wrapped(model, configuration, units, ranks)


def _parted(
    model: nn.Module, configuration: Configuration, mesh: DeviceMesh | None, styles: Styles | None
) -> DeviceMesh:
    """Part the layers of a model, where they are; return the mesh of all ranks."""
    ranks = _ranks(configuration, model, mesh)
    if configuration.tensor_ranks > 1:
        assert styles is not None, "layers are parted by styles"
        parallelize(model, ranks[_names(ranks)[-1]], styles)
    return ranks


def _wrapped(
    model: nn.Module, configuration: Configuration, units: Sequence[UnitPlan], ranks: DeviceMesh
) -> nn.Module:
    over = ranks if configuration.tensor_ranks == 1 else ranks[_names(ranks)[:-1]]
    return configuration.strategy.part(Wrapping).wrap(model, configuration, units, over)


def make_optimizer(
    configuration: Configuration,
    model: nn.Module,
    optimizer: type[Optimizer] = torch.optim.AdamW,
    **options: Any,
) -> Optimizer:
    """Make an optimizer for an applied model, which keeps what the strategy leaves to this rank.

    Args:
        configuration: of the plan.
        model: what ``apply`` returned.
        optimizer: its class.
        options: of the class.
    """
    return configuration.strategy.part(Wrapping).make_optimizer(model, optimizer, options)


def _ranks(configuration: Configuration, model: nn.Module, mesh: DeviceMesh | None) -> DeviceMesh:
    """Return the mesh of a configuration, or the one given."""
    if mesh is not None:
        return mesh
    names, shape = zip(*configuration.mesh, strict=True)
    return init_device_mesh(_device(model), shape, mesh_dim_names=names)


def _names(mesh: DeviceMesh) -> tuple[str, ...]:
    assert mesh.mesh_dim_names is not None, "a mesh of several dimensions has names"
    return mesh.mesh_dim_names


def _check_ranks(configuration: Configuration, mesh: DeviceMesh | None) -> None:
    """Refuse other ranks than those that a configuration is for."""
    if not dist.is_initialized():
        raise PlanMismatch(
            f"the plan is for {configuration.world_size} ranks, but there is no process group: "
            "start with torchrun and call torch.distributed.init_process_group first"
        )
    _check_given(mesh)
    _check_nodes(configuration, mesh)
    dimensions = configuration.mesh
    shape = tuple(ranks for _, ranks in dimensions)
    if mesh is None:
        if (found := dist.get_world_size()) != configuration.world_size:
            raise PlanMismatch(
                f"the plan is for {configuration.world_size} ranks, the process group has {found}; "
                f"make a plan with world_size={found}"
            )
        return
    named = ", ".join(f"{count} to {name}" for name, count in dimensions)
    said = f", {named}" if len(shape) > 1 else ""
    if tuple(mesh.shape) != shape:
        raise PlanMismatch(f"the mesh has shape {tuple(mesh.shape)}, the plan is for {shape}{said}")
    if len(shape) > 1 and not mesh.mesh_dim_names:
        raise PlanMismatch(
            "the mesh has dimensions without names, which a plan cannot take apart: make it with "
            f"mesh_dim_names={tuple(name for name, _ in dimensions)}"
        )


def _check_given(mesh: Any) -> None:
    """Refuse what is no mesh, or one that this rank is not in."""
    if mesh is not None and not isinstance(mesh, DeviceMesh):
        raise PlanMismatch(
            f"mesh is {mesh!r}; expected a torch.distributed.device_mesh.DeviceMesh, or none"
        )
    if mesh is not None and mesh.get_coordinate() is None:
        raise PlanMismatch(
            f"the mesh holds ranks {mesh.mesh.flatten().tolist()}, and this is rank "
            f"{dist.get_rank()}: call apply on the ranks of its mesh alone"
        )


def _check_nodes(configuration: Configuration, mesh: DeviceMesh | None) -> None:
    """Refuse to part layers over ranks that are not neighbours within a node."""
    if (parts := configuration.tensor_ranks) == 1:
        return
    on_node = os.environ.get("LOCAL_WORLD_SIZE", "")  # torchrun says so
    if on_node.isdecimal() and int(on_node) % parts:
        raise PlanMismatch(
            f"the plan parts layers over {parts} ranks of a node, and this node runs {on_node}: "
            f"their groups would span nodes; plan again with devices_per_node={on_node}"
        )
    together = [] if mesh is None else mesh.mesh.reshape(-1, mesh.shape[-1]).tolist()
    if apart := [ranks for ranks in together if ranks != list(range(ranks[0], ranks[-1] + 1))]:
        raise PlanMismatch(
            f"the last dimension of the mesh holds ranks {apart[0]}, which are not neighbours; "
            f"the plan parts layers over {parts} neighbouring ranks of a node, which see the same "
            f"samples: make the mesh by init_device_mesh(..., "
            f"{tuple(count for _, count in configuration.mesh)}), or leave mesh= out"
        )


def _device(model: nn.Module) -> str:
    found = device_of(model).type
    return "cuda" if found == "cpu" and dist.get_backend() == "nccl" else found


def _planned(
    plan: ShardedStepPlan,
    model: nn.Module,
    on_mismatch: str,
    loss: Callable[..., Any] | None,
) -> Mapping[str, type]:
    """Return the planned class of every unit; nothing is changed before all of them are known.

    That of the root, if it is planned, is under the path of the model itself.
    """
    if loss is not None and plan.root is None:
        raise PlanMismatch(
            "loss= is what a plan computes in chunks, and this one computes no loss: leave it out "
            "and call the loss with what the model returns, or plan with loss_chunks="
        )
    modules = dict(model.named_modules())
    if missing := [unit.path for unit in plan.units if unit.path not in modules]:
        raise PlanMismatch(f"{type(model).__name__} has no module {missing[0]!r}, a planned unit")
    found = {}
    device = device_of(model).type
    alike = dict[tuple[Any, ...], type]()
    compiles = engine_of(plan.step.engine).forward is not None
    with in_precision(model, plan.configuration.computes_in, device):
        for unit in (u for u in plan.units if not u.row_wise):
            inner = plan.part(plan.kinds[unit.kind], unit.schedule, unit.held_bytes)
            module = modules[unit.path]
            key = type(module), unit.kind, unit.schedule
            try:
                if compiles and key in alike:  # what is compiled for one unit is for all alike
                    require_planned(inner, module)
                else:
                    alike[key] = planned_class(
                        inner, module, on_mismatch=on_mismatch, compared=False
                    )
            except PlanMismatch as error:
                raise PlanMismatch(f"unit {unit.path!r}: {error}") from error
            found[unit.path] = alike[key]
        if plan.root is not None:
            found[""] = planned_root(plan, model, on_mismatch=on_mismatch, loss=loss)
    return found
