"""Models parallelized over ranks, and two processes over gloo that train them plain and planned."""

from __future__ import annotations

import datetime
import gc
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch import multiprocessing as mp
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn import functional as F

import planner
from planner.errors import PlanMismatch
from planner.graphs.capture.placed import is_placed, local_of
from planner.graphs.torch_api.storages import storage_key
from tests.planner.running import collectives

WORDS, WIDTH = 128, 64
COLUMNS, ROWS = ("q", "k", "v", "up"), ("o", "down")


class Block(nn.Module):
    """Attention and a feed-forward part; the heads are as many as the features have room for."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.drop = nn.Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        parts = [layer(y) for layer in (self.q, self.k, self.v)]
        q, k, v = (t.unflatten(-1, (-1, 16)).transpose(1, 2) for t in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        return x + self.drop(self.down(F.gelu(self.up(self.second(x)))))


class Decoder(nn.Module):
    """A small language model that returns its loss."""

    def __init__(self, layers: int = 2, rate: float = 0.0) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block(rate) for _ in range(layers))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.words(ids)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), labels.flatten())


def tensor_parallel(mesh: DeviceMesh, rate: float = 0.0) -> nn.Module:
    """Return a decoder whose blocks have their products parted over the ranks."""
    torch.manual_seed(0)
    model = Decoder(rate=rate)
    styles = {name: ColwiseParallel() for name in COLUMNS}
    for block in model.blocks:
        parallelize_module(block, mesh, styles | {name: RowwiseParallel() for name in ROWS})
    return model


def sequence_parallel(mesh: DeviceMesh) -> nn.Module:
    """Return one that is parted along the sequence between the products, vocabulary included."""
    torch.manual_seed(0)
    model, along = Decoder(), Shard(1)
    styles: dict[str, Any] = {name: ColwiseParallel(input_layouts=along) for name in COLUMNS}
    styles |= {name: RowwiseParallel(output_layouts=along) for name in ROWS}
    styles |= {"first": SequenceParallel(), "second": SequenceParallel()}
    for block in model.blocks:
        parallelize_module(block, mesh, styles)
    ends = {
        "words": RowwiseParallel(input_layouts=Replicate(), output_layouts=along),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=along, output_layouts=Replicate()),
    }
    return parallelize_module(model, mesh, ends)


def llama(mesh: DeviceMesh) -> nn.Module:
    """Return a tiny Llama of transformers, parallelized by its own plan."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.distributed.tensor_parallel import apply_tensor_parallelism

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).train()
    apply_tensor_parallelism(model, mesh, plan_of_modules(model))
    return model


def plan_of_modules(model: Any) -> dict[str, str]:
    """Return the model's plan with the names of its modules and parameters for the patterns."""
    patterns = {f"model.{name}": style for name, style in model.config.base_model_tp_plan.items()}
    patterns["lm_head"] = "colwise_gather_output"
    found = {}
    for pattern, style in patterns.items():
        wanted = re.compile(re.escape(pattern).replace(r"\*", r"\d+"))
        for name, _ in model.named_modules():
            if wanted.fullmatch(name):
                found |= {name: style, f"{name}.weight": style}
    return found


MODELS: dict[str, Callable[[DeviceMesh], nn.Module]] = {
    "tensor parallel": lambda mesh: tensor_parallel(mesh, rate=0.1),
    "sequence parallel": sequence_parallel,
    "llama": llama,
}


BUDGETS = {"tensor parallel": "5.9MB", "sequence parallel": "6.2MB", "llama": "7.5MB"}


def step_of(name: str) -> dict[str, Any]:
    """Return the arguments of ``fit`` for a model."""
    torch.manual_seed(5)
    ids = torch.randint(0, WORDS, (16, 64))
    if name == "llama":
        return {"inputs": {"input_ids": ids, "labels": ids}, "loss": lambda out: out.loss}
    return {"inputs": {"ids": ids, "labels": ids}}


def loss_of(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.loss


def local_gradient(p: Tensor) -> Tensor:
    """Return this rank's part; eager mode may leave sums to be made when the optimizer reads it."""
    gradient: Any = p.grad
    if isinstance(gradient, DTensor):
        gradient = gradient.redistribute(placements=p.placements)  # type: ignore[attr-defined]
    return local_of(gradient).clone()


def train(model: nn.Module, inputs: dict[str, Tensor]) -> list[Any]:
    """Take three steps; return the loss and gradients of each, and the parameters after."""
    torch.manual_seed(7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    found: list[Any] = []
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model(**inputs))
        loss.backward()  # type: ignore[no-untyped-call]
        found += [loss.detach(), *map(local_gradient, model.parameters())]
        optimizer.step()
    return [*found, *(local_of(p).detach().clone() for p in model.parameters())]


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


def measured_bytes(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Return the peak of a steady step by the allocator's records, which are complete in some."""
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        loss_of(model(**inputs)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    state = [x for held in optimizer.state.values() for x in held.values()]
    members = map(local_of, (*model.parameters(), *model.buffers(), *state, *inputs.values()))
    gc.collect()
    static = sum({storage_key(t): t.untyped_storage().nbytes() for t in members}.values())
    return static + collectives.steady_peak(step)


CASES = [*((name, "less") for name in MODELS), ("sequence parallel", "all again")]


def planned(name: str, case: str, mesh: DeviceMesh) -> planner.Plan:
    """Plan in about three quarters of the memory, or making everything again."""
    model, step = MODELS[name](mesh), step_of(name)
    if case == "all again":
        return planner.fit(model, "1GB", method="recompute_all", **step)
    return planner.fit(model, BUDGETS[name], limits=planner.Limits(seconds=2), **step)


def run_cases(mesh: DeviceMesh, folder: Path) -> dict[tuple[str, str], Any]:
    """Train each model plain and by the plans of the folder; return what was found."""
    found = {}
    plain: dict[str, Any] = {}
    for name, case in CASES:
        build, inputs = MODELS[name], step_of(name)["inputs"]
        plan = planner.load(folder / f"{name}, {case}.json")
        assert isinstance(plan, planner.Plan)
        plain[name] = plain.get(name) or train(build(mesh), inputs)
        model = plan.apply(build(mesh), loss=step_of(name).get("loss"))
        found[name, case] = {
            "equal": equal(plain[name], train(model, inputs)),
            "names": list(model.state_dict()) == list(build(mesh).state_dict()),
            "placed": sum(is_placed(t) for t in model.state_dict().values()),
            "measured_bytes": measured_bytes(model, inputs) if case == "less" else None,
        }
    return found


def refused(mesh: DeviceMesh, folder: Path) -> str:
    """Try to run two plans on two ranks."""
    case = ("less", "all again")[dist.get_rank()]
    plan = planner.load(folder / f"sequence parallel, {case}.json")
    try:
        plan.apply(sequence_parallel(mesh))  # type: ignore[arg-type, union-attr]
    except PlanMismatch as error:
        return str(error)
    return ""


def on_rank(rank: int, folder: str, port: int) -> None:
    """Do all that needs two ranks, and write down what was found."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=120)
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=limit)
    mesh = init_device_mesh("cpu", (2,))
    found = {
        "cases": run_cases(mesh, Path(folder)),
        "refused": refused(mesh, Path(folder)),
        "collectives": collectives.measured(),
    }
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def run_two(folder: Path, port: int) -> list[dict[str, Any]]:
    """Run both ranks; return what each found."""
    mp.spawn(on_rank, args=(str(folder), port), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
