"""The tensor parallelism that a model of transformers declares, as styles of torch.

Known words only: a model that declares another is refused by its name. What a decoder declares is
completed by what its structure allows: one collective for all that reads an input, and sequence
parallelism, for layers of a norm, attention, a norm and a gated MLP (Llama, Mistral, Qwen2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
)

from planner.errors import CaptureError
from planner.sharding.parted.experts import ExpertsInParts
from planner.sharding.parted.parallelize import Styles, matches

WORDS: dict[str, Callable[[], ParallelStyle]] = {
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
    "colwise_gather_output": partial(ColwiseParallel, output_layouts=Replicate()),
    "embedding_rowwise": partial(RowwiseParallel, input_layouts=Replicate()),
}
"""What a word of transformers is in torch."""

EXPERTS = "moe_tp_experts"
"""What transformers calls experts of which each rank has some features."""

EXPERT_WORDS = ("ep_dispatch_experts", "ep_router", "grouped_gemm", "moe_identity_expert")
"""Other styles of experts: those that are whole on a rank get as many tokens as the router says."""

_EXPERTS_SAID = (
    ". How many tokens reach an expert that is whole on one rank is up to the router, and is no "
    "choice of a plan so far: let transformers parallelize the model first "
    "(DistributedConfig(ep_size=...)) and plan that without world_size=, with capacity_factor=; or "
    "part attention alone by styles of your own, "
    "tensor_parallel={'model.layers.*.self_attn.q_proj': ColwiseParallel(), ...}, and experts are "
    "sharded as all parameters are"
)

_LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}


@dataclass(frozen=True)
class Declared:
    """Styles that a model declares, and those with sequence parallelism, if its layers are known.

    ``heads`` are the numbers that a degree has to divide, by what they are called.
    """

    styles: Styles
    sequence: Styles | None
    heads: Mapping[str, int]


def declares(model: nn.Module) -> bool:
    """Tell a model that declares how its layers may be parted.

    >>> declares(nn.Linear(2, 2))
    False
    """
    return bool(_words(model))


def declared(model: nn.Module) -> Declared:
    """Return what a model declares.

    Raises:
        CaptureError: nothing, or a word that is not known; the message names it.
    """
    words = _words(model)
    if not words:
        raise CaptureError(
            f"{type(model).__name__} declares no tensor parallelism (a tp_plan of transformers): "
            "say which modules are parted and how, tensor_parallel={'layers.*.q': "
            "ColwiseParallel(), ...}"
        )
    if unknown := sorted({w for w in words.values() if w not in (*WORDS, EXPERTS)}):
        where = next(p for p, w in words.items() if w == unknown[0])
        raise CaptureError(
            f"{type(model).__name__} declares {unknown[0]!r} for {where!r}, a style of "
            f"transformers that is not planned so far; known are {', '.join(WORDS)}"
            f"{_EXPERTS_SAID if unknown[0] in EXPERT_WORDS else ''}"
        )
    if alone := next(_parameters_alone(model, words), None):
        raise CaptureError(
            f"{type(model).__name__} declares {alone[1]!r} for the parameter {alone[0]!r}, and "
            "parameters by themselves are planned for experts alone so far: say which modules are "
            "parted and how, tensor_parallel={'layers.*.q': ColwiseParallel(), ...}"
        )
    plain: dict[str, ParallelStyle] = {
        p: ExpertsInParts(_within(model, p)) if w == EXPERTS else WORDS[w]()
        for p, w in words.items()
    }
    stacks = list(_stacks(model, words))
    for stack in stacks:
        plain |= _shared_inputs(stack)
    return Declared(plain, _along_sequence(model, words, stacks), _heads(model))


def _words(model: nn.Module) -> dict[str, str]:
    """Return the words of a model's own plan by patterns that match a module of it."""
    said = getattr(model, "_tp_plan", None)
    if not isinstance(said, Mapping):
        return {}
    paths = [path for path, _ in model.named_modules()]
    return {p: str(w) for p, w in said.items() if any(matches(path, p) for path in paths)}


def _parameters_alone(model: nn.Module, words: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield what is declared for parameters that are not those of experts, and its word."""
    said: Any = model
    names = [name for name, _ in model.named_parameters()]
    for pattern, word in said._tp_plan.items():
        owner = words.get(pattern.rpartition(".")[0])
        if pattern not in words and owner != EXPERTS:
            yield from ((pattern, str(word)) for name in names if matches(name, pattern))


def _within(model: nn.Module, pattern: str) -> dict[str, str]:
    """Return the words for the parameters of the modules that a pattern matches."""
    said: Any = model
    ahead = f"{pattern}."
    return {p.removeprefix(ahead): w for p, w in said._tp_plan.items() if p.startswith(ahead)}


def _heads(model: nn.Module) -> dict[str, int]:
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    names = ("num_attention_heads", "num_key_value_heads")
    return {n: h for n in names if isinstance(h := getattr(text, n, None), int)}


def _stacks(model: nn.Module, words: Mapping[str, str]) -> Iterator[str]:
    """Yield the paths of stacks of layers whose structure is known, all layers alike."""
    for path, module in model.named_modules():
        layers = list(module) if isinstance(module, nn.ModuleList) else []
        known = all({n for n, _ in layer.named_children()} == _LAYER for layer in layers)
        closed = {f"{path}.*.self_attn.o_proj", f"{path}.*.mlp.down_proj"}
        if layers and known and all(words.get(p) == "rowwise" for p in closed):
            yield path


def _shared_inputs(stack: str, layout: Placement | None = None) -> dict[str, ParallelStyle]:
    """Gather what attention and MLP read once for all products, and reduce its gradient once."""
    layout = layout or Replicate()
    whole = Replicate()
    return {
        f"{stack}.*.self_attn": PrepareModuleInput(
            input_kwarg_layouts={"hidden_states": layout},
            desired_input_kwarg_layouts={"hidden_states": whole},
        ),
        f"{stack}.*.mlp": PrepareModuleInput(input_layouts=layout, desired_input_layouts=whole),
    }


def _along_sequence(
    model: nn.Module, words: Mapping[str, str], stacks: list[str]
) -> dict[str, ParallelStyle] | None:
    """Return the styles with which all between the products is parted along the sequence.

    None where the model is not one stack with a norm behind it and a parted head.
    """
    if len(stacks) != 1 or words.get("lm_head") != "colwise_gather_output":
        return None
    (stack,), along = stacks, Shard(1)
    norm = f"{stack.rpartition('.')[0]}.norm".removeprefix(".")
    if norm not in dict(model.named_modules()):
        return None
    rows = (f"{stack}.*.self_attn.o_proj", f"{stack}.*.mlp.down_proj")
    made: dict[str, ParallelStyle] = {p: WORDS[w]() for p, w in words.items() if p not in rows}
    made |= {p: RowwiseParallel(output_layouts=along) for p in rows}
    norms = (f"{stack}.*.input_layernorm", f"{stack}.*.post_attention_layernorm")
    made |= {p: SequenceParallel() for p in norms}
    made |= _shared_inputs(stack, along)
    made |= {f"{stack}.0": SplitSequence(), norm: SequenceParallel(use_local_output=True)}
    made["lm_head"] = ColwiseParallel(input_layouts=along, output_layouts=Replicate())
    return made


class SplitSequence(ParallelStyle):
    """Hand a layer this rank's part of its first argument along dimension 1, (batch, tokens, ...).

    Args:
        name: of that argument, where it is passed by keyword.
    """

    def __init__(self, name: str = "hidden_states") -> None:
        self.name = name

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        hook = partial(_split_first, self.name, device_mesh)
        module.register_forward_pre_hook(hook, with_kwargs=True)
        return module

    def __repr__(self) -> str:
        """Say what it does."""
        return f"SplitSequence({self.name!r})"


def _split_first(
    name: str, mesh: DeviceMesh, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (_split(args[0], mesh), *args[1:]), kwargs
    return args, {**kwargs, name: _split(kwargs[name], mesh)}


def _split(x: Tensor, mesh: DeviceMesh) -> Tensor:
    if x.shape[1] % mesh.size():
        raise ValueError(
            f"a sequence of {x.shape[1]} tokens does not divide over {mesh.size()} ranks, as "
            "sequence parallelism needs"
        )
    whole = DTensor.from_local(x, mesh, [Replicate()], run_check=False)
    part: Tensor = whole.redistribute(placements=[Shard(1)]).to_local()
    return part
