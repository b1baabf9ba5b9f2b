"""The seam of every solver: one signature, one registry, one judge.

Knows how to name, call and check a solver. Knows nothing of how any of them works.
"""

from __future__ import annotations

import enum
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from planner.graphs import Graph, Schedule, schedule_from_order, simulate
from planner.solvers.tuning import JUDGING_SHARE


class Status(enum.Enum):
    """How a solve ended, as a sentence."""

    OPTIMAL = "optimal: no schedule of the solver's class costs less, within the gap asked for"
    FEASIBLE = "feasible: the schedule fits; the bound says how much better another could be"
    INFEASIBLE = "infeasible: proved that no schedule fits the budget"
    UNKNOWN = "unknown: nothing found that fits, and nothing proved"


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop: wall-clock seconds, relative gap of step time, and the seed of every choice.

    ``seconds`` is for a whole call. Where they cut the effort off, the message of the solution says
    so, and only then does the solution depend on how fast the machine is.
    ``reorder`` says whether first runs may leave the graph's order where that saves much time.
    """

    seconds: float = 60.0
    gap: float = 0.003
    seed: int = 0
    reorder: bool = True

    def of_a_correction(self, left_seconds: float) -> Limits:
        """Return limits for a solution only a little better than one that is known.

        The gap is a hundredth or wider. A correction may take all that it is given of what is left
        of the seconds for everything: it ends well before, but on a very busy machine.

        Args:
            left_seconds: what it may take.

        >>> Limits(seconds=60.0).of_a_correction(41.0)
        Limits(seconds=41.0, gap=0.01, seed=0, reorder=True)
        """
        seconds = min(self.seconds, max(0.0, left_seconds))
        return replace(self, seconds=seconds, gap=max(self.gap, 0.01))

    def after(self, spent_seconds: float) -> Limits:
        """Return limits with what is left of the seconds, none if all are spent.

        Args:
            spent_seconds: what was taken so far.

        >>> Limits(seconds=60.0).after(41.0).seconds, Limits(seconds=60.0).after(61.0).seconds
        (19.0, 0.0)
        """
        return replace(self, seconds=max(0.0, self.seconds - spent_seconds))

    def until(self, deadline: float, *, share: float = 1.0) -> Limits:
        """Return limits with the seconds that are left until a moment, none if it is over.

        Args:
            deadline: of ``time.monotonic``.
            share: the part of what is left.

        >>> Limits().until(0.0).seconds
        0.0
        """
        return replace(self, seconds=share * max(0.0, deadline - time.monotonic()))


def deadline_of(limits: Limits) -> float:
    """Return when to stop, of ``time.monotonic``, so that a whole call keeps its seconds.

    Args:
        limits: of the call, judging and writing down what was found included.
    """
    return time.monotonic() + (1 - JUDGING_SHARE) * limits.seconds


@dataclass(frozen=True, slots=True)
class Answer:
    """What a solver function returns: a schedule, and what it proved.

    ``schedule`` is ``None`` when nothing was found. ``bound_seconds`` is a proven lower bound on
    the time of every schedule that fits, 0 if nothing is known and ``inf`` if none fits.
    """

    status: Status
    schedule: Schedule | None
    bound_seconds: float = 0.0
    message: str = ""

    @classmethod
    def of_order(
        cls,
        graph: Graph,
        status: Status,
        order: Sequence[int],
        bound_seconds: float = 0.0,
        message: str = "",
    ) -> Answer:
        """Answer with the schedule that only runs ops, freeing each copy after its last use.

        Args:
            graph: what is scheduled.
            order: the ops to run, repetitions included.
            status, bound_seconds, message: as in the answer.

        >>> from planner.graphs import Op, Value
        >>> g = Graph((Op("a", "f", (), (0,), 1.0),), (Value("a", 3),))
        >>> Answer.of_order(g, Status.OPTIMAL, [0]).schedule.order
        (0,)
        """
        return cls(status, schedule_from_order(graph, order), bound_seconds, message)


@dataclass(frozen=True, slots=True)
class Solution:
    """A judged answer: ``schedule`` fits the budget, or is ``None``.

    ``bound_seconds`` holds for every schedule whose first runs keep the graph's order; if this one
    is ``reordered``, for every schedule in any order.
    """

    status: Status
    schedule: Schedule | None
    bound_seconds: float
    message: str

    @property
    def reordered(self) -> bool:
        """Whether ops first run in another order than the graph's."""
        return self.schedule is not None and self.schedule.is_reordered


Solver = Callable[[Graph, int, Limits], Answer]
SOLVERS: dict[str, Solver] = {}


FORMER = {"store_all": "plain"}
"""What solvers were called before, until version 0.3."""


def method_of(name: str) -> str:
    """Return the name that a method has today; a former one is deprecated.

    Raises:
        ValueError: no solver has this name; the message lists the valid ones.
    """
    if name in FORMER:
        said = f"method={name!r} is called {FORMER[name]!r} now; the former name goes with 0.3"
        warnings.warn(said, DeprecationWarning, stacklevel=3)
        return FORMER[name]
    if name not in SOLVERS:
        raise ValueError(f"unknown method {name!r}; valid methods: {', '.join(sorted(SOLVERS))}")
    return name


def register(name: str) -> Callable[[Solver], Solver]:
    """Enter a solver in the registry under a name; a name taken twice raises ``ValueError``."""

    def enter(solver: Solver) -> Solver:
        if name in SOLVERS:
            raise ValueError(f"a solver named {name!r} is already registered")
        SOLVERS[name] = solver
        return solver

    return enter


def solve(
    graph: Graph, budget_bytes: int, *, method: str = "auto", limits: Limits | None = None
) -> Solution:
    """Find a schedule within the budget and prove how good it is.

    The bound holds for every schedule whose first computations follow the graph's order (the class
    of Checkmate, arXiv 1910.02653); if the solution is ``reordered``, for every order.

    Args:
        graph: the step.
        budget_bytes: what a schedule may hold.
        method: a name of ``SOLVERS``.
        limits: when to stop.

    Raises:
        ValueError: an unknown method; the message lists the valid ones.

    >>> from planner.graphs import Graph, Op, Value
    >>> g = Graph((Op("a", "f", (), (0,), 1.0), Op("b", "f", (0,), (1,), 2.0)),
    ...           (Value("a", 3), Value("b", 4)))
    >>> solve(g, 7, method="plain").status.name, solve(g, 6, method="plain").status.name
    ('OPTIMAL', 'INFEASIBLE')
    """
    method = method_of(method)
    if (least := floor_bytes(graph)) > budget_bytes:
        message = f"op {binding_op(graph)!r} alone needs {least} bytes"
        return Solution(Status.INFEASIBLE, None, math.inf, message)
    answer = SOLVERS[method](graph, budget_bytes, limits or Limits())
    if answer.schedule is None:
        return Solution(answer.status, None, answer.bound_seconds, answer.message)
    trace = simulate(graph, answer.schedule)
    if trace.peak_bytes > budget_bytes:
        raise RuntimeError(
            f"solver {method!r} returned a schedule that peaks at {trace.peak_bytes} bytes, over "
            f"the budget of {budget_bytes}: please report this"
        )
    bound = max(answer.bound_seconds, graph.seconds)
    if bound > trace.seconds * (1 + 1e-6):
        raise RuntimeError(
            f"solver {method!r} claims a bound of {bound} s, above its own schedule's "
            f"{trace.seconds} s: please report this"
        )
    bound = min(bound, trace.seconds)
    proved = trace.seconds <= bound * (1 + 1e-9)
    status = Status.OPTIMAL if proved else answer.status
    return Solution(status, answer.schedule, bound, answer.message)


def _op_bytes(graph: Graph, index: int) -> int:
    op = graph.ops[index]
    held = graph.resident_bytes + op.workspace_bytes
    made = [v for v in op.inputs if v not in graph.resident]
    return held + sum(graph.values[v].size_bytes for v in (*made, *op.outputs))


def floor_bytes(graph: Graph) -> int:
    """Return the most that one op alone needs: no schedule peaks lower."""
    return max((_op_bytes(graph, i) for i in range(len(graph.ops))), default=graph.resident_bytes)


def binding_op(graph: Graph) -> str:
    """Return the name of the op that ``floor_bytes`` speaks of."""
    return graph.ops[max(range(len(graph.ops)), key=lambda i: _op_bytes(graph, i))].name
