"""Four processes over gloo that train a small decoder: layers in two parts, sharded over two."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch import multiprocessing as mp
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import parallelize_module

import planner
from planner.errors import PlanMismatch
from planner.graphs.capture.placed import local_of
from planner.sharding.parted.declared import declared
from planner.tensor_parallel import TensorParallel
from planner.verification.meeting import meeting
from planner.verification.ranks import ShardedTrial, measure_rank
from planner.verification.training_run import scalar_of
from tests.planner.sharding.parted.decoders import along_sequence, decoder, styles

WORDS, TOKENS, SAMPLES = 512, 64, 4
BUDGETS = {"experts": "13.5MB", "gpt": "2.9MB", "gpt along the sequence": "2.6MB"}
CASES = ("parted", "along the sequence", "declared", "experts", "gpt", "gpt along the sequence")
DECLARED = ("declared", "experts")


SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "use_cache": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=320)).train()


def mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(**SIZES, intermediate_size=192, num_local_experts=4)
    return MixtralForCausalLM(config).train()


def model_of(case: str) -> nn.Module:
    if case.startswith("gpt"):
        return decoder(layers=3)
    return mixtral() if case == "experts" else llama()


def batch(part: int, case: str = "declared") -> dict[str, Tensor]:
    gpt = case.startswith("gpt")
    generator = torch.Generator().manual_seed(part)
    ids = torch.randint(128 if gpt else WORDS, (SAMPLES, TOKENS), generator=generator)
    return {"ids" if gpt else "input_ids": ids, "labels": ids}


@dataclass(frozen=True)
class Example:
    """Makes the model of a case and a rank's samples: the two that share layers have the same."""

    case: str

    def __call__(self, rank: int) -> tuple[nn.Module, dict[str, Tensor]]:
        return model_of(self.case), batch(rank // 2, self.case)


def said(case: str) -> Any:
    """Return what ``fit`` and ``apply`` are told of tensor parallelism."""
    if case in DECLARED:
        return 2
    if case.startswith("gpt"):
        return TensorParallel(styles() if case == "gpt" else along_sequence(), degrees=(2,))
    own = declared(llama())
    return TensorParallel(own.styles if case == "parted" else own.sequence, degrees=(2,))


def planned(case: str, budget: str = "") -> planner.ShardedPlan:
    plan = planner.fit(
        model_of(case), budget or BUDGETS.get(case, "8MB"), inputs=batch(0, case), world_size=4,
        global_batch=8, offload=False,
        tensor_parallel=said(case), progress="off", limits=planner.Limits(seconds=10),
    )  # fmt: skip
    assert isinstance(plan, planner.ShardedPlan)
    return plan


def plain(plan: planner.ShardedPlan, case: str, mesh: DeviceMesh) -> nn.Module:
    """Do by torch's own means what a plan does, without a schedule."""
    model, chosen = model_of(case), said(case)
    if case in DECLARED:
        own = declared(model)
        found: Any = own.sequence if plan.configuration.sequence_parallel else own.styles
    else:
        found = chosen.styles
    parallelize_module(model, mesh["tensor"], dict(found))
    for unit in plan.units:
        kept = not unit.keep_gathered
        fully_shard(model.get_submodule(unit.path), mesh=mesh["shard"], reshard_after_forward=kept)
    return fully_shard(model, mesh=mesh["shard"], reshard_after_forward=False)


def train(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Take three steps; return losses, gradients and, in the end, this rank's shards."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    found: list[Tensor] = []
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        loss = scalar_of(model(**inputs))
        loss.backward()
        found += [loss.detach(), *(local_of(p.grad).clone() for p in model.parameters())]
        optimizer.step()
    return [*found, *(local_of(p).detach().clone() for p in model.parameters())]


def refused(plan: planner.ShardedPlan, model: nn.Module | None = None, **options: Any) -> str:
    try:
        plan.apply(model or llama(), **options)
    except PlanMismatch as error:
        return str(error)
    return ""


def on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch says that the root returns a view
    plans: dict[str, Any] = {c: planner.load(Path(folder) / f"{c}.json") for c in CASES}
    other: Any = planner.load(Path(folder) / "other.json")
    with meeting(rank, 4, folder):
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("shard", "tensor"))
        found: dict[str, Any] = {}
        for case, plan in plans.items():
            chosen = None if case in DECLARED else said(case)
            inputs = batch(rank // 2, case)
            without = train(plain(plan, case, mesh), inputs)
            applied = plan.apply(model_of(case), mesh=mesh, tensor_parallel=chosen)
            trial = ShardedTrial(
                Example(case),
                plan.configuration,
                plan.units,
                plan,
                compared=False,
                styles=chosen,
            )
            pairs = zip(without, train(applied, inputs), strict=True)
            found[case] = {
                "equal": [bool(torch.equal(a, b)) for a, b in pairs],
                "peak_bytes": measure_rank(trial, rank).peak_bytes,
            }
        wide = init_device_mesh("cpu", (1, 4), mesh_dim_names=("shard", "tensor"))
        found["other mesh"] = refused(plans["declared"], mesh=wide)
        found["other plans"] = refused(other if rank == 3 else plans["declared"], mesh=mesh)
        frozen, still = llama().requires_grad_(rank != 1), llama().train(rank != 3)
        found["other model"] = refused(plans["declared"], frozen, mesh=mesh)
        found["other mode"] = refused(plans["declared"], still, mesh=mesh)
        apart = DeviceMesh("cpu", [[0, 2], [1, 3]], mesh_dim_names=("shard", "tensor"))
        found["apart"] = refused(plans["declared"], mesh=apart)
        torch.save(found, Path(folder) / f"{rank}.pt")
        dist.barrier()


def run_four(folder: Path) -> list[dict[str, Any]]:
    """Run all ranks; return what each found."""
    mp.spawn(on_rank, args=(str(folder),), nprocs=4)
    return [torch.load(folder / f"{rank}.pt") for rank in range(4)]
