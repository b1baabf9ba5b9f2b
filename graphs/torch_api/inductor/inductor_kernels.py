"""The kernels and buffers of a graph that Inductor has lowered, read off its scheduler.

Knows what each kernel reads and makes, and how it is handed its inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch._inductor.graph import GraphLowering
from torch._inductor.ir import (
    IRNode,
    MultiOutput,
    MultiOutputLayout,
    NoneAsConstantBuffer,
    NoneLayout,
    NonOwningLayout,
    Pointwise,
    ShapeAsConstantBuffer,
)
from torch._inductor.utils import get_dtype_size

from planner.graphs.torch_api.annotations import note, noted
from planner.graphs.torch_api.inductor.code_lines import CodeLine, code_of
from planner.graphs.torch_api.inductor.symbols import NUMBERS, AtMost
from planner.graphs.torch_api.operators import OpOverload

MARK = "remat_planner"
Layouts = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
"""The shape and the strides of each of some tensors."""


@dataclass(frozen=True)
class Buffer:
    """Memory that a kernel makes; ``node`` is the marked node whose value it holds, if one's.

    ``over`` is the buffer or input in whose memory it lies, if it has none of its own.
    """

    name: str
    size_bytes: int
    node: str | None
    over: str | None = None


@dataclass(frozen=True)
class FusedKernel:
    """One kernel: the buffers it makes, and the names of the buffers and inputs it reads.

    ``layouts`` are the shapes and strides of the tensors that a kernel outside is handed.
    """

    name: str
    makes: tuple[Buffer, ...]
    reads: tuple[str, ...]
    external: bool
    layouts: Layouts = ()


@dataclass(frozen=True)
class Kernels:
    """The kernels of a graph, in order, and what the lines of code around them hold.

    ``outputs`` are the names of the memory, made or an input's, that the graph returns, ``None``
    for what is no tensor; ``returned`` those of its nodes; ``strides`` how they lie in memory.
    """

    kernels: tuple[FusedKernel, ...]
    code: tuple[CodeLine, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str | None, ...]
    returned: tuple[str | None, ...]
    strides: tuple[tuple[int, ...] | None, ...]


def mark(node: fx.Node, name: str) -> None:
    """Let a node be known by a name in what the passes of the compiler make of it."""
    note(node, MARK, name)


def read(
    lowering: GraphLowering, returned: tuple[str | None, ...], largest: AtMost = NUMBERS
) -> Kernels:
    """Read the kernels of a graph whose code is written.

    Args:
        lowering: after its ``codegen``.
        returned: the names of the nodes that the graph returns.
        largest: what sizes that are symbols are at most.
    """
    scheduler = lowering.scheduler
    renamed: dict[str, str] = scheduler.mutation_real_name
    code = code_of(lowering, largest)
    returns = tuple(_returned(out, renamed) for out in lowering.graph_outputs)
    outputs = tuple(None if n is None else code.lies_in.get(n, n) for n in returns)
    made: dict[str, list[Any]] = {}  # kernel -> its buffers, those it returns in a tuple included
    owner: dict[str, str] = {}  # buffer -> its kernel
    nodes = []
    for node in scheduler.nodes:
        name = node.get_name()
        if isinstance(node.node, MultiOutput):
            (whole,) = node.node.inputs
            name = owner[whole.get_name()]  # type: ignore[union-attr]
        else:
            nodes.append(node)
        made.setdefault(name, []).extend(node.get_outputs())
        owner |= {buffer.get_name(): name for buffer in node.get_outputs()}
    reads = {node.get_name(): _reads(node, renamed, owner) for node in nodes}
    made_in_memory = {name for line in code.lines for name, _ in line.takes} | code.lies_in.keys()
    found = []
    for node in nodes:
        name, external = node.get_name(), bool(node.is_extern())
        buffers = [_buffer(b, renamed, code.lies_in, largest) for b in made[name]]
        kept = [b for b in buffers if external or b.name in renamed or b.name in made_in_memory]
        layouts = _layouts(node.node, largest) if external else ()
        found.append(FusedKernel(name, tuple(kept), reads[name], external, layouts))
    strides = tuple(_stride(out, largest) for out in lowering.graph_outputs)
    inputs = tuple(lowering.graph_inputs)
    return Kernels(tuple(found), code.lines, inputs, outputs, returned, strides)


def _stride(out: Any, largest: AtMost) -> tuple[int, ...] | None:
    if not isinstance(out, IRNode) or not out.has_tensor_output():
        return None
    return _numbers(out.get_stride(), largest)


def _layouts(kernel: Any, largest: AtMost) -> Layouts:
    """Return how the tensors lie that a kernel outside is handed, in order."""
    handed = [
        i for i in kernel.inputs if isinstance(i, IRNode) and i.maybe_get_stride() is not None
    ]
    return tuple(
        (_numbers(i.get_size(), largest), _numbers(i.get_stride(), largest)) for i in handed
    )


def _numbers(sizes: Iterable[Any], largest: AtMost) -> tuple[int, ...]:
    return tuple(map(largest.number, sizes))


def _returned(out: Any, renamed: dict[str, str]) -> str | None:
    """Return the name of the buffer or input that an output is, or lies in."""
    if isinstance(out, (NoneAsConstantBuffer, ShapeAsConstantBuffer)):
        return None
    name: str = out.get_name()
    return renamed.get(name, name)


def _reads(node: Any, renamed: dict[str, str], owner: dict[str, str]) -> tuple[str, ...]:
    """Return what a kernel reads of others, what it writes into included."""
    names = [renamed.get(d.name, d.name) for d in node.read_writes.reads]
    names += [renamed[b.get_name()] for b in node.get_outputs() if b.get_name() in renamed]
    return tuple(n for n in dict.fromkeys(names) if owner.get(n) != node.get_name())


def _buffer(made: Any, renamed: dict[str, str], lies_in: dict[str, str], largest: AtMost) -> Buffer:
    name, buffer = made.get_name(), made.node
    size = 0
    if name not in renamed and not isinstance(buffer.layout, (NoneLayout, MultiOutputLayout)):
        size = largest.number(buffer.get_numel()) * get_dtype_size(buffer.get_dtype())
    origin = buffer.get_origin_node() or _copied(buffer, largest)
    marked = None if origin is None else noted(origin, MARK)
    return Buffer(name, size, marked, lies_in.get(name))


def _copied(buffer: Any, largest: AtMost) -> fx.Node | None:
    """Return the node whose value a buffer holds for a kernel outside that wants it laid out so.

    What lies inside another buffer is a part of a concatenation: its origins do not tell which of
    the tensors that are concatenated it is.
    """
    part = isinstance(buffer.layout, NonOwningLayout)
    if part or not isinstance(getattr(buffer, "data", None), Pointwise):
        return None
    origins = buffer.get_origins()
    shape, dtype = _numbers(buffer.get_size(), largest), buffer.get_dtype()
    last = [n for n in origins if not any(user in origins for user in n.users)]
    found = [
        a
        for a in (last[0].all_input_nodes if len(last) == 1 else ())
        if a in origins and isinstance(value := largest.of(a.meta.get("val")), Tensor)
        if (tuple(value.shape), value.dtype) == (shape, dtype)
    ]
    return found[0] if len(found) == 1 and isinstance(last[0].target, OpOverload) else None
