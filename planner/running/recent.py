"""The last few things made, each found again by its key, and what could not be made.

Knows how many are kept. Knows nothing of what they are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from planner.errors import PlannerError

T = TypeVar("T")


@dataclass(frozen=True)
class _Failed:
    error: PlannerError
    circumstances: Hashable


@dataclass
class Recent(Generic[T]):
    """At most ``limit`` things by key, the one that was asked for longest ago dropped first.

    An error is kept, too, and raised at once the next time, as long as its circumstances last.
    """

    limit: int = 8
    _known: OrderedDict[Hashable, T | _Failed] = field(default_factory=OrderedDict)

    def get(
        self,
        key: Hashable,
        make: Callable[[], T],
        valid: Callable[[T], bool] = lambda _: True,
        circumstances: Callable[[], Hashable] = lambda: None,
    ) -> T:
        """Return what was made for a key, or make it.

        Args:
            key: what tells it from others.
            make: may raise a ``PlannerError``.
            valid: whether what was made still serves; if not, it is made anew.
            circumstances: what an error depends on beside the key; if that is another, it is tried
                again.

        >>> squares = Recent(2)
        >>> [squares.get(n, lambda: n * n) for n in (1, 2, 3)], len(squares)
        ([1, 4, 9], 2)
        """
        known = self._known.get(key)
        if isinstance(known, _Failed):
            serves = known.circumstances == circumstances()
        else:
            serves = known is not None and valid(known)
        if not serves:
            try:
                self._known[key] = make()
            except PlannerError as error:
                self._known[key] = _Failed(error, circumstances())
            while len(self._known) > self.limit:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        found = self._known[key]
        if isinstance(found, _Failed):
            raise found.error.with_traceback(None)
        return found

    def __contains__(self, key: Hashable) -> bool:
        return key in self._known

    def __len__(self) -> int:
        return len(self._known)
