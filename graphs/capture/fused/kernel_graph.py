"""A compiled step as a ``Graph`` to plan on: an op is a kernel as the compiler fuses it.

A value is a buffer between kernels, named after the node whose result it holds: from that name
alone, the nodes that its kernel computes are found again. Knows which kernels may run again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from planner.graphs.capture.fused.around_kernels import Frame, KernelCall, assemble
from planner.graphs.capture.fused.closures import behind, written_by
from planner.graphs.capture.fused.copied_inputs import COPY, copied_inputs, reading_copies
from planner.graphs.capture.fused.in_place import in_place, written_over
from planner.graphs.capture.fused.origin import module_of, source_of
from planner.graphs.capture.fused.stitched import Stitched
from planner.graphs.capture.node_kinds import is_random, target_name
from planner.graphs.capture.source_line import short_line
from planner.graphs.graph import Graph
from planner.graphs.torch_api.inductor.inductor_kernels import FusedKernel, Kernels
from planner.graphs.torch_api.inductor.sums_in_place import ADDED
from planner.graphs.torch_api.operators import OpOverload, overwritten


@dataclass(frozen=True)
class KernelPrice:
    """What a kernel costs beyond the buffers it makes."""

    seconds: float
    flops: int
    moved_bytes: int
    workspace_bytes: int


Price = Callable[[Sequence[fx.Node], FusedKernel, int], KernelPrice]
"""Prices a kernel: the nodes it computes, how it computes them, the bytes it moves."""


@dataclass(frozen=True)
class _Made:
    """The buffers of one kernel that hold a node's value, and those beside that hold none."""

    kernel: FusedKernel
    nodes: Mapping[fx.Node, int]
    beside_bytes: int


def graph_to_plan(
    step: Stitched,
    forward: Kernels,
    backward: Kernels,
    frame: Frame,
    price: Price,
    *,
    ordered: bool = True,
) -> Graph:
    """Build the graph that a schedule of a compiled step is of.

    Args:
        step: what the kernels are of; their buffers name its nodes.
        forward, backward: the kernels of both halves.
        frame: what the step holds beside.
        price: what a kernel costs.
        ordered: whether each kernel must follow what it reads; if not, the graph tells what the
            kernels cost, and no schedule is of it.
    """
    by_name = {n.name: n for n in step.graph.nodes}
    stored = {
        by_name[b.node or ""]: None
        for half in (forward, backward)
        for k in half.kernels
        for b in k.makes
        if b.node in by_name
    }
    known = set[fx.Node]()
    copied = copied_inputs(forward, frame.resident)
    apart = {buffer.name for buffer in copied.values()}
    found = [list(_made(half, by_name, known, apart)) for half in (forward, backward)]
    count = step.step.forward_outputs
    outputs = _under(step, step.outputs[:count], stored)
    once = {*outputs, *map(written_by, step.graph.nodes)}  # what is written into is made once
    effects = _effects(step, stored)
    calls = []
    for half, late in zip(found, (False, True), strict=True):
        kernels = [
            call
            for made in half
            for part in _parts(made, outputs if not late else ())
            for call in [_call(part, stored, price, late=late, once=once)]
        ]
        for node in effects:
            if (node in step.backward) == late:
                _insert(kernels, _effect(node, stored, price), last=written_by(node) is None)
        calls.append(_in_order(kernels))
    gradients = [n.name for n in _under(step, step.outputs[count:], stored)]
    names = [n.name for n in outputs]
    copies = {name: _copy(name, b.size_bytes, price) for name, b in copied.items()}
    first, second = (reading_copies(half, copies) for half in calls)
    second = in_place(second, written_over(backward), gradients)
    first = [*copies.values(), *first]
    if not ordered:
        there = {*frame.resident, *frame.tangents}
        first, second = _reading_earlier(first, there), _reading_earlier(second, there)
    return assemble(frame, first, second, names, gradients)


def _reading_earlier(kernels: Iterable[KernelCall], there: set[str]) -> list[KernelCall]:
    """Return kernels that read what is there or was made by then; what they make is added."""
    found = []
    for kernel in kernels:
        found.append(replace(kernel, reads=tuple(n for n in kernel.reads if n in there)))
        there |= kernel.makes.keys()
    return found


def _copy(name: str, size_bytes: int, price: Price) -> KernelCall:
    """Return what copies an input, which the compiler decides on and a schedule may not repeat."""
    made = f"copy of {name}"
    cost = price((), FusedKernel(made, (), (), external=False), 2 * size_bytes)
    makes = {made: size_bytes}
    return KernelCall(
        made, COPY, (name,), makes, cost.seconds, 0, cost.moved_bytes, recomputable=False
    )


def _made(
    half: Kernels,
    by_name: Mapping[str, fx.Node],
    known: set[fx.Node],
    apart: Collection[str],
) -> Iterator[_Made]:
    """Yield the kernels that first make a node's value; others count with those who read them,
    but for buffers that count apart.
    """
    loose: dict[str, int] = {}  # a buffer of no node -> its bytes and those behind it
    for kernel in half.kernels:
        nodes: dict[fx.Node, int] = {}
        beside = sum(loose.get(name, 0) for name in kernel.reads)
        for made in kernel.makes:
            node = by_name.get(made.node or "")
            if node is None or node in known:
                beside += made.size_bytes if made.over is None else 0
            else:
                nodes[node] = max(nodes.get(node, 0), made.size_bytes)
        if nodes:
            known |= nodes.keys()
            yield _Made(kernel, nodes, beside)
        else:
            loose |= {b.name: beside for b in kernel.makes if b.name not in apart}


def _under(
    step: Stitched, nodes: Iterable[fx.Node | None], stored: Mapping[fx.Node, None]
) -> list[fx.Node]:
    """Return what is in memory under some nodes: themselves, or what they are views of."""
    found: dict[fx.Node, None] = {}
    for node in nodes:
        if node is None:
            continue
        if node.op == "placeholder" or node in stored:
            found[node] = None
        else:
            found |= dict.fromkeys(behind([node], stored)[1])
    return list(found)


def _parts(made: _Made, outputs: Sequence[fx.Node]) -> Iterator[_Made]:
    """Yield a kernel, what only the caller sees of it apart: the rest may run again without it."""
    apart = {
        n: size for n, size in made.nodes.items() if n in outputs or _writes(n) or not _read(n)
    }
    rest = {n: size for n, size in made.nodes.items() if n not in apart}
    if made.kernel.external or not apart or not rest:
        yield made
        return
    yield replace(made, nodes=rest)
    yield replace(made, nodes=apart, beside_bytes=0)


def _read(node: fx.Node) -> bool:
    return any(user.op != "output" for user in node.users)


def _writes(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, OpOverload) and any(True for _ in overwritten(target, node.args))


def once_only(nodes: Iterable[fx.Node]) -> bool:
    """Tell nodes that may not run again: they write, or draw from the generator."""
    return any(
        n.target is torch.ops.prims.inductor_seeds.default or _writes(n) or is_random(n)
        for n in nodes
    )


def _call(
    made: _Made,
    stored: Mapping[fx.Node, None],
    price: Price,
    *,
    late: bool,
    once: Collection[fx.Node | None],
) -> KernelCall:
    inside, read = behind(made.nodes, stored)
    nodes = [*made.nodes, *inside]
    kernels = [n for n in nodes if n.op == "call_function"]
    moved = sum(made.nodes.values()) + sum(_bytes(n) for n in read)
    cost = price(kernels, made.kernel, moved)
    main = max(made.nodes, key=lambda n: made.nodes[n])
    return KernelCall(
        main.name,
        _target(kernels) if not made.kernel.external else target_name(main),
        tuple(n.name for n in read if isinstance(n.meta.get("val"), torch.Tensor)),
        {n.name: size for n, size in made.nodes.items()},
        cost.seconds,
        cost.flops,
        cost.moved_bytes,
        cost.workspace_bytes + made.beside_bytes,
        not (late or once_only(kernels) or any(n in once for n in made.nodes)),
        module_of(main),
        short_line(source_of(main)),
    )


def _effects(step: Stitched, stored: Mapping[fx.Node, None]) -> list[fx.Node]:
    """Return the nodes that do something and that no kernel is named after."""
    return [
        n
        for n in step.graph.nodes
        if n.op == "call_function" and n.is_impure() and not n.users and n not in stored
    ]


def _effect(node: fx.Node, stored: Mapping[fx.Node, None], price: Price) -> KernelCall:
    _, read = behind([node], stored)
    reads = tuple(n.name for n in read if isinstance(n.meta.get("val"), torch.Tensor))
    cost = KernelPrice(0.0, 0, 0, 0)
    if node.target is ADDED:
        cost = price([node], FusedKernel(node.name, (), (), external=True), 0)
    return KernelCall(
        node.name,
        target_name(node),
        reads,
        {node.name: 0},
        cost.seconds,
        cost.flops,
        cost.moved_bytes,
        cost.workspace_bytes,
        recomputable=False,
    )


def _insert(kernels: list[KernelCall], effect: KernelCall, *, last: bool) -> None:
    """Put what adds to something behind the kernels whose results it reads, and others last."""
    read = set(effect.reads)
    behind_them = max((i for i, k in enumerate(kernels, 1) if read & k.makes.keys()), default=0)
    kernels.insert(len(kernels) if last else behind_them, effect)


def _target(nodes: Sequence[fx.Node]) -> str:
    """Name a fused kernel after what it computes."""
    names = [str(n.target).split(".")[1] for n in nodes if isinstance(n.target, OpOverload)]
    told = list(dict.fromkeys(reversed(names)))
    return "fused(" + "+".join(told[:6]) + ("+..." if len(told) > 6 else "") + ")"


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0


def _in_order(kernels: Sequence[KernelCall]) -> list[KernelCall]:
    """Return kernels so that each follows what it reads, otherwise as they are."""
    maker = {name: k for k in kernels for name in k.makes}
    done: dict[str, KernelCall] = {}
    for first in kernels:
        stack = [first]
        while stack:
            kernel = stack[-1]
            ahead = [
                m
                for r in kernel.reads
                if (m := maker.get(r)) is not None and m.name not in done and m is not kernel
            ]
            if not ahead or any(m in stack for m in ahead):
                done[kernel.name] = kernel
                stack.pop()
            else:
                stack.append(ahead[0])
    return list(done.values())
