"""The ways in which a request allows layers to be parted: by degree, with and without sequences.

Knows which degrees are possible at all, and why others are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from planner.errors import BadCluster, BadRequest, CaptureError
from planner.graphs.hardware.cluster import Cluster
from planner.plan.tensor_parallelism import RefusedDegree
from planner.sharding.configurations import WHOLE, Parted
from planner.sharding.parted.declared import declared, declares
from planner.sharding.parted.parallelize import Styles, check_paths
from planner.tensor_parallel import TensorParallel


@dataclass(frozen=True)
class Ways:
    """How layers may be parted: the styles of each way, and the degrees that are impossible.

    ``declared`` says that the styles are the model's own; ``only_if_needed`` that whole layers are
    tried first.
    """

    styles: Mapping[Parted, Styles] = field(default_factory=lambda: {WHOLE: {}})
    refused: tuple[RefusedDegree, ...] = ()
    declared: bool = False
    only_if_needed: bool = False

    @property
    def parted(self) -> tuple[Parted, ...]:
        """The ways that part layers."""
        return tuple(way for way in self.styles if way != WHOLE)


def ways_of(model: nn.Module, asked: TensorParallel | None, cluster: Cluster) -> Ways:
    """Return the ways that a request allows on a cluster.

    Args:
        model: whole.
        asked: what was said; none keeps layers whole.
        cluster: the devices of all ranks.

    Raises:
        BadRequest: styles for modules that there are not, or the model declares none and some are
            asked for.
        BadCluster: the only degree that was asked for is impossible.
    """
    if asked is None or (asked.only_if_needed and asked.styles is None and not declares(model)):
        return Ways()
    try:
        plain, along, heads = _styles(model, asked)
    except CaptureError as error:
        if asked.only_if_needed:
            return Ways(refused=(RefusedDegree(0, str(error)),))
        raise BadRequest(str(error)) from error
    styles: dict[Parted, Styles] = {}
    refused = []
    for degree in dict.fromkeys(sorted(asked.degrees)):
        if why := _impossible(degree, heads, cluster):
            refused.append(RefusedDegree(degree, why))
            continue
        if degree == 1:
            styles[WHOLE] = {}
            continue
        styles[Parted(degree)] = plain
        if along is not None:
            styles[Parted(degree, sequence=True)] = along
    if not styles:
        raise BadCluster(
            f"tensor_parallel={refused[0].degree} is impossible: {refused[0].reason}"
            if len(refused) == 1
            else "no degree of tensor parallelism is possible: "
            + "; ".join(f"{r.degree}: {r.reason}" for r in refused)
        )
    return Ways(styles, tuple(refused), asked.styles is None, asked.only_if_needed)


def _styles(
    model: nn.Module, asked: TensorParallel
) -> tuple[Styles, Styles | None, Mapping[str, int]]:
    if asked.styles is None:
        own = declared(model)
        return own.styles, asked.sequence or own.sequence, own.heads
    for styles in (asked.styles, asked.sequence or {}):
        check_paths(model, styles)
    return asked.styles, asked.sequence, {}


def _impossible(degree: int, heads: Mapping[str, int], cluster: Cluster) -> str:
    """Say why layers cannot be parted over so many ranks; nothing if they can."""
    node = cluster.devices_per_node
    if degree > node:
        return f"{degree} ranks would span nodes of {node} devices"
    if node % degree or cluster.world_size % degree:
        return f"{degree} ranks do not divide {cluster} evenly"
    for name, count in heads.items():
        if count % degree:
            return f"{name} is {count}, which {degree} ranks do not divide"
    return ""
