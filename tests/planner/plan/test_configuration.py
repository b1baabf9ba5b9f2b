"""The discrete decisions: what is accepted, what is refused, and the sizes that follow."""

import pytest

from planner.plan.configuration import Configuration
from planner.plan.strategy import Strategy


def test_sizes_follow_from_the_parts() -> None:
    one = Configuration(Strategy.FSDP, 4, 2, micro_batch=3, accumulation=5)
    assert (one.world_size, one.global_batch) == (8, 120)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({"strategy": Strategy.DDP, "shard_ranks": 2}, "DDP shards nothing"),
        ({"strategy": Strategy.ZERO1, "shard_ranks": 2, "replicas": 2}, "over all ranks"),
        ({"strategy": Strategy.FSDP, "shard_ranks": 0}, "shard_ranks is 0"),
        ({"strategy": Strategy.FSDP, "shard_ranks": 2, "micro_batch": 0}, "micro_batch is 0"),
        ({"strategy": Strategy.FSDP, "shard_ranks": 2, "precision": "fp8"}, "float32, bfloat16"),
        ({"strategy": Strategy.ZERO1, "shard_ranks": 2, "offload": True}, "only FSDP offloads"),
    ],
)
def test_what_makes_no_sense_is_refused(made: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Configuration(**made)  # type: ignore[arg-type]


def test_text_says_what_differs() -> None:
    texts = {
        str(Configuration(Strategy.FSDP, 8)),
        str(Configuration(Strategy.FSDP, 4, 2)),
        str(Configuration(Strategy.FSDP, 8, offload=True)),
        str(Configuration(Strategy.FSDP, 8, precision="bfloat16")),
        str(Configuration(Strategy.FSDP, 8, micro_batch=2)),
        str(Configuration(Strategy.ZERO1, 8)),
        str(Configuration(Strategy.DDP, 1, 8)),
    }
    assert len(texts) == 7
