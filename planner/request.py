"""Everything a person says about a training step, as one value that is checked once.

``fit``, ``pareto``, ``max_batch``, ``compare`` and the command line make a ``Request`` of what they
are told; whatever comes after takes that. The parameters are spelled here and nowhere else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from planner.byte_sizes import parse_budget
from planner.errors import (
    BadCluster,
    BadRequest,
    UnknownMethod,
)
from planner.graphs.expert_capacity import CAPACITY_FACTOR
from planner.graphs.hardware.devices import Device, DeviceSpec
from planner.graphs.hardware.host_tier import HostTier
from planner.graphs.hardware.reserve import NCCL_BYTES
from planner.host_option import Offload, host_tier, node_limit_bytes
from planner.loss_chunks import KEEP, check_chunks
from planner.make_cluster import make_cluster
from planner.progress import Told, telling
from planner.request_defaults import example_inputs, find_device, optimizer_name
from planner.solvers import SOLVERS, Limits
from planner.solvers.api import method_of
from planner.step_options import ALLOCATORS, AnyOptions, FitOptions, ShardedOptions, check_said
from planner.tensor_parallel import IF_NEEDED, tensor_parallel_of

if TYPE_CHECKING:
    from torch import nn

    from planner.graphs.hardware.cluster import Cluster, LinkSpec

DEFAULT_LIMITS = Limits()
OP_BY_OP = "op_by_op"
"""The engine that runs eager kernels, unless another is said."""


_SAID = AnyOptions.__annotations__.keys()

_Function = TypeVar("_Function", bound=Callable[..., Any])


def takes(allowed: type) -> Callable[[_Function], _Function]:
    """Let the signature of a function that takes ``**said`` show what may be said, with defaults.

    What a type checker knows from ``Unpack``, ``help`` and notebooks then know, too.
    """

    def shown(function: _Function) -> _Function:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        named = {p.name for p in own}
        fields_of = {f.name: f for f in fields(Request)}
        said = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=fields_of[name].default,
                annotation=fields_of[name].type,
            )
            for name in allowed.__annotations__
            if name not in named
        ]
        function.__signature__ = signature.replace(parameters=[*own, *said])  # type: ignore[attr-defined]
        return function

    return shown


@dataclass(frozen=True)
class Request:
    """A training step, and how it is to be planned. Made by ``request_of``, which checks it.

    Attributes:
        model: any ``nn.Module``, on a real, meta or fake device; it is not changed.
        inputs: a tensor, a tuple (positional) or a dict (keywords). Without it the model's own
            example is used: ``example_input_array`` (Lightning) or ``dummy_inputs`` (transformers).
        loss: called with the model's output and ``targets``; without it the output is the loss, has
            a ``.loss``, or is differentiated by the caller.
        targets: further arguments of ``loss``: a tensor or a tuple.
        dynamic: which sizes of a call may be smaller than those of ``inputs``, which are then the
            largest: "batch", dimension 0 of every tensor that has as many rows as the first; "off";
            or the dimensions of every argument that has some, by its name, those of ``targets``
            under that: ``{"input_ids": (0, 1), "labels": (0, 1)}``.
        optimizer: a name, a class, a factory or an instance; ``None`` leaves its state out.
        device: a ``Device``, a name of the device table or of the driver, the path of a JSON file,
            or "auto" for the device that the model lives on (meta stands for this CPU).
        costs: a name of ``graphs.costs.COSTS``: "roofline" estimates times, "measured" runs each
            distinct op once.
        engine: a name of ``running.engines.ENGINES``, what carries the plan out.
        rewrites: names of ``graphs.capture.rewrites.REWRITES``: the variants of the step that the
            plan may choose between.
        loss_chunks: in how many chunks of the tokens head and loss of a language model are
            computed, so that its logits never exist as a whole; "auto" lets the plan choose. With
            more than 1 sums are rounded in another order.
        logits: what becomes of logits that the model returns beside its loss if that is computed in
            chunks: "keep" declines the chunks, "when_read" returns a tensor that is computed when
            something reads it, from the weights as they were.
        mlp_chunks: in how many chunks of the tokens every MLP, or other chain of operators that
            widens tokens and narrows them, is computed, forward and backward, so that what is wide
            never exists as a whole. With more than 1 sums are rounded in another order. For one
            device, and the engine that runs op by op.
        method: a name of ``solvers.SOLVERS``.
        limits: when a solver stops.
        progress: "auto" shows on a terminal and in a notebook what is going on; "off"; or a
            function that is called with a sentence.
        accumulate: keep the gradients of earlier micro-steps through forward.
        checks: "keep" makes after each call the checks of the model's code that only raise or log
            (``assert``, ``if x.isnan().any(): raise``), which waits for the device; "drop" leaves
            them out.
        allocator: how the accelerator's allocator is set, whose needs the budget is kept for:
            "segments", torch's default, "expandable segments", or "auto" for what the settings of
            this process say (``PYTORCH_CUDA_ALLOC_CONF``).
        world_size: how many devices; above 1 the plan also says what to shard, in which
            micro-batches, and the budget is each device's. The rest is for several devices only.
        devices_per_node: by default what the usual server of the device has; this and ``link`` also
            where the model is parallelized over the ranks of a process group.
        link: bytes/s of the slowest link, a text such as "400Gb/s", or a mapping by link.
        global_batch: samples of one optimizer step over all devices; by default every device has
            the example inputs once.
        precisions: what compute may run in: "float32" (as the model is), "bfloat16".
        offload: whether values of the step may be moved to the host and back while the device
            computes: ``True``, the most bytes ("64GB"), a directory for files (on a CPU), or a
            mapping of ``bytes``, ``directory`` and ``bytes_per_second``; by default not. For
            several devices, whether states may be moved there, and into how many bytes of a node's
            host at most: by default they may, and the plan says how many they take.
        tensor_parallel: whether layers may be parted over the ranks of a node: "if_needed", where
            nothing fits otherwise or samples are fewer than ranks; "auto", which compares degrees
            1, 2, 4 and 8; ``False``; one degree; styles of modules by their paths; or a
            ``planner.TensorParallel``. Without styles the model's own are taken, if it declares
            some (transformers' ``tp_plan``).
        capacity_factor: how many times the even share of rows is planned for where a model that is
            parallelized already sends tokens to experts of other ranks (``ep_implementation`` of
            transformers); at least 1. A step in which more arrive at a rank raises on all of them.
        reserve: what else lives on the device, a reference model or an inference engine, as a size:
            its room is taken off the budget. On several accelerators it takes the place of what is
            otherwise kept free there for NCCL and the allocator (``planner.sharding.margin``), so
            that 0 plans for all of the budget; and for a parallelized model of what is kept for
            NCCL.
    """

    model: nn.Module
    inputs: Any = None
    loss: Callable[..., Any] | None = None
    targets: Any = None
    dynamic: str | Mapping[str, int | Sequence[int]] = "batch"
    optimizer: Any = "adamw"
    device: DeviceSpec = "auto"
    costs: str = "roofline"
    engine: str = OP_BY_OP
    rewrites: Sequence[str] = ("as_captured",)
    loss_chunks: int | str = 1
    mlp_chunks: int = 1
    logits: str = KEEP
    method: str = "auto"
    limits: Limits = DEFAULT_LIMITS
    progress: Told = "auto"
    accumulate: bool = False
    checks: str = "keep"
    allocator: str = "auto"
    world_size: int = 1
    devices_per_node: int | None = None
    link: LinkSpec = None
    global_batch: int | None = None
    precisions: Sequence[str] = ("float32",)
    offload: Offload = None
    tensor_parallel: Any = IF_NEEDED
    capacity_factor: float = CAPACITY_FACTOR
    reserve: str | float | None = None

    @property
    def hardware(self) -> Device:
        """The device; ``request_of`` has looked it up."""
        assert isinstance(self.device, Device), "a Request is made by request_of"
        return self.device

    @property
    def in_chunks(self) -> bool:
        """Whether a loss, or MLPs, may be computed in chunks."""
        return self.loss_chunks != 1 or self.mlp_chunks != 1

    @property
    def host(self) -> HostTier | None:
        """Where values of one device may be moved to; ``request_of`` has looked it up."""
        return self.offload if isinstance(self.offload, HostTier) else None

    def cluster(self, ranks: int) -> Cluster:
        """Return so many of the devices, in nodes and linked as was said.

        Args:
            ranks: how many.

        Raises:
            BadCluster: they do not divide into nodes, or a link is no rate.
        """
        return make_cluster(
            self.hardware, ranks, devices_per_node=self.devices_per_node, link=self.link
        )

    @property
    def for_nccl_bytes(self) -> int:
        """What is kept free on the device for NCCL, where ranks share the model."""
        on_accelerators = self.hardware.name != "cpu" and _parallelized(self.model)
        return NCCL_BYTES if on_accelerators and self.reserve is None else 0

    def tell(self, sentence: str) -> None:
        """Say what begins now, to whoever is to be told."""
        if callable(self.progress):
            self.progress(sentence)

    @property
    def optimizer_name(self) -> str | None:
        """What the optimizer is called in a plan."""
        return optimizer_name(self.optimizer)

    def budget_bytes(self, budget: str | float) -> int:
        """Return a budget in bytes; a percentage is of the device's memory.

        Raises:
            BadBudget: it is not a positive size.
        """
        return parse_budget(budget, lambda: self.hardware.memory_bytes)


def request_of(
    model: nn.Module | Request, said: Mapping[str, Any], allowed: type = AnyOptions
) -> Request:
    """Make a request of what a person said, and check it: nothing is dropped in silence.

    Args:
        model: the model, or a request already made, which ``said`` then changes.
        said: by name, the fields of ``Request``.
        allowed: a ``TypedDict`` of the names that may be said here.

    Raises:
        BadRequest: an unknown name, or one that is not for this.
        BadCluster: options of several devices for one, or of one for several.
        UnknownMethod, UnknownDevice, CaptureError: see ``planner.errors``.
    """
    check_said(said, allowed)
    made = replace(model, **said) if isinstance(model, Request) else Request(model, **said)
    check_said(said_in(made), allowed)
    _check_values(made)
    _check_ranks(made, {**said, **said_in(made)})
    made = replace(made, method=checked_method(made.method))
    hardware = find_device(made.device, made.model)
    if hardware.name == "cpu" and made.allocator != "auto":
        raise BadRequest(
            "allocator= is for an accelerator, whose allocator needs more than the tensors' bytes; "
            "on the cpu a budget is kept for those: leave it out, or say the device"
        )
    if made.reserve:
        others = parse_budget(made.reserve)
        hardware = replace(hardware, reserve_bytes=hardware.reserve_bytes + others)
    if nccl := replace(made, device=hardware).for_nccl_bytes:
        hardware = replace(hardware, reserve_bytes=hardware.reserve_bytes + nccl)
    inputs = example_inputs(made.model) if made.inputs is None else made.inputs
    offload = made.offload
    if made.world_size == 1:
        offload = host_tier(offload, hardware, measure=made.costs == "measured")
        _check_moved(made, offload)
    else:
        node_limit_bytes(offload)
    return replace(made, device=hardware, inputs=inputs, offload=offload)


def _check_moved(request: Request, host: HostTier | None) -> None:
    """Refuse what values cannot be moved with so far."""
    if host is None:
        return
    if _parallelized(request.model):
        raise BadRequest(
            "offload= does not go with a model that is parallelized over ranks so far: leave it out"
        )


def said_in(request: Request) -> dict[str, Any]:
    """Return what a request says, by name: the fields that are not what they are by default."""
    found = {f.name: getattr(request, f.name) for f in fields(Request) if f.name in _SAID}
    defaults = {f.name: f.default for f in fields(Request)}
    return {n: v for n, v in found.items() if not _is_default(v, defaults[n])}


def _is_default(value: Any, default: Any) -> bool:
    if isinstance(value, list):
        value = tuple(value)
    return value is default or (type(value) is type(default) and bool(value == default))


def _check_values(request: Request) -> None:
    """Refuse values that no field takes, before any work."""
    from torch import nn

    if not isinstance(request.model, nn.Module):
        raise BadRequest(
            f"the model is a {type(request.model).__name__}; expected an nn.Module, or a Request"
        )
    if hasattr(request.model, "_orig_mod"):
        raise BadRequest(
            "the model is what torch.compile returned; plan the model that was compiled: a plan "
            "runs eager kernels, or with engine='inductor' compiles it itself"
        )
    if isinstance(request.dynamic, str) and request.dynamic not in ("batch", "off"):
        raise BadRequest(f'dynamic is {request.dynamic!r}; expected "batch", "off" or a mapping')
    if request.checks not in ("keep", "drop"):
        raise BadRequest(f'checks is {request.checks!r}; expected "keep" or "drop"')
    if request.allocator not in ALLOCATORS:
        expected = ", ".join(map(repr, ALLOCATORS))
        raise BadRequest(f"allocator is {request.allocator!r}; expected one of {expected}")
    for name in ("rewrites", "precisions"):
        value = getattr(request, name)
        if isinstance(value, str) or not value:
            raise BadRequest(f"{name} is {value!r}; expected a sequence of names, at least one")
    check_chunks(request.loss_chunks, request.logits, request.rewrites, request.mlp_chunks)
    tensor_parallel_of(request.tensor_parallel)
    _check_capacity(request)
    ranks = request.world_size
    if isinstance(ranks, bool) or not isinstance(ranks, int):
        raise BadRequest(f"world_size is {ranks!r}; expected a number of devices")
    if not (callable(request.progress) or request.progress in ("auto", "off", None)):
        raise BadRequest(
            f"progress={request.progress!r}: expected 'auto', 'off' or a function of a sentence"
        )


def _check_capacity(request: Request) -> None:
    factor: object = request.capacity_factor
    if request.world_size != 1 and factor != CAPACITY_FACTOR:
        raise BadCluster(
            "capacity_factor= is for a model that is parallelized already, and sends tokens to "
            "experts of other ranks: leave it out, or world_size="
        )
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor < inf:
        raise BadRequest(
            f"capacity_factor is {factor!r}; expected a number, at least 1: how many times the "
            "even share of rows may arrive at a rank's experts"
        )


@contextmanager
def requested(
    model: nn.Module | Request, said: Mapping[str, Any], allowed: type = AnyOptions
) -> Iterator[Request]:
    """Make a request that tells the person, inside the block, what is going on.

    Args:
        model, said, allowed: as for ``request_of``, which raises the same errors.
    """
    request = request_of(model, said, allowed)
    with telling(request.progress) as tell:
        yield replace(request, progress=tell)


def _check_ranks(request: Request, said: Mapping[str, Any]) -> None:
    """Refuse what would have no effect."""
    if request.world_size != 1 and request.accumulate:
        raise BadCluster(
            "accumulate=True is for one device: over several, how many micro-steps are "
            "accumulated is planned; pass global_batch="
        )
    if request.world_size != 1 and "checks" in said:
        raise BadCluster("checks= is for one device so far: leave it out")
    if request.world_size != 1 and "allocator" in said:
        raise BadCluster("allocator= is for one device so far: leave it out")
    if request.world_size != 1 and request.mlp_chunks != 1:
        raise BadCluster("mlp_chunks= is for one device so far: leave it out")
    if request.world_size != 1 and "rewrites" in said:
        raise BadCluster("rewrites= are for one device so far: leave them out")
    if request.world_size != 1 and isinstance(request.dynamic, Mapping):
        raise BadCluster('over several devices dynamic= is "batch" or "off" so far')
    several = ShardedOptions.__annotations__.keys() - FitOptions.__annotations__.keys()
    if _parallelized(request.model):
        several -= {"devices_per_node", "link"}
        if request.world_size != 1:
            raise BadCluster(
                f"world_size={request.world_size} asks how to shard a model that is parallelized "
                "over ranks already, which is not planned so far: leave it out to plan one rank's "
                "step, or pass the model as it was before it was parallelized"
            )
    if request.world_size == 1 and (used := sorted(several & said.keys())):
        raise BadCluster(
            f"{', '.join(f'{name}=' for name in used)} would have no effect on one device: pass "
            "world_size=, too, or leave it out"
        )


def _parallelized(model: nn.Module) -> bool:
    from planner.graphs.capture.placed import is_parallelized

    return is_parallelized(model)


def checked_method(method: str) -> str:
    """Return the name that a solver has today.

    Raises:
        UnknownMethod: no solver has this name.
    """
    try:
        return method_of(method)
    except ValueError as error:
        raise UnknownMethod(method, SOLVERS) from error
