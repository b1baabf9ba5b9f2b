"""A model as a root and repeated units, each captured by itself.

A unit is what the model's author repeats: the numbered children of a container, ``h.0`` or
``layers.3``. Units that are alike share one capture, so that eighty layers cost one. The root is
what is around them, captured with an opaque operator in the place of every unit. Knows where the
borders lie. Knows nothing of ranks, of costs of communication or of schedules.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from graphs import Graph
from graphs.capture import Captured, Traced, capture_joint, has_data
from graphs.errors import CaptureError as GraphsCaptureError
from graphs.signature import class_name, device_type, signature_of
from graphs.step import Arguments, Inputs, arguments_of, swapped, unique_tensors
from graphs.stubs import BACKWARD, FORWARD, Stub, record_calls, stubbed
from graphs.stubs import cast as cast_call
from planner.errors import CaptureError

PRECISIONS = ("float32", "bfloat16", "autocast")
"""As the model is; parameters and inputs cast (what FSDP does); autocast (what DDP users do)."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a region: where its compute copy and its gradient live in the graph.

    ``itemsize`` is that of the dtype the model stores it in, ``compute_itemsize`` that of the copy.
    """

    name: str
    shape: tuple[int, ...]
    itemsize: int
    compute_itemsize: int
    trainable: bool
    value: int
    gradient: int | None


@dataclass(frozen=True, slots=True)
class Call:
    """Where the root calls a unit: the two opaque ops and the root's values at its border.

    ``inputs`` and ``outputs`` are in the order of the unit's; ``tangents`` has ``None`` where no
    gradient arrives at an output, ``gradients`` where none leaves through an input.
    """

    forward: int
    backward: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    tangents: tuple[int | None, ...]
    gradients: tuple[int | None, ...]


@dataclass(frozen=True)
class Region:
    """A captured piece of the model and its border, as values of its graph.

    ``calls`` are the root's, one a unit in the order of execution.
    """

    captured: Captured
    parameters: tuple[Parameter, ...]
    inputs: tuple[int, ...]
    input_gradients: tuple[int | None, ...]
    outputs: tuple[int, ...]
    tangents: tuple[int | None, ...]
    calls: tuple[Call, ...] = ()

    @property
    def graph(self) -> Graph:
        """What the region runs."""
        return self.captured.graph

    @property
    def signature(self) -> dict[str, Any]:
        """What the region's capture is valid for."""
        return self.captured.signature


@dataclass(frozen=True)
class Regions:
    """A model taken apart. ``units`` are module paths in the order of execution.

    ``kinds[kind_of[i]]`` is unit ``i``. The root's parameters are those no unit has, a tied one
    once.
    """

    root: Region
    units: tuple[str, ...]
    kind_of: tuple[int, ...]
    kinds: tuple[Region, ...]
    precision: str
    device: str

    def kind(self, unit: int) -> Region:
        """Return what a unit is."""
        return self.kinds[self.kind_of[unit]]


def capture_regions(
    model: nn.Module,
    inputs: Inputs | Arguments,
    *,
    loss: Callable[..., Any] | None = None,
    targets: Any = None,
    device: str = "auto",
    costs: str = "roofline",
    precision: str = "float32",
    units: Sequence[str] | None = None,
) -> Regions:
    """Take a model apart and capture every distinct piece of its step, allocating nothing.

    Args:
        model, inputs, loss, targets, device, costs: as for ``graphs.capture.capture``.
        precision: one of ``PRECISIONS``.
        units: paths of the modules to shard and plan one by one, instead of those found.

    Raises:
        CaptureError: no units, or a piece that cannot be captured.

    >>> block = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    >>> model = nn.Sequential(nn.Linear(4, 4), block(), block())
    >>> found = capture_regions(model, torch.zeros(2, 4), loss=torch.mean, units=["1", "2"])
    >>> found.units, found.kind_of, [p.name for p in found.root.parameters]
    (('1', '2'), (0, 0), ['0.weight', '0.bias'])
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; expected one of {PRECISIONS}")
    call = arguments_of(inputs, targets)
    candidates = find_units(model, units)
    stored = {name: p.element_size() for name, p in model.named_parameters()}
    real = has_data(model)  # which in another precision it seems not to have
    try:
        with in_precision(model, precision, device_type(model, call)):
            return _taken_apart(
                model, call, candidates, stored, loss, chosen=units is not None,
                options={"device": device, "costs": costs, "real": real}, precision=precision,
            )  # fmt: skip
    except GraphsCaptureError as error:
        raise CaptureError(str(error)) from error


def _taken_apart(
    model: nn.Module,
    call: Arguments,
    candidates: dict[str, nn.Module],
    stored: Mapping[str, int],
    loss: Callable[..., Any] | None,
    *,
    chosen: bool,
    options: dict[str, Any],
    precision: str,
) -> Regions:
    dtype = torch.bfloat16 if precision == "bfloat16" else None
    call = cast_call(call, dtype)
    kind = _kinds_of(candidates)
    recorded = record_calls(model, call, candidates, loss=loss, kind=kind, dtype=dtype)
    recorded = _called_once(recorded, candidates, chosen=chosen)
    order: dict[Hashable, int] = {}
    kinds: list[Traced] = []
    for path, inner, key in recorded:
        if key not in order:
            order[key] = len(kinds)
            kinds.append(capture_joint(candidates[path], inner, **options))
    kind_of = tuple(order[key] for _, _, key in recorded)
    paths = tuple(path for path, _, _ in recorded)
    stubs = {p: _stub(kinds[k]) for p, k in zip(paths, kind_of, strict=True)}
    units = {path: candidates[path] for path in paths}
    with stubbed(units, stubs, dtype):
        around = capture_joint(model, call, loss=loss, eager=True, **options)
    inside = {name for p in paths for name in _names_inside(model, p)}
    root = _region(around, stored, skip=inside)
    calls = _calls(around, paths)
    regions = []
    for k, traced in enumerate(kinds):
        path = paths[kind_of.index(k)]
        prefix = f"{path}." if path else ""
        local = {n.removeprefix(prefix): s for n, s in stored.items() if n.startswith(prefix)}
        regions.append(_region(traced, local))
    return Regions(
        root=replace(root, calls=calls),
        units=paths,
        kind_of=kind_of,
        kinds=tuple(regions),
        precision=precision,
        device=options["device"],
    )


def find_units(model: nn.Module, chosen: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """Return the outermost numbered modules with siblings and trainable parameters, by path.

    Raises:
        CaptureError: none, or a chosen path that is not a module with trainable parameters.

    >>> list(find_units(nn.ModuleDict({"h": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})))
    ['h.0', 'h.1']
    """
    modules = {path: m for path, m in model.named_modules() if _trainable(m)}
    if chosen is not None:
        for path in chosen:
            if path not in modules or not path:
                raise CaptureError(
                    f"unit {path!r} is not the path of a module with trainable parameters"
                )
        return {path: modules[path] for path in chosen}
    siblings: defaultdict[str, list[str]] = defaultdict(list)
    for path in modules:
        parts = path.split(".")
        if parts[-1].isdigit() and not any(part.isdigit() for part in parts[:-1]):
            siblings[path.rpartition(".")[0]].append(path)
    found = {p: modules[p] for group in siblings.values() if len(group) > 1 for p in group}
    owners: defaultdict[int, set[str]] = defaultdict(set)
    for path, module in model.named_modules(remove_duplicate=False):
        unit = next((u for u in found if path == u or path.startswith(f"{u}.")), "")
        for p in module.parameters(recurse=False):
            owners[id(p)].add(unit)
    alone = {
        path: module
        for path, module in found.items()
        if all(owners[id(p)] == {path} for p in module.parameters())
    }
    if not alone:
        raise CaptureError(
            f"{class_name(model)} has no repeated blocks (modules such as h.0 and h.1 with "
            "parameters of their own); name the modules to shard with units="
        )
    return alone


def _trainable(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _names_inside(model: nn.Module, path: str) -> Iterator[str]:
    unit = model.get_submodule(path)
    yield from (f"{path}.{name}" for name, _ in unit.named_parameters())


def _kinds_of(units: Mapping[str, nn.Module]) -> Callable[[str, nn.Module, Arguments], str]:
    """Return what describes a unit and its call by all that two of one kind share.

    Plain attributes count, for instance a dropout rate, unless each unit's is its own number.
    """
    plain = {path: _attributes(unit) for path, unit in units.items()}
    names = set[tuple[str, str]]().union(*plain.values())
    positions = {
        name
        for name in names
        if all(str(found.get(name)) == path.rpartition(".")[2] for path, found in plain.items())
    }

    def kind(path: str, unit: nn.Module, call: Arguments) -> str:
        try:
            described = signature_of(unit, call)
        except GraphsCaptureError as error:
            raise GraphsCaptureError(f"the call of unit {path!r}: {error}") from error
        told = [(*k, v) for k, v in plain[path].items() if k not in positions]
        return json.dumps([described, told], sort_keys=True)

    return kind


def _attributes(unit: nn.Module) -> dict[tuple[str, str], Any]:
    return {
        (name, key): value
        for name, module in unit.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, bool | int | float | str)
    }


def _called_once(
    recorded: list[tuple[str, Arguments, Hashable]],
    candidates: Mapping[str, nn.Module],
    *,
    chosen: bool,
) -> list[tuple[str, Arguments, Hashable]]:
    """Leave out what is not called exactly once: it stays part of the root."""
    counts = dict.fromkeys(candidates, 0)
    for path, _, _ in recorded:
        counts[path] += 1
    other = [path for path, count in counts.items() if count != 1]
    if chosen and other:
        raise CaptureError(f"unit {other[0]!r} is called {counts[other[0]]} times, expected once")
    kept = [entry for entry in recorded if counts[entry[0]] == 1]
    if not kept:
        raise CaptureError("no repeated block is called exactly once; name units with units=")
    return kept


def _stub(traced: Traced) -> Stub:
    nodes = traced.joint.forward_outputs
    return Stub(traced.joint.outputs, tuple(n.meta["val"] for n in nodes))


def _region(
    traced: Traced, stored: Mapping[str, int], skip: set[str] | frozenset[str] = frozenset()
) -> Region:
    """Find the border of a captured piece among the values of its graph."""
    joint = traced.joint
    value = functools.partial(_value, traced)
    gradients = dict(zip((*joint.parameters, *joint.inputs), joint.gradients, strict=True))
    trainable = {name: wanted for name, *_, wanted in traced.captured.signature["parameters"]}
    parameters = tuple(
        Parameter(
            name,
            tuple(node.meta["val"].shape),
            stored[name],
            node.meta["val"].element_size(),
            trainable[name],
            _must(value(node)),
            value(gradients[name]),
        )
        for name, node in joint.parameters.items()
        if name not in skip
    )
    return Region(
        captured=traced.captured,
        parameters=parameters,
        inputs=tuple(_must(value(n)) for n in joint.inputs),
        input_gradients=tuple(value(gradients[n]) for n in joint.inputs),
        outputs=tuple(_must(value(n)) for n in joint.forward_outputs),
        tangents=tuple(value(joint.tangents.get(i)) for i in range(len(joint.forward_outputs))),
    )


def _value(traced: Traced, node: fx.Node | None) -> int | None:
    return None if node is None else traced.lowering.value_of[node][0]


def _must(value: int | None) -> int:
    assert value is not None
    return value


def _calls(around: Traced, paths: Sequence[str]) -> tuple[Call, ...]:
    """Find the two opaque ops of every unit in the root's graph."""
    value_of = around.lowering.value_of
    position = {
        low.node: index for index, low in enumerate(around.lowering.ops) if low.node is not None
    }
    found: dict[tuple[str, str], fx.Node] = {}
    for node in around.joint.graph.nodes:
        if str(node.target) in (FORWARD, BACKWARD):
            found[str(node.target), _spec(node)["unit"]] = node
    calls = []
    for path in paths:
        if (FORWARD, path) not in found or (BACKWARD, path) not in found:
            raise GraphsCaptureError(f"nothing that the loss depends on comes from unit {path!r}")
        one, two = found[FORWARD, path], found[BACKWARD, path]
        spec = _spec(two)
        inputs = [value_of[n][0] for n in _operands(one)][:-1]  # the last one is the anchor
        outputs = _storages(one, value_of)
        given = (value_of[n][0] for n in _operands(two))
        arrived = dict(zip(spec["arrived"], given, strict=True))
        made = dict(zip(spec["wanted"], _storages(two, value_of), strict=True))
        calls.append(
            Call(
                forward=position[one],
                backward=position[two],
                inputs=tuple(inputs),
                outputs=outputs,
                tangents=tuple(arrived.get(i) for i in range(len(outputs))),
                gradients=tuple(made.get(i) for i in range(len(inputs))),
            )
        )
    return tuple(calls)


def _spec(node: fx.Node) -> dict[str, Any]:
    return dict(json.loads(str(node.args[-1])))


def _operands(node: fx.Node) -> list[fx.Node]:
    """Return the first list of tensors an opaque op takes."""
    listed = cast(list[fx.Node], node.args[0])
    return list(listed)


def _storages(node: fx.Node, value_of: Mapping[fx.Node, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the value of each tensor an opaque op makes; it never makes two views of one."""
    values = value_of[node]
    assert len(values) == len(node.meta["val"])
    return values


@contextmanager
def in_precision(model: nn.Module, precision: str, device: str) -> Iterator[None]:
    """Let a model be captured as it will compute: parameters cast, or under autocast."""
    with ExitStack() as stack:
        if precision == "autocast":
            stack.enter_context(torch.autocast(device, dtype=torch.bfloat16))
        elif precision == "bfloat16":
            stack.enter_context(swapped(model, _cast(model)))
        yield


def _cast(model: nn.Module) -> dict[str, Tensor]:
    """Return fake parameters in bfloat16, and the buffers as they are."""
    parameters, buffers = unique_tensors(model)
    mode = next((t.fake_mode for t in parameters.values() if isinstance(t, FakeTensor)), None)
    made: dict[str, Tensor] = dict(buffers)
    with mode or FakeTensorMode(allow_non_fake_inputs=True):
        for name, p in parameters.items():
            device = "cpu" if p.is_meta else p.device
            dtype = torch.bfloat16 if p.is_floating_point() else p.dtype
            fresh = torch.empty_strided(p.shape, p.stride(), dtype=dtype, device=device)
            made[name] = nn.Parameter(fresh, requires_grad=p.requires_grad)
    return made
