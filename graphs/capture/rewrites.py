"""The variants of a captured step that a plan may decide between, each with its executable twin.

A rewrite changes the joint graph; what is planned and what runs are both made of the result, so the
twin of a variant is the variant itself, captured and rewritten again. A plan names the rewrite that
its graph is of. A new one is a file that enters itself, and a line in the folder's ``__init__``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from planner.graphs.capture.joint_graph import Joint


@dataclass(frozen=True)
class Rewrite:
    """A named change of a joint graph: it returns ``None`` where there is nothing to change."""

    name: str
    apply: Callable[[Joint], Joint | None]
    version: int = 1


REWRITES: dict[str, Rewrite] = {}


def register_rewrite(rewrite: Rewrite) -> Rewrite:
    """Enter a rewrite under its name; a name taken twice raises ``ValueError``."""
    if rewrite.name in REWRITES:
        raise ValueError(f"a rewrite named {rewrite.name!r} is already registered")
    REWRITES[rewrite.name] = rewrite
    return rewrite


def rewritten(joint: Joint, name: str) -> tuple[Joint, str]:
    """Return a variant of a step and its name: as captured, where there is nothing to rewrite.

    Raises:
        ValueError: no rewrite has this name.
    """
    changed = rewrite_of(name).apply(joint)
    return (joint, AS_CAPTURED.name) if changed is None else (changed, name)


def rewrite_of(name: str) -> Rewrite:
    """Return the rewrite of a name.

    Raises:
        ValueError: no rewrite has it; the message lists those there are.

    >>> rewrite_of("as_captured").version
    1
    """
    if name not in REWRITES:
        raise ValueError(f"unknown rewrite {name!r}; known: {', '.join(REWRITES)}")
    return REWRITES[name]


AS_CAPTURED = register_rewrite(Rewrite("as_captured", lambda joint: joint))
"""The step as the model writes it."""
