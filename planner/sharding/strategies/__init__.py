"""The strategies that there are: all that is true of one is in its file."""

from planner.sharding.strategies import ddp, fsdp2, zero1  # noqa: F401 (each enters itself)
