"""One lock and one way for all that is changed in the process while a step is captured.

Torch keeps tables, hooks and methods that every thread reads. Whoever changes them holds the lock,
so that captures come one after another, and changes them through ``Patches``, which notes how to
put a thing back before it touches it. Knows nothing of what is changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, TypeVar

K = TypeVar("K")
T = TypeVar("T")
_LOCK = threading.RLock()
_ABSENT: Any = object()


@contextmanager
def capturing() -> Iterator[None]:
    """Let no other thread begin to capture while the block runs; the same thread may."""
    with _LOCK:
        yield


@contextmanager
def patching() -> Iterator[Patches]:
    """Yield what changes the process, holding the lock; all is put back when the block is left.

    >>> class Table: size = 3
    >>> with patching() as patches:
    ...     patches.attribute(Table, "size", 4)
    ...     Table.size
    4
    >>> Table.size
    3
    """
    with capturing():
        patches = Patches()
        try:
            try:
                yield patches
            finally:
                patches.undo()
        finally:
            patches.undo()  # if an interrupt came before the other had begun


class Patches:
    """Changes to what the whole process shares, undone last first.

    Each is noted before it is made and may be undone twice, so that an interrupt at any moment,
    while they are undone too, leaves nothing behind.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._undo: list[Callable[[], object]] = []

    def mine(self) -> bool:
        """Tell whether the thread that asks is the one that patches."""
        return threading.get_ident() == self._thread

    def on_undo(self, undo: Callable[[], object]) -> None:
        """Call a function when the changes made before are still to be undone, and those after are.

        It must be harmless to call it again, or though its change was not made.
        """
        self._undo.append(undo)

    def attribute(self, owner: Any, name: str, value: Any) -> None:
        """Give a class or a module another member.

        Args:
            owner: the class or module.
            name: of the member, its own or inherited.
            value: what it is until the undoing.
        """
        before = vars(owner).get(name, _ABSENT)

        def restore() -> None:
            if before is not _ABSENT:
                setattr(owner, name, before)
            elif name in vars(owner):
                delattr(owner, name)

        self.on_undo(restore)
        setattr(owner, name, value)

    def entry(self, table: MutableMapping[K, T], key: K, value: T) -> None:
        """Give a table another entry.

        Args:
            table: a dict of torch's.
            key: there or not.
            value: what it leads to until the undoing.
        """
        self._note_entry(table, key)
        table[key] = value

    def without(self, table: MutableMapping[K, Any], key: K) -> None:
        """Take an entry out of a table, if it is there."""
        self._note_entry(table, key)
        table.pop(key, None)

    def member(self, collection: list[T] | set[T], item: T) -> None:
        """Add an item to a list or a set that lacks it."""
        if item in collection:
            return

        def restore() -> None:
            if item in collection:
                collection.remove(item)

        self.on_undo(restore)
        collection.append(item) if isinstance(collection, list) else collection.add(item)

    def undo(self) -> None:
        """Put everything back; an interrupt meanwhile is raised when all is done."""
        try:
            while self._undo:
                self._undo[-1]()
                self._undo.pop()
        except KeyboardInterrupt:
            self.undo()
            raise

    def _note_entry(self, table: MutableMapping[K, Any], key: K) -> None:
        before = table.get(key, _ABSENT)

        def restore() -> None:
            if before is not _ABSENT:
                table[key] = before
            else:
                table.pop(key, None)

        self.on_undo(restore)
