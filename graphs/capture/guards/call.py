"""What a capture is valid for, as plain JSON: the model's tensors and modes, the call, autocast.

Knows how to describe, compare and rebuild a call. Knows nothing of graphs or plans.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from planner.graphs.capture.call_arguments import Arguments
from planner.graphs.capture.guards.call_form import argument_names
from planner.graphs.capture.placed import is_placed, mesh_shape, placed_as
from planner.graphs.capture.step_function import unique_tensors
from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.autocast_cache import Keeping, keeping_now
from planner.graphs.torch_api.fake_tensors import FakeTensorMode
from planner.graphs.torch_api.module_internals import attributes_of_tensor, tensor_stores
from planner.graphs.torch_api.pytree import treespec_dumps, treespec_loads

Signature = Mapping[str, Any]


def signature_of(
    model: nn.Module,
    call: Arguments,
    *,
    answers: tuple[Any, ...] = (),
    loss: bool = False,
    kernels: str | None = None,
) -> dict[str, Any]:
    """Describe a model and a call of it.

    Args:
        model: in the modes it is called in.
        call: its tensors may be real, fake or on meta.
        answers: what the model was told of the values of its integer inputs, in order.
        loss: whether a loss callable is part of the step.
        kernels: the type of device that it runs on, if not where the model is.

    Raises:
        CaptureError: an argument is neither a tensor nor a plain constant.

    >>> from planner.graphs.capture.call_arguments import arguments_of
    >>> signature_of(nn.Linear(2, 3), arguments_of(torch.zeros(4, 2)))["parameters"]
    [['weight', [3, 2], 'float32', True], ['bias', [3], 'float32', True]]
    """
    parameters, buffers = unique_tensors(model)
    home = device_type(model, call)
    mesh = mesh_shape(model)
    return {
        **({"mesh": mesh} if mesh else {}),
        "model": class_name(model),
        "parameters": [_member(n, t) for n, t in parameters.items()],
        "buffers": [_member(n, t) for n, t in buffers.items()],
        "modules": [class_name(m) for m in model.modules()],
        "evaluating": [n for n, m in model.named_modules() if not m.training],
        "spec": treespec_dumps(call.spec),
        "leaves": [_leaf(x) for x in call.leaves],
        "inputs": [describe(_leaf(x)) for x in call.tensors],
        "autocast": autocast_state(home, kernels),
        "kernels": kernels or home,
        "keeping": list(keeping_now()),
        "answers": list(answers),
        "loss": loss,
    }


def fingerprint(modules: Sequence[nn.Module], call: Arguments) -> tuple[Any, ...]:
    """Return what a signature depends on as one hashable value, quick enough for every step.

    Raises:
        CaptureError: an argument is neither a tensor nor a plain constant.
    """
    members = [t for m in modules for d in tensor_stores(m) for t in d.values()]
    for x in call.tensors:
        _refuse_what_hangs_on(x)
    devices = {t.device.type for t in (*members, *call.tensors) if t is not None} - {"meta"}
    return (
        tuple((type(m), m.training) for m in modules),
        tuple(
            None if t is None else (t.shape, t.dtype, t.requires_grad, placed_as(t))
            for t in members
        ),
        call.spec,
        tuple(
            (x.shape, x.stride(), x.dtype, x.device.type, x.requires_grad)
            if isinstance(x, Tensor)
            else (type(x), repr(_leaf(x)))
            for x in call.leaves
        ),
        tuple(
            (d, torch.is_autocast_enabled(d) and torch.get_autocast_dtype(d))
            for d in sorted(devices)
        ),
        torch.is_autocast_cache_enabled(),
        torch.get_default_dtype(),
    )


def class_name(module: nn.Module) -> str:
    """Return the name of a module's class, and not of the one that ``fully_shard`` puts over it.

    A graph, whose class torch makes for it alone, is a ``GraphModule``.

    >>> class_name(nn.Linear(2, 2))
    'Linear'
    """
    sharded = sys.modules.get("torch.distributed.fsdp")  # slow to import: then none is sharded
    mro = type(module).__mro__
    own = mro if sharded is None else [c for c in mro if not issubclass(c, sharded.FSDPModule)]
    return "GraphModule" if isinstance(module, fx.GraphModule) else own[0].__qualname__


def device_type(model: nn.Module, call: Arguments) -> str:
    """Return the kind of device the step runs on; meta stands for cpu."""
    return device_of(model, call.tensors).type


def device_of(model: nn.Module, tensors: Sequence[Tensor] = ()) -> torch.device:
    """Return the device that a step runs on; meta stands for cpu.

    Args:
        model: whose members are asked first.
        tensors: of the call.
    """
    members = (*model.parameters(), *model.buffers(), *tensors)
    return next((t.device for t in members if not t.is_meta), torch.device("cpu"))


@contextmanager
def autocast_as(signature: Signature, device: str) -> Iterator[None]:
    """Be inside the autocast that a step was captured in, on a type of device.

    Args:
        signature: of the step.
        device: the type.
    """
    _, *dtype = signature["autocast"]
    if not dtype and not torch.is_autocast_enabled(device):
        yield
        return
    chosen = getattr(torch, dtype[0]) if dtype else None
    kept, _ = keeping_of(signature)
    with torch.autocast(device, chosen, enabled=bool(dtype), cache_enabled=kept):
        yield


def keeping_of(signature: Signature) -> Keeping:
    """Return how autocast kept its casts where a step was captured."""
    kept, inside = signature.get("keeping", (True, len(signature["autocast"]) > 1))
    return bool(kept), bool(inside)


def kernels_of(signature: Signature) -> str:
    """Return the type of device whose kernels a step was captured with."""
    return str(signature.get("kernels", signature["autocast"][0]))


def autocast_state(device: str, kernels: str | None = None) -> list[Any]:
    """Return the autocast of a device now: ``[device]``, or ``[device, dtype]`` if it is on.

    Whoever plans elsewhere for ``kernels`` may have switched on either.
    """
    for kind in (kernels or device, device):
        if torch.is_autocast_enabled(kind):
            return [device, _dtype(torch.get_autocast_dtype(kind))]
    return [device]


def _member(name: str, tensor: Tensor) -> list[Any]:
    """Describe a parameter or buffer; of one that lies on a mesh the whole, and how it lies."""
    found = [name, list(tensor.shape), _dtype(tensor.dtype), tensor.requires_grad]
    placed = placed_as(tensor)
    return found if placed is None else [*found, str(placed)]


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _leaf(leaf: Any) -> Any:
    """Describe an argument: a list for a tensor, a dict for a type, else the constant itself."""
    if is_placed(leaf):
        raise CaptureError(
            f"an argument is a DTensor, of shape {list(leaf.shape)} on a mesh; pass the tensor of "
            "this rank (to_local()), and let the model put it on its mesh "
            "(PrepareModuleInput(input_layouts=...) of a submodule)"
        )
    if isinstance(leaf, Tensor):
        _refuse_what_hangs_on(leaf)
        device = "cpu" if leaf.is_meta else leaf.device.type
        shape, stride = list(leaf.shape), list(leaf.stride())
        return [shape, stride, _dtype(leaf.dtype), device, leaf.requires_grad]
    if is_numpy_scalar(leaf):
        return {"numpy": [leaf.dtype.name, leaf.item()]}
    if leaf is None or isinstance(leaf, bool | int | float | str):
        return leaf
    if isinstance(leaf, torch.dtype | torch.device):
        return {type(leaf).__name__: str(leaf).removeprefix("torch.")}
    raise CaptureError(
        f"an argument is a {type(leaf).__name__}; expected tensors and plain constants (None, "
        "bool, int, float, str, torch.dtype, torch.device, a number of NumPy), in lists, tuples or "
        "dicts if need be"
    )


def _refuse_what_hangs_on(tensor: Tensor) -> None:
    """Refuse attributes that somebody's code hung on an argument."""
    hung = [name for name in attributes_of_tensor(tensor) if not name.startswith("_")]
    if hung:
        raise CaptureError(
            f"an argument is a tensor with attributes of its own ({', '.join(hung)}), which a plan "
            "does not pass on to the model's code; pass them as arguments"
        )


def is_numpy_scalar(value: Any) -> bool:
    """Tell a number of NumPy, a float64 among them, which is a float, too."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic)


def describe(leaf: Any) -> str:
    """Return an argument's description for people.

    >>> describe([[2, 3], [3, 1], "float32", "cpu", False])
    'float32[2, 3]'
    """
    if isinstance(leaf, dict):
        ((kind, value),) = leaf.items()
        return f"{value[0]}({value[1]!r})" if kind == "numpy" else f"torch.{kind} {value}"
    return f"{leaf[2]}{leaf[0]}" if isinstance(leaf, list) else repr(leaf)


def fake_call(
    signature: Signature,
    mode: FakeTensorMode | None = None,
    home: torch.device | None = None,
) -> Arguments:
    """Return a call of the described shape whose tensors hold no data.

    Args:
        signature: that describes it.
        mode: of the fake tensors.
        home: where the model is now, if not where it was captured: its inputs are there, too.
    """
    before = signature["autocast"][0]
    with mode or FakeTensorMode(allow_non_fake_inputs=True):
        leaves = tuple(_rebuild(x, before, home) for x in signature["leaves"])
    return Arguments(leaves, treespec_loads(signature["spec"]))


def _rebuild(leaf: Any, before: str, home: torch.device | None) -> Any:
    if isinstance(leaf, dict):
        ((kind, value),) = leaf.items()
        if kind == "numpy":
            return getattr(importlib.import_module("numpy"), value[0])(value[1])
        return torch.device(value) if kind == "device" else getattr(torch, value)
    if not isinstance(leaf, list):
        return leaf
    shape, stride, dtype, device, requires_grad = leaf
    device = home if home is not None and device == before else device
    fresh = torch.empty_strided(shape, stride, dtype=getattr(torch, dtype), device=device)
    return fresh.requires_grad_(requires_grad)


def differences(
    planned: Signature, found: Signature, forward: Callable[..., Any] | None = None
) -> Iterator[str]:
    """Yield what differs between two signatures, most telling first.

    The answers that the inputs' data gave are not compared here: only running them can tell.

    Args:
        planned: what a plan was made for.
        found: what there is now.
        forward: of the model's class, whose parameters name what is passed by position.
    """
    yield from model_differences(planned, found)
    yield from call_differences(planned, found, forward)
    if planned["autocast"][1:] != found["autocast"][1:]:
        now, then = (" ".join(s["autocast"][1:]) or "off" for s in (found, planned))
        yield f"autocast is {now}, planned for {then}"
    elif len(found["autocast"]) > 1:
        keeps, kept = (keeping_of(s)[0] for s in (found, planned))
        if keeps != kept:
            yield f"autocast has cache_enabled={keeps}, planned for {kept}"


def model_differences(planned: Signature, found: Signature) -> Iterator[str]:
    """Yield what differs between the models of two signatures, whatever they are called with."""
    if (before := planned.get("mesh", [])) != (after := found.get("mesh", [])):
        now, then = (" x ".join(map(str, mesh)) or "no" for mesh in (after, before))
        yield f"the model is parallelized over {now} ranks, planned for {then}"
    for key in ("model", "parameters", "buffers"):
        if planned[key] != found[key]:
            yield from _member_differences(key, planned[key], found[key])
    if planned["modules"] != found["modules"]:
        pairs = zip(planned["modules"], found["modules"], strict=False)
        before, after = next(((a, b) for a, b in pairs if a != b), ("none", "a further module"))
        yield f"a submodule is a {after}, planned was a {before}"
    if planned["evaluating"] != found["evaluating"]:
        changed = sorted(set(planned["evaluating"]) ^ set(found["evaluating"]))
        yield f"train/eval mode of module {changed[0]!r} ({len(changed)} in all) changed"


def call_differences(
    planned: Signature, found: Signature, forward: Callable[..., Any] | None = None
) -> Iterator[str]:
    """Yield what differs between the arguments of two signatures, each by its name.

    Args:
        planned: what a plan was made for.
        found: what the model is called with now.
        forward: of the model's class, whose parameters name what is passed by position.
    """
    before, after = _by_name(planned, forward), _by_name(found, forward)
    for name in (n for n in before if n not in after):
        yield f"argument {name} is missing, planned for {describe(before[name])}"
    for name in (n for n in after if n not in before):
        yield f"argument {name} is new, {describe(after[name])}; the plan was made without it"
    homes = planned["autocast"][0], found["autocast"][0]
    for name, said in before.items():
        a, b = _moved(said, *homes), after.get(name, said)
        if a != b or type(a) is not type(b):  # True is no 1
            yield f"argument {name} is {describe(b)}, planned for {describe(a)}{_detail(a, b)}"
    if before.keys() == after.keys() and planned["spec"] != found["spec"]:
        yield "the arguments have another nesting or order than the planned ones"


def _moved(leaf: Any, before: str, now: str) -> Any:
    """Return an argument's description with the model's place now, if it was where the model was.

    What was elsewhere then and is with the model now stays a difference.
    """
    if not isinstance(leaf, list):
        return leaf
    place = now if leaf[3] == before else before if leaf[3] == now else leaf[3]
    return [*leaf[:3], place, *leaf[4:]]


def _by_name(signature: Signature, forward: Callable[..., Any] | None) -> dict[str, Any]:
    names = argument_names(treespec_loads(signature["spec"]), forward)
    return dict(zip(names, signature["leaves"], strict=True))


def _detail(a: Any, b: Any) -> str:
    if not isinstance(a, list) or not isinstance(b, list) or (a[0], a[2]) != (b[0], b[2]):
        return ""
    names = ("shape", "strides", "dtype", "device", "requires_grad")
    i = next(i for i in range(len(names)) if a[i] != b[i])
    return f" ({names[i]} {b[i]} instead of {a[i]})"


def _member_differences(key: str, planned: Any, found: Any) -> Iterator[str]:
    if key == "model":
        yield f"the model is a {found}, planned for a {planned}"
        return
    before, after = {m[0]: m[1:] for m in planned}, {m[0]: m[1:] for m in found}
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            yield (
                f"{key[:-1]} {name!r} is {after.get(name, 'missing')}, planned for "
                f"{before.get(name, 'none')} (shape, dtype, requires_grad, placement if any)"
            )
