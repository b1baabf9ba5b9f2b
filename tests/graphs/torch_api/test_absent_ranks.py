"""A mesh over ranks that are not there, beside the process groups that are."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard

from planner.graphs.torch_api.absent_ranks import absent_ranks


def gathered(ranks: int) -> torch.Size:
    with absent_ranks(ranks) as mesh, torch.device("meta"):
        whole = DTensor.from_local(torch.zeros(3, 2), mesh, [Shard(0)], run_check=False)
        return whole.redistribute(placements=[Replicate()]).to_local().shape


def test_shapes_are_those_of_all_ranks() -> None:
    assert [gathered(n) for n in (2, 4, 2)] == [(6, 2), (12, 2), (6, 2)]
    assert not dist.is_initialized()


def test_the_process_groups_that_there_are_stay_as_they_were() -> None:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        before = dist.group.WORLD
        seen = []
        with absent_ranks(4):
            assert dist.get_world_size() == 4
            other = threading.Thread(target=lambda: seen.append(dist.get_world_size()))
            other.start()
            other.join()
        assert seen == [1], "another thread sees its own"
        assert dist.group.WORLD is before
        ones = torch.ones(2)
        dist.all_reduce(ones)
        assert ones.tolist() == [1, 1]
        assert dist.get_backend(dist.new_group([0])) == "gloo"
    finally:
        dist.destroy_process_group()
    assert gathered(4) == (12, 2), "though all names were taken out"


def test_an_error_inside_leaves_nothing_behind() -> None:
    with pytest.raises(ZeroDivisionError), absent_ranks(2):
        raise ZeroDivisionError
    assert not dist.is_initialized()
