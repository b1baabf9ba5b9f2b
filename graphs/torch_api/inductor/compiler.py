"""``torch.compile`` with a partitioner of ours: told of a step, or running one.

Knows nothing of plans.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import Tensor, fx
from torch._functorch import config as functorch_config
from torch._inductor.compile_fx import compile_fx

from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.garbage import only_new_collected
from planner.graphs.torch_api.inductor.handed_graphs import HandedGraph
from planner.graphs.torch_api.inductor.inductor_kernels import Kernels
from planner.graphs.torch_api.inductor.kept_operators import keeping
from planner.graphs.torch_api.inductor.partitioner import Halves, JointStep, Partitioner
from planner.graphs.torch_api.inductor.scheduler import SETTINGS, watching
from planner.graphs.torch_api.inductor.symbols import NUMBERS, AtMost
from planner.graphs.torch_api.inductor.whole_traces import StepTold, traced_whole

_Function = TypeVar("_Function", bound=Callable[..., Any])


def joint_step(function: Callable[..., Any], *args: Any, keep: bool = False) -> JointStep | None:
    """Return the joint graph that Inductor would cut, were a function compiled; nothing runs.

    Args:
        function: to be traced, whole.
        args: what it is called with.
        keep: the operators of losses as they are.

    Returns:
        ``None`` if nothing in it requires grad.

    Raises:
        CaptureError: it cannot be traced whole.
    """
    found = joint_step_with_inputs(function, *args, keep=keep)
    return None if found is None else found[0]


def joint_step_with_inputs(
    function: Callable[..., Any], *args: Any, keep: bool = False
) -> tuple[JointStep, tuple[Any, ...]] | None:
    """Return what ``joint_step`` does, and what the placeholders of forward stand for, in order.

    Args:
        function, args, keep: as for ``joint_step``.
    """
    told: list[JointStep] = []
    handed: list[tuple[Any, ...]] = []

    def backend(module: fx.GraphModule, inputs: list[Tensor]) -> Any:
        placeholders = module.graph.find_nodes(op="placeholder")
        handed.append(tuple(n.meta["grapharg"].example for n in placeholders))
        return _tell(module, inputs, told, keep=keep)

    compiled = torch.compile(own_code(function), fullgraph=True, dynamic=False, backend=backend)
    with suppress(StepTold), traced_whole():
        compiled(*args)
    return (told[0], handed[0]) if told else None


def _tell(
    module: fx.GraphModule,
    inputs: list[Any],
    told: list[JointStep],
    *,
    keep: bool,
    largest: AtMost = NUMBERS,
) -> NoReturn:
    """Add the step that Inductor would cut, if it would, to what is told."""

    def cut(step: JointStep) -> Halves:
        told.append(step)
        raise StepTold

    def no_training(*args: Any, **kwargs: Any) -> NoReturn:
        raise StepTold

    settings = {**SETTINGS, "custom_partitioner_fn": Partitioner(cut, largest)}
    compile_fx(
        module,
        inputs,
        inner_compile=no_training,
        config_patches=settings,
        decompositions=keeping() if keep else None,
    )
    raise StepTold


Check = Callable[[Kernels, Kernels], None]
"""Called with the kernels of forward and backward before they are compiled; raises to refuse."""


def compiled_by(
    function: _Function,
    partitioner: Partitioner,
    check: Check | None = None,
    *,
    keep: bool = False,
) -> _Function:
    """Compile a function with Inductor, its training graphs cut by a partitioner.

    Args:
        function: to be compiled, whole: a graph break is an error.
        partitioner: that cuts.
        check: of what is compiled.
        keep: the operators of losses as they are, until the partitioner lets them go.
    """

    def backend(module: fx.GraphModule, inputs: list[Any]) -> Any:
        return _compiled(module, inputs, partitioner, check, keep=keep)

    compiled = torch.compile(own_code(function), fullgraph=True, dynamic=False, backend=backend)
    return cast(_Function, compiled)


@only_new_collected()
def _compiled(
    module: fx.GraphModule,
    inputs: list[Any],
    partitioner: Partitioner,
    check: Check | None,
    *,
    keep: bool,
) -> Callable[..., Any]:
    """Compile a graph, backward at once, and check what is made of it."""
    made: dict[bool, Kernels] = {}
    refused: list[Exception] = []

    def told(kernels: Kernels, backward: bool) -> None:  # noqa: FBT001
        made[backward] = kernels
        if not backward or check is None:
            return
        try:
            check(made[False], kernels)
        except Exception as error:
            refused.append(error)
            raise

    settings = {**SETTINGS, "custom_partitioner_fn": partitioner}
    at_once = {"force_non_lazy_backward_lowering": True, "enable_autograd_cache": False}
    before = partitioner.cuts
    try:
        with functorch_config.patch(at_once):
            compiled = compile_fx(
                module,
                inputs,
                inner_compile=watching(told, partitioner.largest),
                config_patches=settings,
                decompositions=keeping() if keep else None,
            )
    except Exception:
        if refused:
            raise refused[0] from None
        raise
    if check is not None and partitioner.cuts > before and True not in made:
        raise CaptureError(
            "Inductor compiled where its kernels cannot be read, in another process or out of a "
            "cache: compile in this process (TORCHINDUCTOR_FX_COMPILE_MODE unset)"
        )
    return cast(Callable[..., Any], compiled)


def own_code(function: _Function) -> _Function:
    """Return a function as one of its own to Dynamo, which keeps what it compiled by code."""
    assert isinstance(function, types.FunctionType)
    code = function.__code__.replace()
    made = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    made.__kwdefaults__ = function.__kwdefaults__
    return cast(_Function, made)


def compiled_graph(
    graph: HandedGraph,
    partitioner: Partitioner,
    check: Check | None = None,
    *,
    keep: bool = False,
) -> Callable[..., Any]:
    """Compile a graph with Inductor, which a partitioner cuts if it is a training step's.

    Args:
        graph: as a backend gets it.
        partitioner: that cuts.
        check: of what is compiled.
        keep: the operators of losses as they are, until the partitioner lets them go.
    """
    return _compiled(graph.module, graph.inputs, partitioner, check, keep=keep)


def handed_step(graph: HandedGraph, *, keep: bool = False) -> JointStep | None:
    """Return the joint graph that Inductor would cut, were a graph compiled; nothing is.

    Args:
        graph: as a backend gets it.
        keep: the operators of losses as they are.

    Returns:
        ``None`` if it is no training step.
    """
    told: list[JointStep] = []
    with suppress(StepTold):
        _tell(graph.module, graph.inputs, told, keep=keep, largest=graph.largest)
    return told[0] if told else None
