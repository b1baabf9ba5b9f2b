"""The options that several commands share, and what they mean as arguments of ``planner.fit``.

Knows how click declares them. Knows nothing of what a command does with them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from planner.byte_sizes import parse_rate
from planner.errors import BadCluster, BadRequest
from planner.loss_chunks import KEEP
from planner.loss_chunks import LOGITS as LOGITS_SAID
from planner.request import OP_BY_OP
from planner.solvers import Limits
from planner.step_options import ALLOCATORS

MODEL = click.argument("model", metavar="MODEL")
PLAN = click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
JSON = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
BUDGET = click.option("--budget", required=True, help="Bytes: '6GB', '6GiB', '80%' of the device.")
_SHARED = (
    click.option("--inputs", metavar="SPEC", help="path.py:function that returns the inputs."),
    click.option(
        "--optimizer", default="adamw", show_default=True, help="A name; 'none' leaves it out."
    ),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        help="'H100 SXM', 'cpu'; auto is the model's.",
    ),
    click.option(
        "--engine",
        default=OP_BY_OP,
        show_default=True,
        help="What carries the plan out; inductor compiles it (compare sets it beside).",
    ),
    click.option(
        "--costs",
        type=click.Choice(["roofline", "measured"]),
        default="roofline",
        show_default=True,
        help="Estimate the times of ops, or run them.",
    ),
    click.option(
        "--time-limit",
        type=click.FloatRange(min=0, min_open=True),
        default=Limits().seconds,
        show_default=True,
        help="Seconds a solver may take.",
    ),
    click.option(
        "--reserve",
        metavar="SIZE",
        help="Room of the budget for what else lives on the device, such as 12GB.",
    ),
    click.option(
        "--allocator",
        type=click.Choice(ALLOCATORS),
        default="auto",
        show_default=True,
        help="How the accelerator's allocator is set where the plan will run.",
    ),
    JSON,
)

DYNAMIC = click.option(
    "--dynamic",
    multiple=True,
    metavar="NAME=DIMS",
    help="Sizes that may be smaller: batch (default), off, or ids=0,1 for each argument.",
)

LOSS_CHUNKS = click.option(
    "--loss-chunks",
    default="1",
    show_default=True,
    metavar="K",
    help="In how many chunks a language model's loss is computed; auto lets the plan choose.",
)
MLP_CHUNKS = click.option(
    "--mlp-chunks",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="K",
    help="In how many chunks of the tokens MLPs are computed.",
)
LOGITS = click.option(
    "--logits",
    type=click.Choice(LOGITS_SAID),
    default=KEEP,
    show_default=True,
    help="With chunks: what becomes of logits that the model returns.",
)

OFFLOAD = click.option(
    "--offload",
    metavar="WHERE",
    help="Let values move to the host: 'auto', the most bytes (64GB), a directory (on a CPU), or "
    "any of bytes=64GB, directory=/scratch, rate=2GB/s, tier=NAME and states, with commas. Over "
    "several devices: the most bytes of a node's host for states.",
)

Command = TypeVar("Command", bound=Callable[..., Any])


def declared(options: Sequence[Callable[..., Any]], command: Command) -> Command:
    """Give a command some options, listed by its help in their order."""
    for option in reversed(options):
        command = option(command)
    return command


def shared(command: Command) -> Command:
    """Declare what every command that plans a model takes."""
    return declared(_SHARED, command)


def file_to_write(name: str, help_text: str) -> Callable[[Command], Command]:
    """Declare a file to write."""
    return click.option(name, type=click.Path(path_type=Path), callback=_writable, help=help_text)


def _writable(_context: click.Context, _option: click.Parameter, path: Path | None) -> Path | None:
    """Refuse a path that cannot be written before any work is done."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise click.BadParameter(f"{path} cannot be written: its folder must exist")
    return path


def arguments(
    *,
    optimizer: str,
    device: str,
    costs: str,
    time_limit: float,
    engine: str = OP_BY_OP,
    reserve: str | None = None,
    allocator: str = "auto",
    budget: str | None = None,
) -> dict[str, Any]:
    """Turn the shared options into arguments of ``planner.fit``.

    Args:
        optimizer, device, costs, engine: as ``Request`` has them; "none" leaves the optimizer out.
        time_limit: seconds of a solver.
        reserve: a size, or nothing.
        allocator: as ``Request`` has it.
        budget: a text, or bytes as digits.
    """
    asked = {} if budget is None else {"budget": int(budget) if budget.isdecimal() else budget}
    return asked | {
        "optimizer": None if optimizer == "none" else optimizer,
        "device": device,
        "costs": costs,
        "limits": Limits(seconds=time_limit),
        "reserve": reserve,
        **({} if allocator == "auto" else {"allocator": allocator}),
        **({} if engine == OP_BY_OP else {"engine": engine}),
    }


def dynamic(said: Sequence[str]) -> str | dict[str, tuple[int, ...]]:
    """Turn what ``--dynamic`` said into what ``planner.fit`` takes.

    Raises:
        BadRequest: a part is neither one word nor a name with its dimensions.

    >>> dynamic([]), dynamic(["off"]), dynamic(["ids=0,1", "lengths=0"])
    ('batch', 'off', {'ids': (0, 1), 'lengths': (0,)})
    """
    if len(said) <= 1 and "=" not in "".join(said):
        return said[0] if said else "batch"
    parts = [part.partition("=") for part in said]
    try:
        return {name: tuple(int(d) for d in dims.split(",")) for name, _, dims in parts}
    except ValueError as error:
        raise BadRequest(
            f"--dynamic {' '.join(said)!r}: expected batch, off, or NAME=DIMS such as ids=0,1"
        ) from error


def chunked(loss_chunks: str, logits: str, mlp_chunks: int) -> dict[str, Any]:
    """Turn what was said of a loss and MLPs in chunks into arguments of ``planner.fit``.

    Args:
        loss_chunks: a number as digits, or a word.
        logits, mlp_chunks: as ``Request`` has them.

    >>> chunked("1", "keep", 1), chunked("8", "when_read", 1)
    ({}, {'loss_chunks': 8, 'logits': 'when_read'})
    """
    count = int(loss_chunks) if loss_chunks.isdecimal() else loss_chunks
    found = {"loss_chunks": count, "logits": logits, "mlp_chunks": mlp_chunks}
    return {name: said for name, said in found.items() if said not in (1, KEEP)}


def moved(offload: str | None, cluster: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Turn what was said of the host into arguments of ``planner.fit``.

    Args:
        offload: "auto", a size or a directory, or options; nothing leaves the default.
        cluster: what was said of several devices, if that can be said.

    Raises:
        BadCluster: both were said.
        BadRequest: an option that is none.

    >>> moved(None), moved("auto"), moved("64GB")
    ({}, {'offload': True}, {'offload': '64GB'})
    >>> moved("rate=2GB/s,states")
    {'offload': {'bytes_per_second': 2000000000.0, 'states': True}}
    """
    if offload is None:
        return {}
    if cluster and not cluster["offload"]:
        raise BadCluster("--offload and --no-offload were both said: leave one of them out")
    if offload == "auto":
        return {"offload": True}
    if os.path.isdir(offload) or not ("=" in offload or "states" in offload.split(",")):
        return {"offload": offload}
    return {"offload": dict(map(_host_option, offload.split(",")))}


def _host_option(said: str) -> tuple[str, Any]:
    name, _, value = (part.strip() for part in said.partition("="))
    if name == "states" and not value:
        return name, True
    try:
        if name == "rate":
            return "bytes_per_second", parse_rate(value)
    except ValueError as error:
        raise BadRequest(f"--offload says {said!r}: {error}") from error
    if name not in ("bytes", "directory", "tier") or not value:
        raise BadRequest(
            f"--offload says {said!r}; expected bytes=64GB, directory=/scratch, rate=2GB/s, "
            "tier=NAME or states, with commas in between"
        )
    return name, value
