"""Capture a training step as one joint forward-backward torch.fx graph, allocating nothing.

The only file of this package that uses torch's private capture API. Knows AOTAutograd's joint
export, fake tensors and metadata. Knows nothing of costs, of values or of schedules.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
from torch import Tensor, fx, nn
from torch._functorch._aot_autograd import descriptors as desc
from torch._functorch.aot_autograd import aot_export_joint_with_descriptors
from torch._guards import detect_fake_mode
from torch._subclasses import functional_tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from graphs.errors import CaptureError
from graphs.fakes import lenient_kernels
from graphs.native import eager_pieces
from graphs.observe import Decisions, Observer, user_line
from graphs.reads import Read, watched_reads
from graphs.step import Arguments, Outputs, Step, unique_tensors

_FAKE_LOG = logging.getLogger("torch._subclasses.fake_tensor")
_DATA_DEPENDENT = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    GuardOnDataDependentSymNode,
)


@dataclass(frozen=True)
class Joint:
    """A captured step.

    ``graph`` holds placeholders for parameters, buffers, input tensors and tangents, each listed
    here in the order of the model's own; ``forward_outputs``, ``mutations`` (buffer name -> new
    value) and ``gradients`` (of each parameter, then of each input tensor; ``None`` where there
    is none) are nodes of it. ``rewired`` are backward nodes that read an updated buffer in place;
    ``reads`` are the attributes of the model that the trace depends on.
    """

    module: fx.GraphModule
    parameters: Mapping[str, fx.Node]
    buffers: Mapping[str, fx.Node]
    inputs: tuple[fx.Node, ...]
    tangents: Mapping[int, fx.Node]
    forward_outputs: tuple[fx.Node, ...]
    mutations: Mapping[str, fx.Node]
    gradients: tuple[fx.Node | None, ...]
    outputs: Outputs
    decisions: Decisions
    rewired: frozenset[fx.Node] = frozenset()
    reads: tuple[Read, ...] = ()

    @property
    def graph(self) -> fx.Graph:
        """The joint graph."""
        return self.module.graph


def trace(
    model: nn.Module,
    call: Arguments,
    *,
    loss: Callable[..., Any] | None = None,
    device: torch.device | None = None,
    answers: Sequence[Any] | None = None,
    lean: bool = True,
) -> Joint:
    """Trace forward, loss and backward of one call under fake tensors.

    Parameters on meta are treated as if they were on ``device`` (default cpu). ``answers`` replace
    the values of integer inputs where the model branches on them and no data is at hand. ``lean``
    takes the leaner of two equal dropouts, which eager mode on a CPU does not.

    Raises:
        CaptureError: the step cannot be captured; the message names the user's line.
    """
    parameters, buffers = unique_tensors(model)
    watched, inputs, _ = _watch(model, call, loss, device, answers)
    step = watched.step
    with _capturing(model, lean=lean) as stack:
        reads = stack.enter_context(watched_reads(model))
        module = aot_export_joint_with_descriptors(stack, watched, inputs).graph_module
    assert step.outputs is not None
    _refuse_baked_tensors(model, module)
    module.graph.eliminate_dead_code()
    joint = _joint(module, step.outputs, watched.decisions, tuple(parameters), tuple(buffers))
    return replace(joint, reads=tuple(reads))


def run_forward(
    model: nn.Module, call: Arguments, *, loss: Callable[..., Any] | None = None
) -> FakeTensorMode:
    """Run the forward half of a call once, under the conditions of a capture; return their mode.

    For what hooks in the model see of it.

    Raises:
        CaptureError: the forward pass cannot run without data.
    """
    watched, inputs, mode = _watch(model, call, loss, None, None)
    try:
        with _capturing(model) as stack:
            aot_export_joint_with_descriptors(stack, _ForwardOnly(watched), inputs)
    except _Enough:
        return mode
    raise AssertionError("a capture runs the forward pass")


class _Enough(Exception):
    """The forward pass has run."""


class _ForwardOnly(nn.Module):
    def __init__(self, watched: _Watched) -> None:
        super().__init__()
        self.watched = watched

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        self.watched(*tensors)
        raise _Enough


@contextmanager
def _capturing(model: nn.Module, *, lean: bool = True) -> Iterator[ExitStack]:
    """Set up everything around a capture."""
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own internals
        stack.callback(_FAKE_LOG.setLevel, _FAKE_LOG.level)
        _FAKE_LOG.setLevel(logging.CRITICAL)  # an operator that fails is told of once, by an error
        stack.enter_context(fx_traceback.preserve_node_meta())
        stack.enter_context(lenient_kernels())
        stack.enter_context(eager_pieces(lean=lean))
        stack.enter_context(_lists_asked_for())
        stack.enter_context(_module_paths(model))
        stack.enter_context(_explained(model))
        yield stack


def _watch(
    model: nn.Module,
    call: Arguments,
    loss: Callable[..., Any] | None,
    device: torch.device | None,
    answers: Sequence[Any] | None,
) -> tuple[_Watched, tuple[Tensor, ...], FakeTensorMode]:
    """Return a step of a model around fake tensors, what to call it with, and their mode."""
    parameters, buffers = unique_tensors(model)
    members = [*parameters.values(), *buffers.values(), *call.tensors]
    mode = detect_fake_mode(members) or FakeTensorMode(allow_non_fake_inputs=True)
    target = device or torch.device("cpu")
    fake: Callable[[Tensor], Tensor] = lambda t: _fake(t, mode, target)  # noqa: E731
    inputs = tuple(blank(t, mode, target if t.is_meta else t.device) for t in call.tensors)
    step = Step(
        model,
        {n: fake(p) for n, p in parameters.items()},
        {n: fake(b) for n, b in buffers.items()},
        call,
        loss,
    )
    return _Watched(step, None if _dataless(call) else call.tensors, answers), inputs, mode


def _dataless(call: Arguments) -> bool:
    return any(isinstance(t, FakeTensor) or t.is_meta for t in call.tensors)


def _fake(tensor: Tensor, mode: FakeTensorMode, device: torch.device) -> Tensor:
    """Return a fake copy, on ``device`` if the tensor is on meta, that allocates nothing."""
    if isinstance(tensor, FakeTensor) and not tensor.is_meta:
        return tensor
    if not tensor.is_meta:
        return mode.from_tensor(tensor.detach()).requires_grad_(tensor.requires_grad)
    return blank(tensor, mode, device)


def blank(tensor: Tensor, mode: FakeTensorMode, device: torch.device) -> Tensor:
    """Return a fake tensor like another that shares nothing with it: a batch may alias itself."""
    shape, stride = tensor.shape, tensor.stride()
    with mode:
        fresh = torch.empty_strided(shape, stride, dtype=tensor.dtype, device=device)
        return fresh.requires_grad_(tensor.requires_grad)


class _Watched(nn.Module):
    """A step run under an ``Observer``; AOTAutograd runs it several times, the last one counts."""

    def __init__(
        self, step: Step, data: Sequence[Tensor] | None, answers: Sequence[Any] | None
    ) -> None:
        super().__init__()
        self.step, self._data, self._answers = step, data, answers
        self.decisions = Decisions()

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        with Observer(tensors, self._data, self._answers) as observer:
            kept: list[Tensor] = self.step(*tensors)
        self.decisions = Decisions(tuple(observer.found))
        return kept


@contextmanager
def _lists_asked_for() -> Iterator[None]:
    """Let ``tolist`` be seen by the ``Observer``; the wrapper of AOTAutograd goes past it."""
    wrapper: Any = functional_tensor.FunctionalTensor
    own, wrapper.tolist = wrapper.tolist, Tensor.tolist
    try:
        yield
    finally:
        wrapper.tolist = own


@contextmanager
def _module_paths(model: nn.Module) -> Iterator[None]:
    """Annotate every op with the path of the submodule it runs in."""
    paths = {module: name for name, module in model.named_modules()}
    open_annotations: list[Any] = []

    def enter(module: nn.Module, args: Any) -> None:
        if module in paths:
            annotation = fx_traceback.annotate({"module": paths[module]})
            annotation.__enter__()
            open_annotations.append(annotation)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if module in paths:
            open_annotations.pop().__exit__(None, None, None)

    first = register_module_forward_pre_hook(enter)
    last = register_module_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        first.remove()
        last.remove()


@contextmanager
def _explained(model: nn.Module) -> Iterator[None]:
    """Turn what torch raises while tracing into a ``CaptureError`` that names the user's line."""
    name = type(model).__name__
    try:
        yield
    except CaptureError:
        raise
    except _DATA_DEPENDENT as error:
        raise CaptureError(
            f"{name}: {_where(error)} needs the value of a tensor, which capturing cannot know "
            f"({_first_line(error)}); compute it outside the model, or choose an implementation "
            "without data-dependent shapes (for mixture-of-experts models in transformers: "
            'experts_implementation="grouped_mm")'
        ) from error
    except UnsupportedOperatorException as error:
        raise CaptureError(
            f"{name}: {_where(error)} calls {error}, which has no fake-tensor implementation; "
            "register one with torch.library.register_fake"
        ) from error
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise CaptureError(
            f"{name}: {_where(error)} fails while it is captured: {type(error).__name__}: "
            f"{_first_line(error)}; check that model(inputs) and its backward run without the "
            "planner"
        ) from error
    except (AssertionError, NotImplementedError) as error:
        raise CaptureError(
            f"{name}: {_where(error)} cannot be captured: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _where(error: BaseException) -> str:
    """Return the innermost line of the traceback that is the user's own."""
    found, step = "", error.__traceback__
    while step is not None:
        line = user_line(step.tb_frame, step.tb_lineno, walk=False)
        found, step = line or found, step.tb_next
    return found or "the model"


def _refuse_baked_tensors(model: nn.Module, module: fx.GraphModule) -> None:
    """Refuse tensors that the graph would hold for ever: a batch, or a parameter by the back door.

    Literals made inside the forward pass and tensors that are plain attributes of the model are
    constants in eager mode, too.
    """
    attributes = {id(x) for m in model.modules() for x in vars(m).values() if isinstance(x, Tensor)}
    members = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    for node in module.graph.find_nodes(op="get_attr"):
        tensor = getattr(module, str(node.target))
        literal = all(u.target is torch.ops.aten.lift_fresh_copy.default for u in node.users)
        if literal or not isinstance(tensor, Tensor):
            continue
        where = source_of(node) or next((s for u in node.users if (s := source_of(u))), "a line")
        if tensor.untyped_storage()._cdata in members:
            raise CaptureError(
                f"{where} reaches a parameter or buffer through another reference than the module "
                "attribute it is registered as; use the attribute"
            )
        if id(tensor) not in attributes:
            raise CaptureError(
                f"{where} uses a tensor of shape {tuple(tensor.shape)} that is neither an input "
                "nor part of the model; it would stay the same for every batch. Pass it as an "
                "input, or for a loss callable as targets="
            )


def module_of(node: fx.Node) -> str:
    """Return the path of the submodule a node came from, backward nodes included."""
    return str((node.meta.get("custom") or {}).get("module", ""))


def source_of(node: fx.Node) -> str:
    """Return the user's ``file:line`` a node came from, backward nodes included."""
    return str((node.meta.get("custom") or {}).get("source", ""))


def _joint(
    module: fx.GraphModule,
    outputs: Outputs,
    decisions: Decisions,
    parameter_names: tuple[str, ...],
    buffer_names: tuple[str, ...],
) -> Joint:
    """Read the descriptors of a joint graph's placeholders and outputs."""
    where: dict[Any, fx.Node] = {}
    for node in module.graph.find_nodes(op="placeholder"):
        where[node.meta["desc"]] = node
    output_node = module.graph.output_node()
    results = zip(output_node.meta["desc"], output_node.args[0], strict=True)  # type: ignore[arg-type]
    made: dict[Any, Any] = {d: node for d, node in results if d is not None}
    parameter: list[Any] = [desc.ParamAOTInput(f"step.p{i}") for i in range(len(parameter_names))]
    changed = [
        desc.InputMutationAOTOutput(desc.BufferAOTInput(f"step.b{i}"))
        for i in range(len(buffer_names))
    ]
    plain = [d for d in where if isinstance(d, desc.PlainAOTInput)]
    plain.sort(key=lambda d: d.idx)
    tangents = {
        d.output.idx: n
        for d, n in where.items()
        if isinstance(d, desc.TangentAOTInput) and isinstance(d.output, desc.PlainAOTOutput)
    }
    mutated = {name: made[d] for name, d in zip(buffer_names, changed, strict=True) if d in made}
    returned = [made.get(desc.PlainAOTOutput(i)) for i in range(len(outputs.names))]
    joint = Joint(
        module=module,
        parameters={n: where[d] for n, d in zip(parameter_names, parameter, strict=True)},
        buffers={n: where[d.mutated_input] for n, d in zip(buffer_names, changed, strict=True)},
        inputs=tuple(where[d] for d in plain),
        tangents=tangents,
        forward_outputs=tuple(n for n in returned if isinstance(n, fx.Node)),
        mutations=mutated,
        gradients=tuple(made.get(desc.GradAOTOutput(d)) for d in [*parameter, *plain]),
        outputs=outputs,
        decisions=decisions,
    )
    _refuse_unknown(joint, where, made)
    return joint


def _refuse_unknown(joint: Joint, where: Mapping[Any, fx.Node], made: Mapping[Any, Any]) -> None:
    """Refuse what the runtime does not carry out: mutated inputs, outputs that are inputs."""
    known = (desc.PlainAOTOutput, desc.GradAOTOutput, desc.InputMutationAOTOutput)
    for d in made:
        if not isinstance(d, known) or (
            isinstance(d, desc.InputMutationAOTOutput)
            and not isinstance(d.mutated_input, desc.BufferAOTInput)
        ):
            raise CaptureError(
                f"the step has an effect that a plan cannot reproduce: {d.expr()}; do not change "
                "inputs or parameters in place inside the forward pass (an embedding with max_norm "
                "does), nor call operators with effects of their own"
            )
    strange = set(where.values()) - {
        *joint.parameters.values(),
        *joint.buffers.values(),
        *joint.inputs,
        *joint.tangents.values(),
    }
    if strange or len(joint.forward_outputs) != len(joint.outputs.names):
        raise CaptureError(
            "the step returns an input, a parameter or a view of one; return a clone of it, or "
            "pass loss=lambda output: output.loss to drop it"
        )
