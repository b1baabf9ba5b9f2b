"""Tensors whose sizes are symbols, and what torch assumed of the symbols while it traced.

Knows torch's shape environment and how its expressions become Python. Knows nothing of steps.
"""

from __future__ import annotations

import builtins
import os
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import Tensor
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import (
    SYMPY_INTERP,
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
    StrictMinMaxConstraint,
)
from torch.utils._sympy.printers import PythonPrinter
from torch.utils._sympy.value_ranges import ValueRanges

from planner.graphs.torch_api.fake_tensors import FakeTensorMode
from planner.graphs.torch_api.patches import Patches

Compiled = Callable[[Sequence[int]], tuple[Any, ...]]
"""From the values of the symbols to those of expressions."""

SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
LEAST = 2
"""Torch takes a size of a symbol for neither 0 nor 1: what is said of a step holds from here on."""


@dataclass(frozen=True)
class Symbol:
    """A size that is a symbol: of which input, in which dimension, how large at most."""

    name: str
    place: int
    dimension: int
    most: int


@dataclass
class SymbolicSizes:
    """The symbols of one trace; ``free`` are their dimensions, by the place of an input."""

    free: Mapping[int, Sequence[int]]
    mode: FakeTensorMode = field(
        default_factory=lambda: FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    )
    symbols: list[Symbol] = field(default_factory=list)

    def like(self, tensor: Tensor, place: int, device: torch.device) -> Tensor:
        """Return a fake tensor like an input, its free sizes symbols.

        Args:
            tensor: as large as it gets.
            place: of it among the inputs.
            device: where it is taken to be.
        """
        dims = [d for d in self.free.get(place, ()) if tensor.shape[d] >= LEAST]
        every = range(tensor.dim())
        ranges = {d: ValueRanges(LEAST, tensor.shape[d]) for d in dims}
        context: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(
            dynamic_sizes=[DimDynamic.DYNAMIC if d in dims else DimDynamic.STATIC for d in every],
            constraint_sizes=[
                StrictMinMaxConstraint(vr=ranges[d], warn_only=False) if d in dims else None
                for d in every
            ],
        )
        shape, stride = tensor.shape, tensor.stride()
        example = torch.empty_strided(shape, stride, dtype=tensor.dtype, device="meta")
        source = ConstantSource(f"input_{place}")
        made = self.mode.from_tensor(example, symbolic_context=context, source=source)
        for d in dims:
            name = str(expression(made.shape[d]))
            self.symbols.append(Symbol(name, place, d, tensor.shape[d]))
        with self.mode:
            fresh = torch.empty_strided(
                made.shape, made.stride(), dtype=tensor.dtype, device=device
            )
        return fresh.requires_grad_(tensor.requires_grad)

    @property
    def assumed(self) -> list[Any]:
        """What must hold of the symbols for the trace to be right."""
        env = self.mode.shape_env
        return [] if env is None else [guard.expr for guard in env.guards]

    def compiled(self, expressions: Sequence[Any]) -> Compiled:
        """Return a function from the values of the symbols to those of expressions."""
        printer = PythonPrinter()
        body = "".join(f"{printer.doprint(e)}, " for e in map(sympy.sympify, expressions))
        names = ", ".join(symbol.name for symbol in self.symbols)
        code = f"lambda {names}: ({body})"
        function = eval(code, dict(SYMPY_INTERP))
        return lambda values: function(*values)


def expression(number: Any) -> Any:
    """Return what a number is in terms of the symbols: itself, where it depends on none.

    Raises:
        NotImplementedError: it is no whole number; how it would be rounded is not known.
    """
    if not isinstance(number, SYMBOLIC):
        return number
    found = number.node.expr
    if found.is_number and isinstance(number, torch.SymInt):
        return int(found)
    if not isinstance(number, torch.SymInt):
        raise NotImplementedError(f"a size enters as {found}, which is no whole number")
    return found


_SYMPY = os.path.dirname(sympy.__file__) + os.sep
_PYTHON = sysconfig.get_path("stdlib") + os.sep


def _is_pythons_own(file: str) -> bool:
    return file.startswith((_PYTHON, "<")) and "site-packages" not in file


def as_numbers_to_the_user(patches: Patches, of_ours: tuple[str, ...]) -> None:
    """Let code outside some folders see a symbol as the number that it stands for.

    As a text, of a size the whole number of the largest call, and to ``isinstance``: neither raises
    a guard by itself. To be a number for a text is to be no symbol from then on. A number that
    nobody knows yet is no text.

    Args:
        patches: what undoes it.
        of_ours: the folders whose code knows symbols.
    """

    def theirs() -> bool:
        frame = sys._getframe(2)
        while frame.f_back is not None and _is_pythons_own(frame.f_code.co_filename):
            frame = frame.f_back  # json or logging asks for whoever called it
        return patches.mine() and not frame.f_code.co_filename.startswith((*of_ours, _SYMPY))

    def told(kind: Any, name: str) -> Callable[..., str]:
        own: Any = getattr(kind, name)

        def text(self: Any, *spec: str) -> str:
            if not theirs():
                return own(self, *spec)  # type: ignore[no-any-return]
            if not is_size(self):
                raise NotImplementedError("a text is made of a number that is not known yet")
            return getattr(int(self), name)(*spec)  # type: ignore[no-any-return]

        return text

    for kind in (torch.SymInt, torch.SymFloat):
        for name in ("__str__", "__repr__", "__format__"):
            patches.attribute(kind, name, told(kind, name))
    is_one = builtins.isinstance
    examples = {torch.SymInt: 0, torch.SymFloat: 0.0}

    def is_instance(value: Any, kinds: Any) -> bool:
        found = is_one(value, kinds)
        return found or (
            type(value) in examples and is_one(examples[type(value)], kinds) and theirs()
        )

    patches.attribute(builtins, "isinstance", is_instance)


def is_of_sizes(number: Any) -> bool:
    """Tell a number that depends on nothing but sizes."""
    return not isinstance(number, SYMBOLIC) or number.node.hint is not None


def is_size(value: Any) -> bool:
    """Tell a whole number that depends on symbols, and on nothing but sizes."""
    return isinstance(value, torch.SymInt) and is_of_sizes(value)


def largest(number: Any) -> Any:
    """Return a number with every size as large as it gets; one that is no size stays what it is."""
    return number.node.hint if isinstance(number, SYMBOLIC) and is_of_sizes(number) else number
