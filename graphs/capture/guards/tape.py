"""Questions of a model about values of known tensors, and how to ask them of other tensors.

A tape of what was computed from integer inputs and buffers, lazily: only what a question needs is
run. Knows nothing of tracing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from planner.graphs.capture.guards.checks import Check
from planner.graphs.torch_api.pytree import tree_iter, tree_map
from planner.graphs.torch_api.symbolic_sizes import SYMBOLIC, largest


@dataclass(frozen=True, eq=False)
class Entry:
    """One call on the tape; ``args`` may hold other entries and ``Root``s."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    pick: int | None = None  # which element, if the call returned several tensors


@dataclass(frozen=True, eq=False)
class Root:
    """A tensor that is known: an input of the call, or after those a buffer, by its index."""

    index: int


def evaluate(
    entry: Any,
    inputs: Sequence[Any],
    memo: dict[int, Any],
    number: Callable[[Any], Any] = largest,
) -> Any:
    """Run the part of the tape that ``entry`` needs, iteratively: tapes may be deep.

    Args:
        entry: a call on the tape.
        inputs: what its roots are.
        memo: what was already computed of them, by the id of its entry.
        number: says what a size that was a symbol is.
    """
    stack = [entry]
    while stack:
        top = stack[-1]
        waiting = [e for e in _operands(top) if id(e) not in memo]
        if waiting:
            stack += waiting
            continue
        stack.pop()
        if isinstance(top, Root):
            memo[id(top)] = inputs[top.index]
            continue
        args, kwargs = tree_map(
            lambda a: memo[id(a)] if isinstance(a, Entry | Root) else number(a),
            (top.args, top.kwargs),
        )
        result = top.func(*args, **kwargs)
        memo[id(top)] = result if top.pick is None else result[top.pick]
    return memo[id(entry)]


def _operands(entry: Any) -> Iterator[Any]:
    if isinstance(entry, Entry):
        leaves = tree_iter((entry.args, dict(entry.kwargs)))
        yield from (a for a in leaves if isinstance(a, Entry | Root))


def roots_of(entry: Any) -> set[int]:
    """Return the indices of the roots that an entry depends on; none if on constants alone."""
    return {part.index for part in _parts(entry) if isinstance(part, Root)}


def reads_sizes(entry: Any) -> bool:
    """Tell whether a size that is a symbol is among what was computed with."""
    calls = (part for part in _parts(entry) if isinstance(part, Entry))
    leaves = (a for call in calls for a in tree_iter((call.args, dict(call.kwargs))))
    return any(isinstance(a, SYMBOLIC) for a in leaves)


def _hashable(answer: Any) -> Any:
    if isinstance(answer, list):
        return tuple(map(_hashable, answer))
    return repr(answer) if answer != answer else answer  # noqa: PLR0124, nan is no nan


def _parts(entry: Any) -> Iterator[Any]:
    seen, stack = set[int](), [entry]
    while stack:
        top = stack.pop()
        if id(top) not in seen:
            yield top
            seen.add(id(top))
            stack += _operands(top)


@dataclass(frozen=True)
class Decision:
    """A question the model asked of a value, its answer and the line that asked.

    ``check`` is there if the model asked it in order to raise or log.
    """

    entry: Entry
    answer: Any
    source: str
    check: Check | None = None


@dataclass(frozen=True)
class Decisions:
    """Every question whose answer depends on the inputs, in the order asked.

    ``by_size`` are those that depend on sizes alone, where sizes are symbols; ``number`` says what
    a size is.
    """

    items: tuple[Decision, ...] = ()
    by_size: tuple[Decision, ...] = ()
    number: Callable[[Any], Any] = largest

    @property
    def answers(self) -> tuple[Any, ...]:
        """The answers alone: what a plan file remembers."""
        return tuple(d.answer for d in self.items)

    def broken_by(self, inputs: Sequence[Any]) -> Decision | None:
        """Return the first decision that other tensors would answer differently.

        Args:
            inputs: of the call, then the buffers of the model.
        """
        return self._broken(self.items, inputs)

    def answered_by(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """Return what other tensors would answer; what cannot be asked is told by its error.

        Args:
            inputs: of the call, then the buffers of the model.
        """
        memo: dict[int, Any] = {}
        found: list[Any] = []
        with torch.no_grad():
            for decision in self.items:
                try:
                    answer = evaluate(decision.entry, inputs, memo, self.number)
                except (RuntimeError, IndexError, ValueError, TypeError) as error:
                    answer = type(error).__name__
                found.append(_hashable(answer))
        return tuple(found)

    def at(self, number: Callable[[Any], Any]) -> Decisions | None:
        """Return the decisions that remain at some sizes, ``None`` if another answer goes there.

        Args:
            number: what a size that was a symbol is there.
        """
        found = replace(self, number=number, by_size=())
        return None if found._broken(self.by_size, ()) else found

    def _broken(self, items: Sequence[Decision], inputs: Sequence[Any]) -> Decision | None:
        memo: dict[int, Any] = {}
        with torch.no_grad():
            for decision in items:
                if evaluate(decision.entry, inputs, memo, self.number) != decision.answer:
                    return decision
        return None
