"""The variants of a captured step that a plan may decide between, each with its executable twin.

A rewrite changes the joint graph; what is planned and what runs are both made of the result, so the
twin of a variant is the variant itself, captured and rewritten again. A plan names the rewrite that
its graph is of: a name, and after it what that rewrite is told, in words. A new one is a file that
enters itself, and a line where steps are captured.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from planner.graphs.capture.joint_graph import Joint, copied


@dataclass(frozen=True)
class Rewrite:
    """A named change of a joint graph: it returns ``None`` where there is nothing to change.

    ``apply`` takes a copy of the step, which it may change, and the words that follow the name. It
    raises ``Declined`` where it is asked for and cannot be. ``words`` is a regular expression of
    what may follow, ``example`` a name with words.
    """

    name: str
    apply: Callable[..., Joint | None]
    version: int = 1
    words: str = ""
    example: str = ""


class Declined(ValueError):
    """A rewrite does not suit a step; the message says what stands in the way."""


REWRITES: dict[str, Rewrite] = {}


def register_rewrite(rewrite: Rewrite) -> Rewrite:
    """Enter a rewrite under its name; a name taken twice raises ``ValueError``."""
    if rewrite.name in REWRITES:
        raise ValueError(f"a rewrite named {rewrite.name!r} is already registered")
    REWRITES[rewrite.name] = rewrite
    return rewrite


def rewritten(joint: Joint, name: str) -> tuple[Joint, str]:
    """Return a variant of a step and its name: as captured, where there is nothing to rewrite.

    The step given stays as it is.

    Raises:
        ValueError: no rewrite has this name.
        Declined: it does not suit this step.
    """
    if (rewrite := rewrite_of(name)) is AS_CAPTURED:
        return joint, name
    changed = rewrite.apply(copied(joint), *name.split()[1:])
    return (joint, AS_CAPTURED.name) if changed is None else (changed, name)


def rewrite_of(name: str) -> Rewrite:
    """Return the rewrite of a name, whatever words follow.

    Raises:
        ValueError: no rewrite has it, or takes these words; the message lists those there are.

    >>> rewrite_of("as_captured").version
    1
    """
    family, _, words = name.partition(" ")
    if family not in REWRITES:
        raise ValueError(f"unknown rewrite {name!r}; known: {', '.join(REWRITES)}")
    rewrite = REWRITES[family]
    if not re.fullmatch(rewrite.words, words):
        raise ValueError(
            f"{name!r} is no rewrite: expected {(rewrite.example or rewrite.name)!r} or the like"
        )
    return rewrite


AS_CAPTURED = register_rewrite(Rewrite("as_captured", lambda joint: joint))
"""The step as the model writes it."""
