"""Steps that Dynamo traces whole, and its errors as they were raised.

Knows what Dynamo's errors wrap, and how it says where code cannot be traced.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch._dynamo import config as dynamo_config
from torch._dynamo.exc import BackendCompilerFailed, Unsupported

from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.inductor.scheduler import innermost


class StepTold(Exception):
    """Ends a compilation once the step has been handed over."""


MANY_SIZES = 2**16
"""How many steps Dynamo may compile of one code: by default it gives up after eight."""
_LOGS = re.compile(r"(debug|info|warn|warning|error|critical|exception|log)(_\w+)?$")


@contextmanager
def traced_whole() -> Iterator[None]:
    """Let Dynamo trace steps that log, whose lines it leaves out, and raise errors as they were.

    A step inside ``DistributedDataParallel`` is not cut where its buckets end. Each size of a call
    is compiled by itself, however many there are.
    """
    # methods that libraries add, such as transformers' warning_once, included
    lines = {call for name, call in vars(logging.Logger).items() if _LOGS.match(name)}
    ignored = {*dynamo_config.ignore_logging_functions, *lines}
    whole = {"ignore_logging_functions": ignored, "optimize_ddp": False}
    limits = dict.fromkeys(("recompile_limit", "accumulated_recompile_limit"), MANY_SIZES)
    with dynamo_config.patch({**whole, **limits}), plain_errors():
        yield


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise what a partitioner or backend of ours raised, not what Dynamo makes of it.

    Raises:
        CaptureError: Dynamo cannot trace the code whole.
    """
    try:
        yield
    except BackendCompilerFailed as error:
        inner = innermost(error)
        if isinstance(inner, StepTold) or type(inner).__module__.startswith("planner."):
            raise inner from None
        raise
    except Unsupported as error:
        where = broken_at(error.real_stack, str(error.msg))
        raise CaptureError(
            f"torch.compile does not take the step whole: it breaks at {where}"
        ) from error


def broken_at(stack: Sequence[traceback.FrameSummary], reason: str) -> str:
    """Return the line that was being traced, and in a line why it could not be."""
    why, *_ = reason.splitlines() or [""]
    if not stack:
        return f"a line that is not known: {why}"
    code = f" ({stack[-1].line})" if stack[-1].line else ""
    return f"{stack[-1].filename}:{stack[-1].lineno}{code}: {why}"
