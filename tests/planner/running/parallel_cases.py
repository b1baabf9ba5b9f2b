"""Models that are parallelized in less usual ways, and two processes that train them twice."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch import multiprocessing as mp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    loss_parallel,
    parallelize_module,
)
from torch.nn import functional as F

import planner
from planner.graphs.capture.placed import is_placed, local_of, whole_of
from planner.verification.meeting import meeting
from tests.planner.running.parallel import (
    COLUMNS,
    ROWS,
    WIDTH,
    WORDS,
    Block,
    Decoder,
    local_gradient,
    measured_bytes,
    sequence_parallel,
)

STEPS = 3


def ids(samples: int = 16, tokens: int = 64, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, WORDS, (samples, tokens), generator=generator)
    return {"ids": words, "labels": words}


def parted(mesh: DeviceMesh, model: nn.Module | None = None) -> nn.Module:
    """Part the products of all blocks, and both ends over the vocabulary."""
    torch.manual_seed(0)
    found: Any = model or Decoder()
    for block in found.blocks:
        styles = {name: ColwiseParallel() for name in COLUMNS}
        parallelize_module(block, mesh, styles | {name: RowwiseParallel() for name in ROWS})
    ends = {
        "words": RowwiseParallel(input_layouts=Replicate()),
        "head": ColwiseParallel(output_layouts=Replicate()),
    }
    return parallelize_module(found, mesh, ends)


def tied(mesh: DeviceMesh) -> nn.Module:
    model: Any = parted(mesh)
    model.head.weight = model.words.weight
    return model  # type: ignore[no-any-return]


def frozen(mesh: DeviceMesh) -> nn.Module:
    model: Any = parted(mesh)
    for part in (model.words, model.blocks[0], model.blocks[1].q):
        part.requires_grad_(False)
    model.blocks[1].down.bias.requires_grad_(False)
    return model  # type: ignore[no-any-return]


class Adapted(nn.Module):
    """A frozen product with a trained one of low rank beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.a = base, nn.Linear(base.in_features, 4, bias=False)
        self.b = nn.Linear(4, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.base(x) + self.b(self.a(x))
        return added


def adapted(mesh: DeviceMesh) -> nn.Module:
    torch.manual_seed(0)
    model: Any = Decoder().requires_grad_(False)
    for block in model.blocks:
        block.q = Adapted(block.q)
        names = ("q.base", "q.b", "k", "v", "up")
        styles = {name: ColwiseParallel() for name in names}
        parallelize_module(block, mesh, styles | {name: RowwiseParallel() for name in ROWS})
    return model  # type: ignore[no-any-return]


def second_dimension(mesh: DeviceMesh) -> nn.Module:
    both = init_device_mesh("cpu", (1, mesh.size()), mesh_dim_names=("data", "model"))
    return parted(both["model"])


def backwards(mesh: DeviceMesh) -> nn.Module:
    return parted(DeviceMesh("cpu", [1, 0]))


class Dropping(Block):
    """A block that draws between parted products, on each rank for its own heads and features."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        parts = [layer(y) for layer in (self.q, self.k, self.v)]
        q, k, v = (t.unflatten(-1, (-1, 16)).transpose(1, 2) for t in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=0.1)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        added: Tensor = x + self.down(F.dropout(F.gelu(self.up(self.second(x))), 0.1))
        return added


def dropping(mesh: DeviceMesh) -> nn.Module:
    torch.manual_seed(0)
    model = Decoder()
    model.blocks = nn.ModuleList(Dropping() for _ in range(2))
    return parted(mesh, model)


class Summed(torch.autograd.Function):
    """A sum over the ranks in forward, or in backward: tensor parallelism by hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, now: bool) -> Tensor:
        ctx.now = now
        return summed(x) if now else x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] if ctx.now else summed(grads[0]), None


def summed(x: Tensor) -> Tensor:
    x = x.clone()
    dist.all_reduce(x)
    return x


class ByHand(nn.Module):
    """Layers of which each rank has features of its own, as plain parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS)
        self.up = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH, bias=False) for _ in range(3))

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.words(ids)
        for up, down in zip(self.up, self.down, strict=True):
            inside = F.gelu(up(Summed.apply(x, False)))
            x = x + Summed.apply(down(inside), True)
        return F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


def by_hand(mesh: DeviceMesh) -> nn.Module:
    torch.manual_seed(0)
    model = ByHand()
    torch.manual_seed(dist.get_rank())
    for layer in (*model.up, *model.down):
        layer.reset_parameters()  # type: ignore[operator]
    return model


class OneLoss(nn.Module):
    """The loss of logits in parts, as all ranks have it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        return whole_of(self.model(**inputs))


def parted_logits(mesh: DeviceMesh) -> nn.Module:
    torch.manual_seed(0)
    model = parallelize_module(Decoder(), mesh, {"head": ColwiseParallel(use_local_output=False)})
    return OneLoss(model)


@dataclass(frozen=True)
class Case:
    """A model, what is said of its step, and how it is trained.

    ``sizes`` are the samples and tokens of each step; ``within`` is entered around forward, and
    around backward too where the loss is in parts.
    """

    build: Callable[[DeviceMesh], nn.Module]
    said: dict[str, Any] = field(default_factory=dict)
    sizes: tuple[tuple[int, int], ...] = ((16, 64),) * STEPS
    micro_steps: int = 1
    clipped: bool = False
    saved: bool = False
    within: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    backward_within: bool = False


SMALLER = ((16, 64), (8, 62), (5, 32))
ANY_SIZE = {"dynamic": {"ids": [0, 1], "labels": [0, 1]}}
CASES = {
    "both ends": Case(parted),
    "tied": Case(tied),
    "frozen": Case(frozen),
    "adapted": Case(adapted),
    "accumulated": Case(parted, {"accumulate": True}, micro_steps=2),
    "clipped": Case(parted, clipped=True),
    "saved": Case(parted, saved=True),
    "second dimension": Case(second_dimension),
    "backwards": Case(backwards),
    "dropping": Case(dropping),
    "by hand": Case(by_hand),
    "parted logits": Case(parted_logits, within=loss_parallel, backward_within=True),
    "autocast": Case(parted, within=partial(torch.autocast, "cpu", torch.bfloat16)),
    "bfloat16": Case(lambda mesh: parted(mesh).bfloat16()),
    "smaller": Case(parted, ANY_SIZE, SMALLER),
    "smaller sequences": Case(sequence_parallel, ANY_SIZE, SMALLER),
}
MEASURED = ("both ends", "tied", "frozen", "adapted", "dropping", "by hand", "bfloat16")


def train(model: nn.Module, case: Case, folder: str) -> list[Tensor]:
    """Take three steps of AdamW; return losses, gradients and, in the end, this rank's parts."""
    torch.manual_seed(7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    found: list[Tensor] = []
    for step, (samples, tokens) in enumerate(case.sizes):
        optimizer.zero_grad(set_to_none=True)
        for micro_step in range(case.micro_steps):
            found.append(_loss(model, case, ids(samples, tokens, micro_step)))
        if case.clipped:
            found += _clipped(model)
        found += [local_gradient(p) for p in model.parameters() if p.grad is not None]
        optimizer.step()
        if case.saved and step == 0:
            _saved_and_loaded(model, optimizer, folder)
    return [*found, *(local_of(p).detach().clone() for p in model.parameters())]


def _loss(model: nn.Module, case: Case, inputs: dict[str, Tensor]) -> Tensor:
    with case.within():
        loss: Tensor = model(**inputs)
        if case.backward_within:
            loss.backward()  # type: ignore[no-untyped-call]
    if not case.backward_within:
        loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach().clone()


def _clipped(model: nn.Module) -> Iterator[Tensor]:
    """Clip the gradients that lie on a mesh, and the others: torch does not mix them."""
    for placed in (True, False):
        among = [p for p in model.parameters() if is_placed(p) == placed]
        yield whole_of(nn.utils.clip_grad_norm_(among, 0.05))


def _saved_and_loaded(model: nn.Module, optimizer: torch.optim.Optimizer, folder: str) -> None:
    """Write a distributed checkpoint, forget the parameters, and read it."""
    kept = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.save(kept, checkpoint_id=folder)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    kept = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.load(kept, checkpoint_id=folder)
    set_state_dict(
        model, optimizer, model_state_dict=kept["model"], optim_state_dict=kept["optimizer"]
    )


def planned(case: Case, model: nn.Module) -> planner.Plan:
    """Make a plan that runs ops again, in four fifths of what the plain step holds if it can."""
    step = {"inputs": ids(), "progress": "off", **case.said}
    with case.within():
        plain = planner.fit(model, "1GB", **step)
        budget = int(0.8 * plain.plain_peak_bytes)
        try:
            return planner.fit(model, budget, limits=planner.Limits(seconds=3), **step)
        except planner.InfeasibleBudget:
            return planner.fit(model, "1GB", method="recompute_all", **step)


def run_case(name: str, mesh: DeviceMesh, folder: Path) -> dict[str, Any]:
    """Train a model plain and by a plan of the first rank's."""
    case, path = CASES[name], folder / f"{name}.json"
    plain = train(case.build(mesh), case, str(folder / f"{name} plain"))
    whole = case.build(mesh)  # on both ranks, which exchange its parts
    if dist.get_rank() == 0:
        planned(case, whole).save(path)
    dist.barrier()
    plan: Any = planner.load(path)
    with case.within():
        model = plan.apply(whole)
    found = train(model, case, str(folder / f"{name} planned"))
    order = plan.schedule.order
    return {
        "equal": [bool(torch.equal(a, b)) for a, b in zip(plain, found, strict=True)],
        "again": len(order) - len(set(order)),
        "predicted": plan.peak_bytes,
        "measured": measured_bytes(model, ids()) if name in MEASURED else None,
    }


def every_case(mesh: DeviceMesh, folder: Path) -> dict[str, Any]:
    return {name: run_case(name, mesh, folder) for name in CASES}


def on_rank(rank: int, folder: str, found: Callable[[DeviceMesh, Path], dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with meeting(rank, 2, folder):
        made = found(init_device_mesh("cpu", (2,)), Path(folder))
        torch.save(made, Path(folder) / f"{rank}.pt")


def run_two(
    folder: Path, found: Callable[[DeviceMesh, Path], dict[str, Any]] = every_case
) -> list[dict[str, Any]]:
    """Run both ranks; return what each found."""
    mp.spawn(on_rank, args=(str(folder), found), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
