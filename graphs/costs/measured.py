"""What an operator really takes here: seconds and workspace, measured once and remembered.

Knows how to run one operator alone on made-up data. Knows nothing of graphs. The device must be
present; for one that is not there are ``graphs.costs.workspace`` and the roofline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from planner.graphs.costs.cache import environment, recall, remember
from planner.graphs.costs.operator_call import (
    OperatorCall,
    blank,
    device_of,
    input_bytes,
    materialise,
    new_storage_bytes,
    output_bytes,
    random,
    signature,
)
from planner.graphs.costs.workspace import needs_no_workspace
from planner.graphs.torch_api.allocation_records import measure_peak
from planner.graphs.torch_api.dispatch import without_autocast

N = TypeVar("N", float, list[int])
T = TypeVar("T")
_TIMED_SECONDS = 0.1
_LEAST_RUNS, _MOST_RUNS = 3, 15
_SMALL_BYTES = 1 << 20
_EVICTED_BYTES = 1 << 26
"""Written between timed runs: more than the last-level cache of common processors."""


class MeasureError(RuntimeError):
    """An operator could not be run here; the message names it and says why."""


def measure_seconds(
    calls: Sequence[OperatorCall],
    *,
    cache: Path | None = None,
    fallback: Callable[[OperatorCall], float] | None = None,
) -> list[float]:
    """Time each distinct call: the fastest of at least three runs, freeing included.

    Whatever else runs on the machine only adds: where two threads had to wait for a core each, the
    median for a ReLU of 0.5 MB was 6.6 ms. Code paths are warm and caches are cold: in a training
    step, what an op reads was mostly made long before.

    Args:
        calls: in any order and with repetitions, which cost nothing.
        cache: a folder that remembers measurements from one process to the next.
        fallback: the seconds to assume for a call that cannot be run here.

    Raises:
        MeasureError: such a call, when there is no ``fallback``.
    """
    return _each(calls, "least_seconds", _seconds, cache, fallback)


@dataclass(frozen=True, slots=True)
class Memory:
    """What one call holds: workspace beyond inputs and outputs, and each storage it makes.

    ``output_bytes`` is empty if the call was not run: fake tensors then say what there is to know.
    """

    workspace_bytes: int
    output_bytes: tuple[int, ...] = ()


def measure_memory(
    calls: Sequence[OperatorCall],
    *,
    cache: Path | None = None,
    fallback: Callable[[OperatorCall], int] | None = None,
) -> list[Memory]:
    """Find the bytes of workspace of each distinct call, and the true sizes of what it returns.

    Some kernels return more than fake tensors know: ``aten.mkldnn_rnn_layer`` a workspace for
    backward, ``aten.mse_loss`` a scalar in a buffer as large as its input.

    Args:
        calls: in any order and with repetitions, which cost nothing.
        cache: a folder that remembers measurements from one process to the next.
        fallback: the bytes of workspace to assume for a call that cannot be run here.

    Raises:
        MeasureError: such a call, when there is no ``fallback``.

    >>> x = torch.empty(8, 8)
    >>> measure_memory([OperatorCall(torch.ops.aten.add.Tensor, (x, x))])
    [Memory(workspace_bytes=0, output_bytes=(256,))]
    """
    estimate = None if fallback is None else (lambda call: [fallback(call)])
    found = _each(calls, "memory", _memory, cache, estimate)
    return [Memory(workspace, tuple(made)) for workspace, *made in found]


def _each(
    calls: Sequence[OperatorCall],
    kind: str,
    one: Callable[[OperatorCall], N],
    cache: Path | None,
    fallback: Callable[[OperatorCall], N] | None,
) -> list[N]:
    """Apply ``one`` to each distinct call that the cache does not know."""
    keys = [signature(call) for call in calls]
    answers: dict[str, N] = {}
    fresh: dict[str, dict[str, N]] = {}
    books: dict[str, dict[str, Any]] = {}
    for key, call in zip(keys, calls, strict=True):
        if key in answers:
            continue
        try:
            where = _check_present(call)
            if where not in books:
                books[where] = recall(cache, kind, where) if cache else {}
            book = books[where]
            if key not in book:
                book[key] = fresh.setdefault(where, {})[key] = _guarded(call, one)
            answers[key] = book[key]
        except MeasureError:
            if fallback is None:
                raise
            answers[key] = fallback(call)
    if cache:
        for where, entries in fresh.items():
            remember(cache, kind, where, entries)
    return [answers[key] for key in keys]


def _check_present(call: OperatorCall) -> str:
    """Return the environment the call runs in."""
    device = device_of(call)
    if device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_available()):
        return environment(device)
    raise MeasureError(f"{call.target} is for {device}, which is not on this machine")


def _guarded(call: OperatorCall, one: Callable[[OperatorCall], T]) -> T:
    """Apply ``one``, unless its tensors would not fit; leave the random state alone."""
    device = device_of(call)
    try:
        needed = input_bytes(call) + output_bytes(call)
        if needed > (available := _available_bytes(device)) // 2:
            raise MeasureError(
                f"{call.target} needs {needed} bytes, more than half of the {available} available "
                f"on {device}: it is not run"
            )
        # Only with gradients enabled does a recurrent layer make what its backward needs. What
        # autocast casts has been cast: it would hand the call another dtype, or widen its result.
        with torch.enable_grad(), without_autocast(), _random_state_kept(call, device):
            return one(call)
    except (RuntimeError, NotImplementedError, IndexError, ValueError, TypeError) as error:
        if isinstance(error, MeasureError):
            raise
        raise MeasureError(f"{call.target} does not run on made-up data: {error}") from error


def _random_state_kept(call: OperatorCall, device: torch.device) -> AbstractContextManager[None]:
    """Put the generator back after what may draw; else leave it to other threads meanwhile."""
    drawing = torch.Tag.nondeterministic_seeded in call.target.tags
    if call.target.namespace == "aten" and not drawing:
        return nullcontext()
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _available_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    return int(psutil.virtual_memory().available)


def _memory(call: OperatorCall) -> list[int]:
    """Return the most that a run held beyond its outputs, then the outputs.

    Zeros cost nothing to make, but a kernel such as the matrix exponential takes another path, and
    more workspace, on other data. So a call that is small, or of such a kernel, runs on both.
    """
    if needs_no_workspace(call):
        return [0]
    on_zeros = _watched(materialise(call, blank))
    if "linalg" not in str(call.target) and input_bytes(call) > _SMALL_BYTES:
        return on_zeros
    try:
        on_data = _watched(materialise(call, random))
    except RuntimeError:  # numbers it refuses, such as a matrix that has no Cholesky factor
        return on_zeros
    return list(map(max, on_zeros, on_data))


def _watched(real: OperatorCall) -> list[int]:
    """Watch a run; on a card not the first, which makes what a library keeps for all (cuBLAS)."""
    if device_of(real).type == "cuda":
        real.run()
    record = measure_peak(lambda: _run_and_drop(real), device_of(real), collect=False)
    return [max(0, record.peak_bytes - sum(record.result)), *record.result]


def _run_and_drop(call: OperatorCall) -> tuple[int, ...]:
    """Run a call, free what it returns while still watched, and say how much that was."""
    return new_storage_bytes(call, call.run())


def _seconds(call: OperatorCall) -> float:
    real = materialise(call, random)
    clock = _cuda_seconds if device_of(call).type == "cuda" else _wall_seconds
    clock(real)  # warm: code paths are chosen and pages mapped on the first run
    other = torch.empty(_EVICTED_BYTES, dtype=torch.uint8, device=device_of(call))
    runs: list[float] = []
    while len(runs) < _LEAST_RUNS or (sum(runs) < _TIMED_SECONDS and len(runs) < _MOST_RUNS):
        other.zero_()
        runs.append(clock(real))
    return min(runs)


def _wall_seconds(call: OperatorCall) -> float:
    start = time.perf_counter()
    call.run()
    return time.perf_counter() - start


def _cuda_seconds(call: OperatorCall) -> float:
    event: Any = torch.cuda.Event
    start, end = event(enable_timing=True), event(enable_timing=True)
    start.record()
    call.run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
