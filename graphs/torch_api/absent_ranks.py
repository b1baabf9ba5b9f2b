"""Ranks that are not there: a mesh over them, whatever process groups the process has.

What torch keeps of process groups is one value for the whole process. While the block runs, the
thread that entered it sees another, of torch's fake group; all other threads see their own, and
the numbers by which groups get their names go on as they were.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from planner.graphs.torch_api.patches import capturing, patching

DIMENSION = "ranks that are not there"
"""What the mesh's dimension is called, so that no mesh of a person's is taken for it: torch keeps
what it once found out for a mesh, its groups included, and meshes of one name are one for it."""


class _Groups:
    """What torch keeps of process groups, empty at first; names count from afar."""

    def __init__(self, first: int) -> None:
        self.default_pg: Any = None
        self.group_count = first
        self.comms: list[Any] = []
        for table in _TABLES:
            setattr(self, table, {})


_TABLES = (
    "pg_map", "pg_names", "pg_group_ranks", "pg_backend_config", "tags_to_pg", "pg_to_tag",
    "pg_coalesce_state",
)  # fmt: skip


class _ByThread:
    """The groups of one thread, and of all others those that were there."""

    def __init__(self, before: Any, mine: _Groups) -> None:
        vars(self).update(before=before, mine=mine, thread=threading.get_ident())

    def _seen(self) -> Any:
        there = vars(self)
        return there["mine" if threading.get_ident() == there["thread"] else "before"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._seen(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._seen(), name, value)


@dataclass(frozen=True)
class _Made:
    """Groups once made, and the mesh over them; they hold nothing but names."""

    groups: _Groups
    mesh: DeviceMesh


_MADE: dict[int, _Made] = {}
_FIRST = 1_000_000


@contextmanager
def absent_ranks(ranks: int) -> Iterator[DeviceMesh]:
    """Yield a mesh of one dimension, of which this process is rank 0 and the others are nowhere.

    Collectives over it return at once, with tensors of the right shapes.

    Args:
        ranks: how many.

    >>> import torch.distributed as dist
    >>> with absent_ranks(4) as mesh:
    ...     mesh.size(), dist.get_world_size()
    (4, 4)
    >>> dist.is_initialized()
    False
    """
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    with capturing():
        made = _MADE.get(ranks)
        groups = made.groups if made else _Groups(_FIRST * (ranks + 1))
        with patching() as patches:
            there = _ByThread(distributed_c10d._world, groups)
            patches.attribute(distributed_c10d, "_world", there)
            if made is None:
                from torch.testing._internal.distributed.fake_pg import FakeStore

                dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
                mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=(DIMENSION,))
                made = _MADE[ranks] = _Made(groups, mesh)
            _known_by_name(made)
            yield made.mesh


def _known_by_name(made: _Made) -> None:
    """Enter the groups again where somebody who ended theirs took all names out."""
    from torch.distributed import distributed_c10d

    c10d: Any = distributed_c10d
    for group, name in made.groups.pg_names.items():  # type: ignore[attr-defined]
        try:
            c10d._resolve_process_group(name)
        except RuntimeError:
            c10d._register_process_group(name, group)
