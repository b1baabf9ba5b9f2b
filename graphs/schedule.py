"""Schedules: the order in which ops run, again or not, and values are moved and freed.

Knows how a schedule is written down. What one costs and holds is ``graphs.simulate``'s to say.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from planner.graphs.graph import Graph


class Subject(enum.Enum):
    """What the index of a step counts."""

    OP = "op"
    VALUE = "value"


class Copy(enum.Enum):
    """What a step does to the copy of a value in some memory."""

    TAKEN = "taken"
    KEPT = "kept"
    DROPPED = "dropped"


class Clock(enum.Enum):
    """Whose time a step takes: the device computes while both directions of its link copy."""

    NONE = "none"
    DEVICE = "device"
    TO_HOST = "to host"
    FROM_HOST = "from host"


@dataclass(frozen=True, slots=True)
class Action:
    """What a step does, as a row: to what, in which memory, and on whose clock.

    An action on an op runs it. An action on a value takes, keeps or drops its copy on the device
    and on the host. On a link's clock, a copy that is taken can be read once the transfer has
    ended, and the device waits for that end before it drops the other. So a value moves out by an
    OFFLOAD, which only begins to copy it, and a FREE, which waits for that copy; and back by a
    FETCH, which what reads it waits for. New actions are entered by ``register_action``; an action
    is its name, so that it survives pickling.

    >>> Action.FREE.subject, Action.FREE.device
    (<Subject.VALUE: 'value'>, <Copy.DROPPED: 'dropped'>)
    """

    COMPUTE: ClassVar[Action]
    FREE: ClassVar[Action]
    OFFLOAD: ClassVar[Action]
    FETCH: ClassVar[Action]

    name: str
    subject: Subject
    device: Copy = Copy.KEPT
    host: Copy = Copy.KEPT
    clock: Clock = Clock.NONE

    def __hash__(self) -> int:
        return hash(self.name)

    def __reduce__(self) -> tuple[object, ...]:
        return action_of, (self.name,)


ACTIONS: dict[str, Action] = {}


def register_action(action: Action) -> Action:
    """Enter an action under its name; a name taken twice raises ``ValueError``."""
    if action.name in ACTIONS:
        raise ValueError(f"an action named {action.name!r} is already registered")
    ACTIONS[action.name] = action
    return action


def action_of(name: str) -> Action:
    """Return the action of a name.

    Raises:
        ValueError: no action has it; the message lists those there are.

    >>> action_of("free") is Action.FREE
    True
    """
    if name not in ACTIONS:
        raise ValueError(f"unknown action {name!r}; known: {', '.join(ACTIONS)}")
    return ACTIONS[name]


Action.COMPUTE = register_action(Action("compute", Subject.OP, clock=Clock.DEVICE))
Action.FREE = register_action(Action("free", Subject.VALUE, device=Copy.DROPPED))
Action.OFFLOAD = register_action(
    Action("offload", Subject.VALUE, host=Copy.TAKEN, clock=Clock.TO_HOST)
)
Action.FETCH = register_action(
    Action("fetch", Subject.VALUE, Copy.TAKEN, Copy.DROPPED, Clock.FROM_HOST)
)


@dataclass(frozen=True, slots=True)
class Step:
    """An action and the index of the op or the value that it is done to."""

    action: Action
    index: int


@dataclass(frozen=True)
class Schedule:
    """Steps in the order they run.

    >>> Schedule((Step(Action.COMPUTE, 0), Step(Action.FREE, 1))).order
    (0,)
    """

    steps: tuple[Step, ...]

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The ops computed, in order, repetitions included."""
        return tuple(s.index for s in self.steps if s.action.subject is Subject.OP)

    @cached_property
    def clocks(self) -> frozenset[Clock]:
        """Whose time the steps take."""
        return frozenset(action.clock for action in {s.action for s in self.steps})

    @cached_property
    def moves(self) -> bool:
        """True if values are copied over a link."""
        return bool(self.clocks - {Clock.NONE, Clock.DEVICE})

    @property
    def is_plain(self) -> bool:
        """True if no op runs twice."""
        return len(set(self.order)) == len(self.order)

    @property
    def is_reordered(self) -> bool:
        """True if ops first run in another order than the graph's.

        >>> Schedule((Step(Action.COMPUTE, 1), Step(Action.COMPUTE, 0))).is_reordered
        True
        """
        first = list(dict.fromkeys(self.order))
        return first != sorted(first)


def schedule_from_order(graph: Graph, order: Sequence[int]) -> Schedule:
    """Add to a sequence of ops the earliest possible frees: each copy dies after its last use.

    >>> from planner.graphs.graph import Graph, Op, Value
    >>> values = (Value("a", 1), Value("b", 1))
    >>> g = Graph((Op("a", "f", (), (0,)), Op("b", "f", (0,), (1,))), values)
    >>> [(s.action.name, s.index) for s in schedule_from_order(g, [0, 1]).steps]
    [('compute', 0), ('compute', 1), ('free', 0), ('free', 1)]
    """
    needed = set(graph.outputs)  # going backwards: values some later step still reads
    reverse: list[Step] = []
    for index in reversed(order):
        op = graph.ops[index]
        dying = [v for v in op.outputs if v not in needed]
        needed.difference_update(op.outputs)
        dying += [v for v in op.inputs if v not in needed and v not in graph.resident]
        needed.update(op.inputs)
        reverse += [Step(Action.FREE, v) for v in sorted(dying, reverse=True)]
        reverse.append(Step(Action.COMPUTE, index))
    return Schedule(tuple(reversed(reverse)))


def plain_schedule(graph: Graph) -> Schedule:
    """Return the schedule that runs every op once, in order, freeing at last use."""
    return schedule_from_order(graph, range(len(graph.ops)))
