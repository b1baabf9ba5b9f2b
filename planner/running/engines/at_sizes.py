"""A program written once for all sizes, handed the numbers of one.

Knows how the numbers reach both programs. Knows nothing of how they are found or used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from planner.graphs.capture.numbers import Numbers
from planner.running.program import Program

T = TypeVar("T")


def at_sizes(program: Program, numbers: Numbers, inputs: Sequence[Tensor]) -> Program | None:
    """Return a program for the sizes of some inputs, ``None`` where it would not be right.

    Args:
        program: takes its numbers last, forward and backward.
        numbers: of any sizes.
        inputs: the tensors of a call.
    """
    found = numbers.at(inputs)
    decisions = None if found is None else program.decisions.at(found.value)
    if found is None or decisions is None:
        return None
    specs = zip(program.tangents, program.tangent_specs, strict=True)
    return replace(
        program,
        forward=_handed(program.forward, found.numbers),
        backward=_handed(program.backward, found.numbers),
        tangent_specs=tuple((*found.tangents[i], *spec[2:]) for i, spec in specs),
        outputs=program.outputs.at(found.value),
        decisions=decisions,
    )


def _handed(half: Callable[[list[Any]], T], numbers: tuple[int, ...]) -> Callable[[list[Any]], T]:
    def run(arguments: list[Any]) -> T:
        arguments += numbers
        return half(arguments)

    return run
