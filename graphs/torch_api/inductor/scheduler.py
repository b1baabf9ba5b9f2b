"""The kernels and buffers that Inductor will make of a graph, asked of its own scheduler.

The graph is lowered, fused and put in order as for running it; no code is generated. Knows what
each kernel reads and makes. Knows nothing of what the graph is half of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx
from torch._guards import detect_fake_mode
from torch._inductor import config
from torch._inductor.compile_fx import _recursive_post_grad_passes
from torch._inductor.debug import DebugContext
from torch._inductor.fx_passes.post_grad import view_to_reshape
from torch._inductor.graph import GraphLowering
from torch._inductor.ir import (
    MultiOutput,
    MultiOutputLayout,
    NoneAsConstantBuffer,
    NoneLayout,
    ShapeAsConstantBuffer,
)
from torch._inductor.utils import get_dtype_size
from torch._inductor.virtualized import V

from planner.graphs.torch_api.inductor.partitioner import copy_of

MARK = "remat_planner"


@dataclass(frozen=True)
class Buffer:
    """Memory that a kernel makes; ``node`` is the marked node whose value it holds, if one's."""

    name: str
    size_bytes: int
    node: str | None


@dataclass(frozen=True)
class FusedKernel:
    """One kernel: the buffers it makes, and the names of the buffers and inputs it reads."""

    name: str
    makes: tuple[Buffer, ...]
    reads: tuple[str, ...]
    external: bool


@dataclass(frozen=True)
class Kernels:
    """The kernels of a graph, in order.

    ``outputs`` are the names of the buffers or inputs that the graph returns, ``None`` for what is
    no tensor.
    """

    kernels: tuple[FusedKernel, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str | None, ...]


def mark(node: fx.Node, name: str) -> None:
    """Let a node be known by a name in what the passes of the compiler make of it."""
    node.meta["custom"] = {**(node.meta.get("custom") or {}), MARK: name}


def kernels_of(module: fx.GraphModule, *, backward: bool) -> Kernels:
    """Return the kernels that Inductor makes of one half of a step.

    Args:
        module: the half, with a fake value on every node; it is not changed.
        backward: whether it is the backward half.
    """
    copied = copy_of(module)
    inputs = [n.meta["val"] for n in copied.graph.find_nodes(op="placeholder")]
    mode = detect_fake_mode(inputs)
    assert mode is not None, "the values of a traced graph are fake"
    settings = {"force_disable_caches": True}
    with (
        config.patch(settings),
        V.set_debug_handler(DebugContext()),
        V.set_fake_mode(mode),
        mode,
    ):
        view_to_reshape(copied)  # type: ignore[no-untyped-call]
        _recursive_post_grad_passes(copied, is_inference=False)
        lowering = GraphLowering(
            copied,
            example_inputs=inputs,
            shape_env=mode.shape_env,
            is_inference=False,
            is_backward=backward,
        )
        with V.set_graph_handler(lowering):
            lowering.run(*inputs)
            lowering._update_scheduler()
            return _read(lowering)


def _read(lowering: GraphLowering) -> Kernels:
    scheduler = lowering.scheduler
    renamed: dict[str, str] = scheduler.mutation_real_name
    outputs = tuple(_returned(out, lowering, renamed) for out in lowering.graph_outputs)
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
    needed = {name for names in reads.values() for name in names} | set(outputs)
    found = []
    for node in nodes:
        name, external = node.get_name(), bool(node.is_extern())
        buffers = [_buffer(b, renamed) for b in made[name]]
        # a fused kernel makes in memory only what others read
        kept = [b for b in buffers if external or b.name in renamed or b.name in needed]
        found.append(FusedKernel(name, tuple(kept), reads[name], external))
    return Kernels(tuple(found), tuple(lowering.graph_inputs), outputs)


def _returned(out: Any, lowering: GraphLowering, renamed: dict[str, str]) -> str | None:
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


def _buffer(made: Any, renamed: dict[str, str]) -> Buffer:
    name, buffer = made.get_name(), made.node
    size = 0
    if name not in renamed and not isinstance(buffer.layout, (NoneLayout, MultiOutputLayout)):
        elements = V.graph.sizevars.optimization_hint(buffer.get_numel(), fallback=0)
        size = int(elements) * get_dtype_size(buffer.get_dtype())
    origin = buffer.get_origin_node()
    custom = (origin.meta.get("custom") or {}) if origin is not None else {}
    return Buffer(name, size, custom.get(MARK))
