"""A plan ready to run: two programs, forward and backward, and how they fit each other.

Whatever engine wrote them. Knows what the two hand over: what is saved, which tangents arrive,
which gradients leave. Knows nothing of autograd, models or guards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from planner.graphs.capture.guards.paths import Path
from planner.graphs.capture.guards.reads import Read
from planner.graphs.capture.guards.tape import Decisions
from planner.graphs.capture.step_outputs import Outputs


@dataclass(frozen=True)
class Program:
    """Both halves of a step. Arguments are lists, emptied by the call.

    ``forward`` takes parameters, buffers and input tensors and returns the outputs, then what it
    saves. ``backward`` takes the tensors at ``read`` (indices into forward's arguments), what was
    saved, then the tangents at ``tangents`` (indices of outputs), and yields, once for each part
    of ``handed`` (indices into forward's arguments), a list of their gradients, to be emptied.
    ``behind`` are the tangents each gradient is made of. ``outputs`` puts the outputs back into the
    user's structure. The program is valid where every one of ``decisions`` and ``reads`` still
    holds; ``recast`` tells whether autocast, as it is then, would change what backward computes.
    ``lifted`` are where Python holds floats that forward takes after the inputs, each as a tensor.
    ``groups`` are the names that this process has for those its collectives are over.
    """

    forward: Callable[[list[Any]], list[Any]]
    backward: Callable[[list[Any]], Iterator[list[Any]]]
    handed: tuple[tuple[int, ...], ...]
    output_count: int
    read: tuple[int, ...]
    tangents: tuple[int, ...]
    behind: tuple[frozenset[int], ...]
    tangent_specs: tuple[tuple[Any, ...], ...]
    outputs: Outputs
    decisions: Decisions
    reads: tuple[Read, ...]
    recast: Callable[[], bool]
    lifted: tuple[Path, ...] = ()
    groups: tuple[str, ...] = ()
