"""What a person says of tensor parallelism: whether, how, and over how many ranks.

Knows how it is checked. What a model declares itself and how it is carried out is in
``planner.sharding.parted``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planner.errors import BadRequest

DEGREES = (1, 2, 4, 8)
"""Over how many ranks of a node layers are parted, if nobody says otherwise."""

IF_NEEDED, SEARCHED = "if_needed", "auto"


@dataclass(frozen=True)
class TensorParallel:
    """How layers may be parted over ranks of a node.

    Args:
        styles: torch's ``ParallelStyle`` of each module by a pattern of its path, in which ``*`` is
            any name: ``{"layers.*.q": ColwiseParallel()}``; none takes what the model declares.
        sequence: styles for sequence parallelism, to be compared with the others; none takes what
            is known of the model if ``styles`` are its own, and else nothing.
        degrees: over how many ranks, 1 for not at all.
        only_if_needed: part layers only where nothing fits otherwise, or where samples are fewer
            than ranks.
    """

    styles: Mapping[str, Any] | None = None
    sequence: Mapping[str, Any] | None = None
    degrees: tuple[int, ...] = DEGREES
    only_if_needed: bool = False

    def __post_init__(self) -> None:
        for name in ("styles", "sequence"):
            _check_styles(name, getattr(self, name))
        wrong = [d for d in self.degrees if isinstance(d, bool) or not isinstance(d, int) or d < 1]
        if wrong or not self.degrees:
            raise BadRequest(
                f"degrees of tensor parallelism are {self.degrees!r}; expected numbers of ranks, "
                "at least 1, such as (1, 2, 4, 8)"
            )


def _check_styles(name: str, styles: Any) -> None:
    if styles is None:
        return
    if not isinstance(styles, Mapping) or not styles:
        raise BadRequest(
            f"tensor parallelism has {name}={styles!r}; expected a mapping from paths of modules "
            "to styles of torch.distributed.tensor.parallel, not an empty one"
        )
    from torch.distributed.tensor.parallel import ParallelStyle

    for path, style in styles.items():
        if not isinstance(path, str) or not isinstance(style, ParallelStyle):
            raise BadRequest(
                f"tensor parallelism of {path!r} is {style!r}; expected the path of a module and a "
                "style of torch.distributed.tensor.parallel, such as ColwiseParallel()"
            )


def tensor_parallel_of(said: Any) -> TensorParallel | None:
    """Return what is said in short as a value; ``None`` where layers stay whole.

    Args:
        said: "if_needed", "auto" or ``True`` (search all degrees), ``False``, a degree, a mapping
            of styles, or a ``TensorParallel``.

    Raises:
        BadRequest: something else.

    >>> tensor_parallel_of(4).degrees, tensor_parallel_of(False)
    ((4,), None)
    """
    if said is False or (said == 1 and not isinstance(said, bool)):
        return None
    if said is True or said == SEARCHED:
        return TensorParallel()
    if said == IF_NEEDED:
        return TensorParallel(only_if_needed=True)
    if isinstance(said, int):
        return TensorParallel(degrees=(said,))
    if isinstance(said, Mapping):
        return TensorParallel(said)
    if isinstance(said, TensorParallel):
        return said
    raise BadRequest(
        f"tensor_parallel is {said!r}; expected {IF_NEEDED!r}, {SEARCHED!r}, True, False, a number "
        "of ranks, styles of modules by their paths, or a planner.TensorParallel"
    )


__all__ = ["DEGREES", "IF_NEEDED", "SEARCHED", "TensorParallel", "tensor_parallel_of"]
