"""Graphs that Dynamo hands to a backend: of which frame, broken where, and the sizes they are for.

Knows how Dynamo names sizes and what guards take note of. Knows nothing of compiling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch._dynamo import config as dynamo_config
from torch._dynamo.source import TensorPropertySource
from torch._guards import CompileContext

from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.inductor.symbols import NUMBERS, AtMost
from planner.graphs.torch_api.inductor.whole_traces import broken_at


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
        breaks = broken_at(reason.user_stack, str(reason.reason))
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
