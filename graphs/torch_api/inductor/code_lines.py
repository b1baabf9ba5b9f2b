"""What the code that Inductor wrote takes from memory and gives back, line by line.

Which results lie over inputs that nobody needs any more, which buffers are never made, and when
each is given back is decided while code is written. It is read here, of the lines of that code,
before any of it is compiled. Knows nothing of what a kernel computes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch._inductor.codegen.wrapper import (
    AllocateLine,
    FreeIfNotReusedLine,
    FreeLine,
    ReinterpretLine,
    ReuseLine,
    WrapperLine,
)
from torch._inductor.graph import GraphLowering
from torch._inductor.ir import (
    ExternKernel,
    MultiOutput,
    MultiOutputLayout,
    MutationLayoutSHOULDREMOVE,
    NoneLayout,
)
from torch._inductor.utils import get_dtype_size

from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.inductor.symbols import AtMost

_ASSIGNED = re.compile(r"\s*(\w+) = ")


@dataclass(frozen=True)
class CodeLine:
    """One line: the memory that it takes, by name with its bytes, and what it gives back.

    ``calls`` is the buffer that a kernel outside makes, if the line calls one.
    """

    takes: tuple[tuple[str, int], ...] = ()
    gives: tuple[str, ...] = ()
    calls: str | None = None


@dataclass(frozen=True)
class Code:
    """The lines that take or give something back, and in which memory a buffer lies.

    ``lies_in`` has the buffers that share the memory of another, or an input's, by name.
    """

    lines: tuple[CodeLine, ...]
    lies_in: dict[str, str]


def code_of(lowering: GraphLowering, largest: AtMost) -> Code:
    """Read the code that was written of a graph.

    Args:
        lowering: after its ``codegen``.
        largest: what sizes that are symbols are at most.

    Raises:
        CaptureError: some buffer is made where it cannot be seen.
    """
    read = _Reading(lowering, largest)
    for line in lowering.wrapper_code.lines:
        read.line(line)
    if unseen := sorted(read.owned() - read.memory.keys()):
        raise CaptureError(
            f"Inductor makes {len(unseen)} buffers, such as {unseen[0]}, where its code does not "
            "say so: its memory cannot be planned; use engine='op_by_op'"
        )
    lies_in = {name: memory for name, memory in read.memory.items() if name != memory}
    return Code(tuple(read.found), lies_in)


@dataclass
class _Reading:
    """The names that memory has so far, and what is found of it."""

    lowering: GraphLowering
    largest: AtMost
    found: list[CodeLine] = field(default_factory=list)
    memory: dict[str, str] = field(default_factory=dict)  # a name, given back or not -> its memory
    names: dict[str, set[str]] = field(default_factory=dict)  # memory -> those that hold it now

    def line(self, line: Any) -> None:
        """Read one line."""
        if isinstance(line, AllocateLine):
            self.found.append(CodeLine(takes=self._made([line.node])))
        elif isinstance(line, ReuseLine):
            self._shares(line.reused_as.get_name(), line.node.get_name())
            if line.delete_old:
                self._drop(line.node.get_name())
        elif isinstance(line, ReinterpretLine):
            self._shares(line.reused_as.get_name(), line.node.get_name())
        elif isinstance(line, FreeLine):
            self._drop(line.node.get_name())
        elif isinstance(line, FreeIfNotReusedLine):
            if not line.is_reused:
                self._drop(line.node.get_name())
        elif (called := self._called(line)) is not None:
            self._call(called)

    def _call(self, called: Any) -> None:
        outside = [n for n in self._makes(called) if n.get_name() not in self.memory]
        for written in called.get_mutation_names():  # what it returns is what it wrote into
            for node in outside:
                self._shares(node.get_name(), written)
            outside = []
        self.found.append(CodeLine(takes=self._made(outside), calls=called.get_name()))

    def owned(self) -> set[str]:
        """Return the buffers that have memory of their own or another's."""
        removed = self.lowering.removed_buffers
        buffers = self.lowering.scheduler.name_to_buf.values()
        return {b.get_name() for b in buffers if _owns(b.node)} - set(removed)

    def _called(self, line: Any) -> Any | None:
        """Return the kernel outside that a line calls."""
        if isinstance(line, WrapperLine):
            node = getattr(line, "node", None)
            return node if isinstance(node, ExternKernel) else None
        match = _ASSIGNED.match(line) if isinstance(line, str) else None
        made = self.lowering.scheduler.name_to_buf.get(match[1]) if match else None
        node = made.node if made is not None else None
        return node if isinstance(node, ExternKernel) else None

    def _makes(self, kernel: Any) -> Iterable[Any]:
        """Return the buffers that a kernel outside makes: itself, or the parts of its tuple."""
        if not isinstance(kernel.layout, MultiOutputLayout):
            return [kernel] if _owns(kernel) else []
        buffers = [b.node for b in self.lowering.scheduler.name_to_buf.values()]
        return [b for b in buffers if isinstance(b, MultiOutput) and _whole(b) is kernel]

    def _made(self, nodes: Iterable[Any]) -> tuple[tuple[str, int], ...]:
        made = []
        for node in nodes:
            name = node.get_name()
            self.memory[name], self.names[name] = name, {name}
            made.append((name, self._bytes(node)))
        return tuple(made)

    def _bytes(self, node: Any) -> int:
        elements = self.lowering.get_allocation_storage_size(node)
        return self.largest.most(elements) * get_dtype_size(node.get_dtype())

    def _shares(self, name: str, other: str) -> None:
        """Let a name have the memory of another, which is an input where nothing made it."""
        memory = self.memory.get(other, other)
        self.memory[name] = memory
        self.names.setdefault(memory, {other}).add(name)

    def _drop(self, name: str) -> None:
        if name not in self.memory and name not in self.lowering.graph_inputs:
            return  # a tuple, whose parts are held by themselves
        memory = self.memory.get(name, name)
        holding = self.names.setdefault(memory, {name})
        if name in holding:
            holding.discard(name)
            if not holding:
                self.found.append(CodeLine(gives=(memory,)))


def _whole(part: Any) -> Any:
    """Return the kernel whose tuple a buffer is a part of."""
    (whole,) = part.inputs
    return _whole(whole) if isinstance(whole, MultiOutput) else whole


def _owns(node: Any) -> bool:
    """Tell whether a buffer has memory that it is made in."""
    without = (NoneLayout, MultiOutputLayout, MutationLayoutSHOULDREMOVE)
    aliases = node.get_inputs_that_alias_output()
    return not isinstance(node.layout, without) and not aliases
