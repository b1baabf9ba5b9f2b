"""The caching allocator on paper: its rules one by one, and what must hold whatever is asked."""

from __future__ import annotations

import itertools
import random

import pytest

from planner.graphs.hardware.allocators import Block, CachingAllocator, OutOfMemory

MIB = 2**20


def test_sizes_are_rounded_and_nothing_is_nothing() -> None:
    allocator = CachingAllocator()
    assert allocator.allocate(0) is None
    block = allocator.allocate(1)
    assert block is not None
    assert block.size == 512
    allocator.release(None)


@pytest.mark.parametrize(
    ("asked", "reserved"),
    [
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (11 * MIB, 12 * MIB),
    ],
)
def test_a_segment_is_as_large_as_its_pool_wants(asked: int, reserved: int) -> None:
    allocator = CachingAllocator()
    allocator.allocate(asked)
    assert allocator.reserved == reserved


def test_expandable_segments_grow_by_pages() -> None:
    allocator = CachingAllocator(expandable=True)
    allocator.allocate(21 * MIB)
    assert allocator.reserved == 40 * MIB
    allocator.allocate(19 * MIB)
    assert allocator.reserved == 40 * MIB


def test_the_smallest_free_block_that_is_large_enough_is_taken() -> None:
    allocator = CachingAllocator()
    large, small = allocator.allocate(30 * MIB), allocator.allocate(12 * MIB)
    allocator.release(large)
    allocator.release(small)
    assert allocator.allocate(11 * MIB) is small
    assert allocator.reserved == 42 * MIB


def test_large_blocks_keep_up_to_a_mebibyte_too_much() -> None:
    allocator = CachingAllocator()
    block = allocator.allocate(12 * MIB)
    allocator.release(block)
    again = allocator.allocate(11 * MIB)
    assert again is block
    assert again.size == 12 * MIB
    allocator.release(again)
    split = allocator.allocate(10 * MIB)
    assert split is not None
    assert split.size == 10 * MIB


def test_neighbours_join() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.allocate(5 * MIB) for _ in range(4)]
    assert allocator.reserved == 20 * MIB
    for i in (1, 3, 2, 0):
        allocator.release(blocks[i])
    assert allocator.allocate(20 * MIB) is blocks[0]
    assert allocator.reserved == 20 * MIB


def test_free_segments_go_back_before_memory_runs_out() -> None:
    allocator = CachingAllocator(40 * MIB)
    allocator.release(allocator.allocate(30 * MIB))
    allocator.allocate(40 * MIB)
    assert (allocator.reserved, allocator.retries) == (40 * MIB, 1)
    with pytest.raises(OutOfMemory):
        allocator.allocate(1)


def test_a_segment_in_use_does_not_go_back() -> None:
    allocator = CachingAllocator(40 * MIB)
    whole = allocator.allocate(30 * MIB)
    allocator.release(whole)
    allocator.allocate(10 * MIB)  # out of the same segment
    with pytest.raises(OutOfMemory):
        allocator.allocate(30 * MIB)


def test_free_pages_go_back() -> None:
    allocator = CachingAllocator(80 * MIB, expandable=True)
    first, _, last = (allocator.allocate(20 * MIB) for _ in range(3))
    allocator.release(first)
    allocator.release(last)
    allocator.allocate(60 * MIB)
    assert allocator.reserved == 80 * MIB


@pytest.mark.parametrize("expandable", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_blocks_never_overlap_and_all_bytes_are_accounted_for(
    seed: int, *, expandable: bool
) -> None:
    draw = random.Random(seed)
    limit = draw.choice([None, 200 * MIB])
    allocator = CachingAllocator(limit, expandable=expandable)
    held: list[Block] = []
    for _ in range(600):
        if held and draw.random() < 0.48:
            allocator.release(held.pop(draw.randrange(len(held))))
            continue
        try:
            block = allocator.allocate(draw.choice([700, 300_000, 3 * MIB, 12 * MIB, 33 * MIB]))
        except OutOfMemory:
            assert limit is not None
            continue
        assert block is not None
        held.append(block)
    assert allocator.allocated == sum(block.size for block in held)
    assert allocator.allocated <= allocator.reserved
    assert limit is None or allocator.peak_reserved <= limit
    for pool in (0, 1):
        spans = sorted((b.address, b.address + b.size) for b in held if b.pool == pool)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    for block in held:
        allocator.release(block)
    assert allocator.allocated == 0


def test_pages_go_under_the_lowest_addresses_that_have_room() -> None:
    allocator = CachingAllocator(120 * MIB, expandable=True)
    blocks = [allocator.allocate(20 * MIB) for _ in range(4)]
    for i in (0, 2):
        allocator.release(blocks[i])
    whole = allocator.allocate(60 * MIB)  # 40 MiB of free pages, of two places, go back for it
    assert whole is not None
    assert (whole.address, allocator.reserved) == (80 * MIB, 100 * MIB)
    allocator.release(whole)
    allocator.release(blocks[3])
    again = allocator.allocate(70 * MIB)
    assert again is not None
    assert (again.address, allocator.retries) == (60 * MIB, 1)
    low = allocator.allocate(15 * MIB)  # a page of its own, where the first block was
    assert low is not None
    assert (low.address, allocator.reserved) == (0, 120 * MIB)


def test_a_free_block_that_can_grow_is_taken_last() -> None:
    allocator = CachingAllocator(expandable=True)
    first, _ = allocator.allocate(15 * MIB), allocator.allocate(20 * MIB)
    allocator.release(first)
    end = allocator.allocate(5 * MIB)  # fits both in 15 MiB at the start and 5 MiB at the end
    assert end is not None
    assert end.address == 0


@pytest.mark.parametrize("seed", range(6))
def test_what_is_given_back_is_accounted_for(seed: int) -> None:
    """The bytes that the driver gave are those of all blocks that have bytes, in any state."""
    draw = random.Random(seed)
    allocator = CachingAllocator(160 * MIB, expandable=True)
    held: list[Block] = []
    for _ in range(400):
        if held and draw.random() < 0.47:
            allocator.release(held.pop(draw.randrange(len(held))))
        else:
            try:
                block = allocator.allocate(draw.choice([900, 2 * MIB, 17 * MIB, 41 * MIB]))
            except OutOfMemory:
                continue
            assert block is not None
            held.append(block)
        mapped = {id(b): b.size for x in held for b in _range(x) if b.mapped}
        pools = {b.pool for b in held}
        assert sum(mapped.values()) <= allocator.reserved
        if pools == {0, 1}:
            assert sum(mapped.values()) == allocator.reserved
    assert allocator.retries > 0


def _range(block: Block) -> list[Block]:
    """Return all blocks of the range that a block lies in."""
    while block.before is not None:
        block = block.before
    found = [block]
    while (after := found[-1].after) is not None:
        assert after.address == found[-1].address + found[-1].size
        assert after.before is found[-1]
        found.append(after)
    return found
