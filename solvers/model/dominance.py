"""Values that need not be held at a cut, because what is made of them serves as well.

Take a value ``v`` that no first run reads from cut ``k`` on and only one op ``q`` could read again,
and let what ``q`` makes of it be no larger. A schedule that holds ``v`` at the cut does so only to
run ``q`` again. It may as well hold what ``q`` makes: nothing is larger from the cut on, and ``q``
runs once less. Before the cut it must have that to hold. It has, if ``q`` first runs in the window
before, or if there is none: what is held in between, the master does not see. Else ``q`` must run
in the window before instead of later, after the last read of ``v`` there; it can, if it reads
nothing but ``v``, and the master does not see what that holds unless it has a burst for it.

So to fix these values at not held leaves the master a lower bound.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from planner.solvers.model.problem import Problem
from planner.solvers.model.windows import Window


def dominated(
    problem: Problem,
    frames: Sequence[Window],
    bursts: Collection[tuple[int, int]] = (),
    tiny: Collection[int] = (),
) -> list[dict[int, int]]:
    """Return for each cut the values that need not be held, each with the op to hold instead.

    Values in ``tiny`` count as always held.

    Args:
        problem: the step, flattened.
        frames: the windows.
        bursts: ops that may run again in a window, each with its cut.
        tiny: values that count as always held and weightless.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.solvers.model.problem import flatten
    >>> from planner.solvers.model.windows import windows
    >>> ops = (Op("a", "f", (), (0,)), Op("b", "f", (0,), (1,)), Op("c", "f", (), (2,)),
    ...        Op("d", "f", (1, 2), (3,)))
    >>> problem = flatten(Graph(ops, tuple(Value(x, 1) for x in "abcd")))
    >>> dominated(problem, windows(problem, [2], frozenset()))
    [{0: 1}]
    """
    found: list[dict[int, int]] = []
    needed = set(problem.ends)
    for k in range(len(frames) - 1, -1, -1):
        frame, before = frames[k], frames[k - 1].t if k else -1
        needed |= frame.need
        relevant = set(frame.relevant)
        makers = {problem.maker[v] for v in relevant}
        here: dict[int, int] = {}
        for v in relevant - needed:
            readers = [op for op in problem.uses[v] if op in makers]
            if len(readers) != 1 or not problem.recomputable[op := readers[0]]:
                continue
            alone = all(u == v or u in tiny for u in problem.inputs[op])
            if op <= before and not (alone and (op, before) not in bursts):
                continue
            made = sum(problem.sizes[u] for u in problem.outputs[op] if u in relevant)
            if made <= problem.sizes[v]:
                here[v] = op
        found.append(here)
    return found[::-1]
