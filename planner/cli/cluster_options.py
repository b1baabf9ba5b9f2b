"""What ``planner fit`` is told about several devices, as options of the command line.

Knows their names and how to turn them into arguments of ``planner.fit``. Knows nothing of plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from planner.cli.options import Command, declared
from planner.errors import BadCluster, BadRequest
from planner.plan.configuration import PRECISIONS
from planner.tensor_parallel import IF_NEEDED, SEARCHED

_OPTIONS = (
    click.option(
        "--world-size",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="How many devices; above 1 what to shard is planned, too.",
    ),
    click.option("--devices-per-node", type=click.IntRange(min=1), help="By default the usual."),
    click.option(
        "--link",
        "links",
        multiple=True,
        help="'HDR', '25GB/s' (the slowest link), or 'scale_out=25GB/s'; repeatable.",
    ),
    click.option(
        "--global-batch", type=click.IntRange(min=1), help="Samples of a step over all devices."
    ),
    click.option(
        "--precision",
        "precisions",
        type=click.Choice(PRECISIONS),
        multiple=True,
        help="What compute may run in; repeatable. float32 is the model as it is.",
    ),
    click.option("--no-offload", is_flag=True, help="Never move states to the host."),
    click.option(
        "--tensor-parallel",
        metavar="HOW",
        help="Part layers over ranks of a node: if_needed (default), auto (compares degrees), off, "
        "or a number of ranks. By the model's own styles (tp_plan).",
    ),
)


CLUSTER = (
    "world_size",
    "devices_per_node",
    "links",
    "global_batch",
    "precisions",
    "no_offload",
    "tensor_parallel",
)
"""The names under which a command gets them."""


def cluster_options(command: Command) -> Command:
    """Declare what a command that plans for several devices takes."""
    return declared(_OPTIONS, command)


def cluster_arguments(
    *,
    world_size: int,
    devices_per_node: int | None,
    links: Sequence[str],
    global_batch: int | None,
    precisions: Sequence[str],
    no_offload: bool,
    tensor_parallel: str | None = None,
) -> dict[str, Any]:
    """Turn the options into arguments of ``planner.fit``.

    Args:
        world_size, devices_per_node: how many devices, and how many a node.
        links: one rate, or each as name=rate.
        global_batch: samples of a step over all devices.
        precisions: what compute may run in.
        no_offload: whether states stay on the devices.
        tensor_parallel: a word, or a number as digits; nothing leaves the default.

    Raises:
        BadCluster: more than one unnamed link, or options of several devices for one.
        BadRequest: another word for ``tensor_parallel``.

    >>> cluster_arguments(world_size=8, devices_per_node=None, links=["host=25GB/s"],
    ...                   global_batch=64, precisions=[], no_offload=True)["link"]
    {'host': '25GB/s'}
    """
    given = {
        "--devices-per-node": devices_per_node,
        "--link": links,
        "--global-batch": global_batch,
        "--precision": precisions,
        "--no-offload": no_offload,
        "--tensor-parallel": tensor_parallel,
    }
    if world_size == 1:
        if used := [name for name, value in given.items() if value]:
            raise BadCluster(f"{used[0]} is for several devices: pass --world-size, too")
        return {}
    return {
        "world_size": world_size,
        "devices_per_node": devices_per_node,
        "link": _link(links),
        "global_batch": global_batch,
        "precisions": tuple(precisions) or ("float32",),
        "offload": not no_offload,
        **_parted(tensor_parallel),
    }


def _parted(said: str | None) -> dict[str, Any]:
    if said is None:
        return {}
    known = {"off": False, SEARCHED: SEARCHED, IF_NEEDED: IF_NEEDED}
    if said not in known and not said.isdecimal():
        raise BadRequest(
            f"--tensor-parallel {said!r}: expected {', '.join(known)}, or a number of ranks"
        )
    return {"tensor_parallel": int(said) if said.isdecimal() else known[said]}


def _link(links: Sequence[str]) -> str | dict[str, str] | None:
    named = dict(link.split("=", 1) for link in links if "=" in link)
    plain = [link for link in links if "=" not in link]
    if len(plain) > 1 or (plain and named):
        raise BadCluster(
            f"links {', '.join(links)}: expected one rate, or each as name=rate with the names "
            "scale_up, scale_out and host"
        )
    return plain[0] if plain else named or None
