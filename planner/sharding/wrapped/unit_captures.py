"""A model as a root and repeated units, each captured by itself.

A unit is what the model's author repeats: the numbered children of a container, ``h.0`` or
``layers.3``. Units that are alike share one capture, so that eighty layers cost one. The root is
what is around them, captured with an opaque operator in the place of every unit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from planner.errors import CaptureError
from planner.graphs.capture.call_arguments import Arguments, Inputs, arguments_of
from planner.graphs.capture.guards.call import device_type
from planner.graphs.capture.guards.twins import Make, is_twin, make_of, same_data
from planner.graphs.capture.hollow_units import ANCHOR, HollowUnit, as_operators, hollowed
from planner.graphs.capture.opaque_units import cast as cast_call
from planner.graphs.capture.opaque_units import record_calls, stubbed
from planner.graphs.capture.placed import require_unwrapped
from planner.graphs.capture.rewrites import AS_CAPTURED
from planner.graphs.capture.same_step import computation
from planner.graphs.capture.sizes import Dynamic
from planner.graphs.capture.training_step import (
    Captured,
    Traced,
    capture_joint,
    has_data,
    target_of,
)
from planner.graphs.capture_error import CaptureError as GraphsCaptureError
from planner.graphs.hardware.cluster import Cluster
from planner.graphs.hardware.devices import DeviceSpec
from planner.graphs.torch_api.module_internals import named_parameters_of
from planner.graphs.torch_api.patches import capturing
from planner.running.engines.engine import CapturedUnit
from planner.sharding.row_wise import is_table
from planner.sharding.wrapped.boundary import (
    UnitCapture,
    calls_of,
    stub_of,
    unit_capture_of,
    units_read_outside,
)
from planner.sharding.wrapped.compute_precision import PRECISIONS, in_precision
from planner.sharding.wrapped.engine_units import run_by_engine
from planner.sharding.wrapped.refused_units import (
    refuse_blocks_read_outside,
    refuse_communication,
    refuse_left_behind,
)
from planner.sharding.wrapped.unit_choice import Candidates, called_once, candidates_of, kinds_of

T = TypeVar("T")

UnitsOf = Callable[[nn.Module, Arguments], CapturedUnit]

Kinds = Callable[[str, nn.Module, Arguments], Hashable]
"""Says of what kind a unit is, by its path and its call."""


@dataclass(frozen=True)
class ModelCapture:
    """A model taken apart. ``units`` are module paths in the order of execution.

    ``kinds[kind_of[i]]`` is unit ``i``. The root's parameters are those no unit has, a tied one
    once. Where a plan runs the root, too, ``program`` is what it does there, its units hollow.
    """

    root: UnitCapture
    units: tuple[str, ...]
    kind_of: tuple[int, ...]
    kinds: tuple[UnitCapture, ...]
    precision: str
    program: Captured | None = None

    def kind(self, unit: int) -> UnitCapture:
        """Return what a unit is."""
        return self.kinds[self.kind_of[unit]]


Rewritten = Callable[[str], ModelCapture]
"""Returns the capture of a model whose root is rewritten, by the name of a rewrite."""


def capture_units(
    model: nn.Module,
    inputs: Inputs | Arguments,
    *,
    loss: Callable[..., Any] | None = None,
    targets: Any = None,
    device: DeviceSpec = "auto",
    costs: str = "roofline",
    dynamic: Dynamic = "batch",
    precision: str = "float32",
    units: Sequence[str] | None = None,
    cluster: Cluster | None = None,
    engine: UnitsOf | None = None,
    rewrite: str = AS_CAPTURED.name,
) -> ModelCapture:
    """Take a model apart and capture every distinct unit of its step, allocating nothing.

    Args:
        model, inputs, loss, targets, device, costs: as for ``capture``.
        dynamic: which sizes of a unit's call may be smaller: "batch" or "off".
        precision: one of ``PRECISIONS``.
        units: paths of the modules to shard and plan one by one, instead of those found.
        cluster: what the model's own collectives run on, if it is parallelized to be planned with
            them; without it they are refused.
        engine: captures a unit, by its call, as an engine runs it that runs units by itself.
        rewrite: the variant of the root's step to capture: another than as it is, a plan runs. The
            head stays with the root then, whatever its size.

    Raises:
        CaptureError: no units, or one that cannot be captured.
        Declined: the rewrite does not suit the root.

    >>> block = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    >>> model = nn.Sequential(nn.Linear(4, 4), block(), block())
    >>> found = capture_units(model, torch.zeros(2, 4), loss=torch.mean, units=["1", "2"])
    >>> found.units, found.kind_of, [p.name for p in found.root.parameters]
    (('1', '2'), (0, 0), ['0.weight', '0.bias'])
    """
    capture = units_to_rewrite(
        model,
        inputs,
        loss=loss,
        targets=targets,
        device=device,
        costs=costs,
        dynamic=dynamic,
        precision=precision,
        units=units,
        cluster=cluster,
        engine=engine,
        planned=rewrite != AS_CAPTURED.name,
    )
    return capture(rewrite)


@capturing()
def units_to_rewrite(
    model: nn.Module,
    inputs: Inputs | Arguments,
    *,
    loss: Callable[..., Any] | None = None,
    targets: Any = None,
    device: DeviceSpec = "auto",
    costs: str = "roofline",
    dynamic: Dynamic = "batch",
    precision: str = "float32",
    units: Sequence[str] | None = None,
    cluster: Cluster | None = None,
    engine: UnitsOf | None = None,
    planned: bool = True,
) -> Rewritten:
    """Take a model apart and capture it as ``capture_units`` does, once for all rewrites.

    Args:
        model, inputs, loss, targets, device, costs, dynamic, precision, units, cluster, engine: as
            there.
        planned: a plan runs the root, which may be rewritten then; otherwise it is as captured.

    Raises:
        CaptureError: no units, or one that cannot be captured.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; expected one of {PRECISIONS}")
    call = arguments_of(inputs, targets)
    stored = {name: p.element_size() for name, p in named_parameters_of(model)}
    options: dict[str, Any] = {
        "device": device,
        "costs": costs,
        "real": has_data(model),  # which in another precision it seems not to have
        "dynamic": dynamic,
        "cluster": cluster,
    }
    taken = functools.partial(
        _taken_apart,
        model,
        call,
        stored,
        loss,
        precision=precision,
        engine=engine,
        planned=planned,
        options=options,
    )
    try:
        require_unwrapped(model)
        candidates = candidates_of(model, units)
        if planned:
            candidates = candidates.without_heads()
        with in_precision(model, precision, device_type(model, call)):
            try:
                return taken(candidates)
            except GraphsCaptureError:
                if not candidates.around:
                    raise
                # such as a head that the loss does not need: it is the root's, as it always may be
                return taken(replace(candidates, around={}))
    except GraphsCaptureError as error:
        raise CaptureError(str(error)) from error


def _taken_apart(
    model: nn.Module,
    call: Arguments,
    stored: Mapping[str, int],
    loss: Callable[..., Any] | None,
    candidates: Candidates,
    *,
    precision: str,
    engine: UnitsOf | None,
    planned: bool,
    options: dict[str, Any],
) -> Rewritten:
    dtype = torch.bfloat16 if precision == "bfloat16" else None
    modules = candidates.modules
    call = cast_call(call, dtype)
    card = target_of(model, call, options["device"])[0].card
    record = functools.partial(record_calls, model, call, loss=loss, dtype=dtype, card=card)

    def recorded_by(kind: Kinds) -> list[tuple[str, Arguments, Hashable]]:
        apart = frozenset(_names_in(modules))
        found = _sparing(functools.partial(record, units=modules, kind=kind), apart)
        return called_once(found, candidates)

    around = functools.partial(capture_joint, model, call, loss=loss, eager=True, **options)
    recorded, captured = _captured_once(modules, recorded_by, options)
    read = dict[str, str]()
    while True:
        recorded = [entry for entry in recorded if entry[0] not in read]
        units = {path: modules[path] for path, *_ in recorded}
        stubs = {path: stub_of(captured[key].joint) for path, _, key in recorded}
        apart = frozenset(_names_in(units)) - {*map(_anchor_of, units, units.values())}
        with stubbed(units, stubs, dtype):
            root = _sparing(around, apart)
        if not (read := units_read_outside(root, tuple(units))):
            break
        refuse_blocks_read_outside(read, candidates)
    order = {key: k for k, key in enumerate(dict.fromkeys(key for *_, key in recorded))}
    kinds = [captured[key] for key in order]
    kind_of = tuple(order[key] for _, _, key in recorded)
    paths = tuple(units)
    if options["cluster"] is None:
        refuse_communication((root, *kinds))
    inside, signature, program = {*_names_in(units)}, root.captured.signature, root
    if planned:
        refuse_left_behind({path: captured[key] for path, _, key in recorded})
        hollow = {path: HollowUnit(path, unit, dtype) for path, unit in units.items()}
        with hollowed(model, hollow), as_operators(hollow, stubs):
            program = capture_joint(model, call, loss=loss, **options | {"dynamic": "off"})
        inside = {f"{path}.{ANCHOR}" for path in paths}
    call_of = {path: inner for path, inner, _ in recorded}
    firsts = [paths[kind_of.index(k)] for k in range(len(kinds))]
    captures = tuple(
        _kind(traced, path, call_of[path], stored, candidates=candidates, engine=engine)
        for traced, path in zip(kinds, firsts, strict=True)
    )
    around_units = unit_capture_of(program, stored, skip=inside)
    captured_root = replace(around_units.captured, signature=signature)
    model_capture = ModelCapture(
        root=replace(around_units, captured=captured_root, calls=calls_of(program, paths)),
        units=paths,
        kind_of=kind_of,
        kinds=captures,
        precision=precision,
        program=program.captured if planned else None,
    )
    return functools.partial(_rewritten, model_capture, program, stored, inside)


@capturing()
def _rewritten(
    found: ModelCapture,
    program: Traced,
    stored: Mapping[str, int],
    inside: set[str],
    rewrite: str,
) -> ModelCapture:
    """Return a capture with its root rewritten.

    Args:
        found: with the root as it was captured.
        program: the root's trace.
        stored: bytes of an element of every parameter, as the model stores it.
        inside: names of parameters that are not the root's.
        rewrite: the name of the variant.
    """
    if rewrite == AS_CAPTURED.name:
        return found
    assert program.variant is not None, "it was traced"
    now = program.variant(rewrite)
    around = unit_capture_of(now, stored, skip=inside)
    captured = replace(around.captured, signature=found.root.signature)
    root = replace(around, captured=captured, calls=calls_of(now, found.units))
    return replace(found, root=root, program=now.captured)


def _kind(
    traced: Traced,
    path: str,
    call: Arguments,
    stored: Mapping[str, int],
    *,
    candidates: Candidates,
    engine: UnitsOf | None,
) -> UnitCapture:
    """Return a kind of unit, which the first of it was captured for: its path, and its call."""
    prefix, unit = f"{path}.", candidates.modules[path]
    local = {n.removeprefix(prefix): s for n, s in stored.items() if n.startswith(prefix)}
    table = path in candidates.blocks and is_table(unit, call)
    captured_as = replace(unit_capture_of(traced, local), table=table)
    return captured_as if engine is None else run_by_engine(captured_as, engine(unit, call))


def _captured_once(
    candidates: Mapping[str, nn.Module],
    recorded_by: Callable[[Kinds], list[tuple[str, Arguments, Hashable]]],
    options: Mapping[str, Any],
) -> tuple[list[tuple[str, Arguments, Hashable]], dict[Hashable, Traced]]:
    """Record the calls of units and capture one of each kind; return both.

    Units that look alike are taken for alike until the capture of one has shown what it depends on;
    one that differs there is captured, too, and is a kind of its own if it computes something else.
    """
    kind, alone = kinds_of(candidates), set[str]()
    traced: dict[Hashable, Traced] = {}
    first: dict[Hashable, tuple[str, Make]] = {}

    def kind_now(path: str, unit: nn.Module, call: Arguments) -> Hashable:
        return kind(path, unit, call), path if path in alone else ""

    while True:
        try:
            recorded = recorded_by(kind_now)
        except GraphsCaptureError:
            if len(alone) == len(candidates):
                raise
            alone.update(candidates)  # one that looks alike may return something else
            continue
        strangers = set[str]()
        for path, call, key in recorded:
            unit = candidates[path]
            if key not in traced:
                traced[key] = capture_joint(unit, call, **options)
                first[key] = path, make_of(unit)
            elif path != first[key][0] and not _alike(traced[key], first[key], candidates, path):
                strangers.add(path)
        if not strangers:
            same = _same(traced)
            return [(path, call, same[key]) for path, call, key in recorded], traced
        alone |= strangers


def _same(traced: Mapping[Hashable, Traced]) -> dict[Hashable, Hashable]:
    """Return for each kind the first that computes the same, whatever else its code reads."""
    first: dict[Hashable, Hashable] = {}
    return {
        key: key if (what := computation(found)) is None else first.setdefault(what, key)
        for key, found in traced.items()
    }


def _alike(
    traced: Traced, first: tuple[str, Make], candidates: Mapping[str, nn.Module], path: str
) -> bool:
    """Tell whether the capture of the first of a kind is that of another unit."""
    joint, unit = traced.joint, candidates[path]
    if joint.outputs.effects.items or not is_twin(first[1], joint.reads, unit):
        return False
    return not joint.decisions.items or same_data(candidates[first[0]], unit)


def _sparing(capture: Callable[..., T], apart: Collection[str]) -> T:
    """Capture what is around units without their parameters, which are most; or with, if read."""
    try:
        return capture(aside=apart)
    except GraphsCaptureError:
        return capture()


def _names_in(units: Mapping[str, nn.Module]) -> Iterator[str]:
    for path, unit in units.items():
        yield from (f"{path}.{name}" for name, _ in named_parameters_of(unit))


def _anchor_of(path: str, unit: nn.Module) -> str:
    """Return the name of the parameter that the operator of a unit takes."""
    return next(f"{path}.{name}" for name, p in named_parameters_of(unit) if p.requires_grad)
