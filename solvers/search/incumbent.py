"""What a search knows: the best order that fits, and the proven bound.

Knows how to take any order in: make it fit, prune it, compare it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from planner.solvers.model.problem import Problem
from planner.solvers.search.drop_single import drop_single
from planner.solvers.search.evict import fit
from planner.solvers.search.prune import prune
from planner.solvers.tuning import LAVISH_EVICTING, PATIENCES


class Search:
    """The state of one solve; times are in excess of running every op once.

    After the ``deadline`` (of ``time.monotonic``) orders are no longer made to fit. ``stopped``
    says that something was left undone for want of time.
    """

    def __init__(self, problem: Problem, budget: int, *, deadline: float = math.inf) -> None:
        self.problem, self.budget, self.deadline = problem, budget, deadline
        self.base = sum(problem.seconds)
        self.order: list[int] | None = None
        self.extra = math.inf
        self.bound = 0.0
        self.stopped = False

    def copy(self) -> Search:
        """Return a search of its own that knows as much."""
        own = Search(self.problem, self.budget, deadline=self.deadline)
        own.order, own.extra, own.bound = self.order, self.extra, self.bound
        return own

    def learn(self, other: Search) -> None:
        """Take in what another search of the same problem and budget knows."""
        if other.extra < self.extra:
            self.order, self.extra = other.order, other.extra
        self.raise_bound(other.bound)
        self.stopped |= other.stopped

    @property
    def gap(self) -> float:
        """The distance from bound to cost as a fraction of the step; of one that takes no time, all
        or nothing.
        """
        if self.extra <= self.bound:
            return 0.0
        return (self.extra - self.bound) / self.base if self.base else math.inf

    def over(self, deadline: float = math.inf, *, needed: float = 0.0) -> bool:
        """Say whether a deadline, or that of the whole search, has come, and note it if so.

        Args:
            deadline: of ``time.monotonic``.
            needed: seconds without which it is not worth going on.
        """
        late = time.monotonic() + needed > min(deadline, self.deadline)
        self.stopped |= late
        return late

    def offer(self, order: Sequence[int], *, evict: bool = True) -> None:
        """Take an order that may overshoot: make it fit, prune it, keep it if it is the best.

        Single values are dropped and, unless ``evict`` is false, the order is run anew with
        evictions; that is given up once it costs many times what is known, or the step itself.
        """
        if (found := self._dropped(order)) is not None:
            self.take(found)
        if not evict or (found is not None and len(found) == len(order)):
            return
        most = LAVISH_EVICTING * min(self.extra, self.base)
        for patience in PATIENCES:
            fitted = fit(
                self.problem,
                order,
                self.budget,
                patience=patience,
                most_seconds=most,
                deadline=self.deadline,
            )
            if fitted is not None:
                self.take(fitted)

    def take(self, order: Sequence[int]) -> None:
        """Take an order that fits: prune it, keep it if it is the best.

        Args:
            order: the ops to run, repetitions included.
        """
        pruned = prune(self.problem, order, self.budget, deadline=self.deadline)
        extra = max(0.0, self.problem.order_seconds(pruned) - self.base)
        if extra < self.extra:
            self.order, self.extra = pruned, extra

    def rescue(self, order: Sequence[int]) -> None:
        """Make an order fit whatever the time, once: a late answer is better than none."""
        if (fitted := fit(self.problem, order, self.budget)) is not None:
            self.take(fitted)

    def raise_bound(self, bound: float) -> None:
        """Take a proven bound; infinity says that nothing fits."""
        assert bound < math.inf or self.order is None, "proved infeasible what has a schedule"
        self.bound = max(self.bound, bound)

    def _dropped(self, order: Sequence[int]) -> list[int] | None:
        return drop_single(self.problem, order, self.budget, deadline=self.deadline)
