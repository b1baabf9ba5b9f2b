"""``torch.compile`` with a partitioner of ours: told of a step, or running one.

Knows how Dynamo hands graphs on and what its errors wrap. Knows nothing of plans.
"""

from __future__ import annotations

import logging
import math
import re
import traceback
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, cast

import sympy
import torch
from torch import Tensor, fx
from torch._dynamo import config as dynamo_config
from torch._dynamo.exc import BackendCompilerFailed, Unsupported
from torch._dynamo.source import TensorPropertySource
from torch._functorch import config as functorch_config
from torch._guards import CompileContext
from torch._inductor.compile_fx import compile_fx

from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.garbage import only_new_collected
from planner.graphs.torch_api.inductor.inductor_kernels import Kernels
from planner.graphs.torch_api.inductor.kept_operators import keeping
from planner.graphs.torch_api.inductor.partitioner import Halves, JointStep, Partitioner
from planner.graphs.torch_api.inductor.scheduler import SETTINGS, innermost, watching
from planner.graphs.torch_api.inductor.symbols import NUMBERS, AtMost

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Told(Exception):
    """Ends a compilation once the step has been handed over."""


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
    with suppress(_Told), traced_whole():
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
        raise _Told

    def no_training(*args: Any, **kwargs: Any) -> NoReturn:
        raise _Told

    settings = {**SETTINGS, "custom_partitioner_fn": Partitioner(cut, largest)}
    compile_fx(
        module,
        inputs,
        inner_compile=no_training,
        config_patches=settings,
        decompositions=keeping() if keep else None,
    )
    raise _Told


MANY_SIZES = 2**16
"""How many steps Dynamo may compile of one code: by default it gives up after eight."""
_LOGS = re.compile(r"(debug|info|warn|warning|error|critical|exception|log)(_\w+)?$")


@contextmanager
def traced_whole() -> Iterator[None]:
    """Let Dynamo trace steps that log, whose lines it leaves out, and raise errors as they were.

    A step inside ``DistributedDataParallel`` is not cut where its buckets end. Each size of a call
    is compiled by itself, however many there are.
    """
    # methods that libraries add, such as transformers' warning_once, included
    lines = {call for name, call in vars(logging.Logger).items() if _LOGS.match(name)}
    ignored = {*dynamo_config.ignore_logging_functions, *lines}
    whole = {"ignore_logging_functions": ignored, "optimize_ddp": False}
    limits = dict.fromkeys(("recompile_limit", "accumulated_recompile_limit"), MANY_SIZES)
    with dynamo_config.patch({**whole, **limits}), plain_errors():
        yield


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise what a partitioner or backend of ours raised, not what Dynamo makes of it.

    Raises:
        CaptureError: Dynamo cannot trace the code whole.
    """
    try:
        yield
    except BackendCompilerFailed as error:
        inner = innermost(error)
        if isinstance(inner, _Told) or type(inner).__module__.startswith("planner."):
            raise inner from None
        raise
    except Unsupported as error:
        where = _broken(error.real_stack, str(error.msg))
        raise CaptureError(
            f"torch.compile does not take the step whole: it breaks at {where}"
        ) from error


def _broken(stack: Sequence[traceback.FrameSummary], reason: str) -> str:
    """Return the line that was being traced, and in a line why it could not be."""
    why, *_ = reason.splitlines() or [""]
    if not stack:
        return f"a line that is not known: {why}"
    code = f" ({stack[-1].line})" if stack[-1].line else ""
    return f"{stack[-1].filename}:{stack[-1].lineno}{code}: {why}"


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


@dataclass(frozen=True)
class HandedGraph:
    """A graph that Dynamo hands to a backend, and which of a program's frames it is of.

    ``breaks`` says where the code after it could not be traced, and why, if it could not. After the
    ``last`` one Dynamo compiles no more of the frame, and runs what differs as it is. ``changing``
    are Python's numbers, but for sizes, that were others in a call before, as Dynamo names them.
    ``largest`` is what sizes are at most that are symbols, ``called`` what they are in this call,
    ``examples`` the inputs at the largest.
    """

    module: fx.GraphModule
    inputs: list[Any]
    frame: int | None
    breaks: str | None
    last: bool = False
    changing: tuple[str, ...] = ()
    largest: AtMost = NUMBERS
    called: tuple[int, ...] = ()
    examples: tuple[Any, ...] = ()


def traced(module: fx.GraphModule, inputs: list[Any], seen: dict[str, int]) -> HandedGraph:
    """Say what is known of a graph that a backend is called with.

    Sizes that Dynamo takes for symbols are known to be at most as large as they were in any call:
    a larger one is compiled again. Other numbers become what they are in this call.

    Args:
        module, inputs: what Dynamo calls a backend with.
        seen: the largest sizes of earlier calls that train, by name; this one's are added.
    """
    largest, called, examples = NUMBERS, (), tuple(inputs)
    trains = any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
    if trains and torch.is_grad_enabled():
        sizes = list(_sizes(module, seen))
        largest, called = _guarded(sizes), tuple(n.node.hint for n, _ in sizes)
        examples = tuple(_examples(module, largest))
    found = CompileContext.current_compile_id()
    reason = getattr(module, "compile_subgraph_reason", None)
    breaks = None
    if reason is not None and reason.graph_break:
        breaks = _broken(reason.user_stack, str(reason.reason))
    frame, again = (None, None) if found is None else (found.frame_id, found.frame_compile_id)
    last = again is not None and again + 1 >= dynamo_config.recompile_limit
    changing = tuple(_changing(module))
    return HandedGraph(module, inputs, frame, breaks, last, changing, largest, called, examples)


def _sizes(module: fx.GraphModule, seen: dict[str, int]) -> Iterator[tuple[torch.SymInt, int]]:
    """Yield the sizes that are symbols, and the most of each; other numbers become what they are.

    Raises:
        CaptureError: nothing is known of a size.
    """
    given = [n.meta["grapharg"] for n in module.graph.find_nodes(op="placeholder")]
    marked = dict(_marked(given))
    for graph_arg in given:
        if isinstance(found := graph_arg.example, Tensor):
            for dim, size in enumerate(found.shape):
                name = _size_of(graph_arg.source, dim)
                seen[name] = max(size, seen.get(name, 0))
    for graph_arg in given:
        number = graph_arg.example
        if not isinstance(number, torch.SymInt) or number.node.maybe_as_int() is not None:
            continue
        if not isinstance(graph_arg.source, TensorPropertySource):
            int(number)  # which Dynamo's guards take note of
            continue
        name = _name(graph_arg.source)
        if not number.node.has_hint():
            raise CaptureError(
                f"of {name} nothing is known (torch._dynamo.mark_unbacked), and a plan is for the "
                "largest size: say it with torch._dynamo.mark_dynamic(x, 0, min=2, max=4096)"
            )
        most = marked.get(name, max(number.node.hint, seen.get(name, 0)))
        upper = number.node.shape_env.var_to_range[number.node.expr].upper
        if upper.is_Integer:  # the code was traced for no more than that
            most = min(most, int(upper))
        seen[name] = max(most, seen.get(name, 0))
        yield number, most


NEAR = 64
"""So far below the most are numbers looked for that the code was traced for: even ones, such."""


def _guarded(sizes: Sequence[tuple[torch.SymInt, int]]) -> AtMost:
    """Return about the most of each size that the code was traced for, of which Dynamo's guards
    then see to it that no call is larger.
    """
    guards = [guard.expr for number, _ in sizes[:1] for guard in number.node.shape_env.guards]
    for less in (*range(NEAR), math.inf):
        most = {n.node.expr: int(max(n.node.hint, m - less)) for n, m in sizes}
        numbers = {symbol: sympy.Integer(m) for symbol, m in most.items()}
        if not any(guard.xreplace(numbers) == sympy.false for guard in guards):
            break
    for number, _ in sizes:
        bool(number <= most[number.node.expr])  # which they take note of
    return AtMost(most)


def _marked(given: Iterable[Any]) -> Iterator[tuple[str, int]]:
    """Yield the most that ``torch._dynamo.mark_dynamic`` was told of sizes, by name."""
    for graph_arg in given:
        for said in getattr(graph_arg.example, "_dynamo_dynamic_range", ()):
            if said.max is not None:
                yield _size_of(graph_arg.source, said.dim), said.max


def _size_of(source: Any, dim: int) -> str:
    return f"{_name(source)}.size()[{dim}]"


def _examples(module: fx.GraphModule, largest: AtMost) -> Iterator[Any]:
    """Yield what a graph is called with, at the largest sizes."""
    for node in module.graph.find_nodes(op="placeholder"):
        known, given = node.meta.get("example_value"), node.meta["grapharg"].example
        yield largest.of(given if known is None or not largest.numbers else known)


def _name(source: Any) -> str:
    name: str | Callable[[], str] = source.name  # a method in older versions
    return name if isinstance(name, str) else name()


def _changing(module: fx.GraphModule) -> Iterator[str]:
    """Yield the numbers that Dynamo takes for symbols and that are not the sizes of tensors."""
    for node in module.graph.find_nodes(op="placeholder"):
        given = node.meta.get("grapharg")
        is_number = given is not None and isinstance(given.example, torch.SymInt)
        if is_number and not isinstance(given.source, TensorPropertySource):
            yield _name(given.source)


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
    with suppress(_Told):
        _tell(graph.module, graph.inputs, told, keep=keep, largest=graph.largest)
    return told[0] if told else None
