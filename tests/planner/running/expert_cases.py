"""Mixtures of experts that transformers parallelized by its expert plans, trained on two ranks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch import multiprocessing as mp
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import planner
from planner.verification.meeting import meeting
from tests.planner.running.parallel import WIDTH, WORDS, measured_bytes
from tests.planner.running.parallel_cases import Case, ids, train

SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "use_cache": False,
}
EXPERTS = 4


class ItsLoss(nn.Module):
    """The loss of a language model of transformers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.model(input_ids=ids, labels=labels).loss
        return loss


def mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=EXPERTS))


def qwen2_moe() -> Any:
    """Return one with experts that all tokens share beside the others."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    sizes = {"moe_intermediate_size": WIDTH, "shared_expert_intermediate_size": WIDTH}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**SIZES, **sizes, num_experts=EXPERTS))


def olmoe() -> Any:
    from transformers import OlmoeConfig, OlmoeForCausalLM

    return OlmoeForCausalLM(OlmoeConfig(**SIZES, num_experts=EXPERTS))


def experts_on(
    mesh: DeviceMesh, how: str, make: Callable[[], Any] = mixtral, **said: Any
) -> nn.Module:
    """Return a model whose experts lie whole on the ranks of a mesh, as transformers lays them.

    Args:
        mesh: of one dimension; its ranks see the same batch.
        how: an ``ep_implementation`` of transformers.
        make: makes the model.
        said: more of its configuration.
    """
    from transformers.distributed.expert_parallel import apply_expert_parallelism
    from transformers.distributed.tensor_parallel import apply_tensor_parallelism

    torch.manual_seed(0)
    model = make().train()
    vars(model.config).update(_experts_implementation="grouped_mm", **said)
    dense = {n: w for n, w in expanded(model, model.tp_plan).items() if ".experts" not in n}
    owners = ((n, n.rpartition(".")[0]) for n, _ in model.named_parameters())
    apply_tensor_parallelism(model, mesh, dense | {n: dense[m] for n, m in owners if m in dense})
    apply_expert_parallelism(model, mesh, mesh, expanded(model, model.ep_plan), how)
    return ItsLoss(model)


def expanded(model: Any, plan: dict[str, str]) -> dict[str, str]:
    """Return a plan of transformers with the numbers of layers in place of the stars."""
    layers = range(model.config.num_hidden_layers)
    found = {pattern.replace("*", str(i)): w for pattern, w in plan.items() for i in layers}
    there = {n for named in (model.named_modules(), model.named_parameters()) for n, _ in named}
    return {n: w for n, w in found.items() if n in there}


def to_one_rank(model: Any) -> nn.Module:
    """Let all experts be equally good: all tokens go to two of the first rank's."""
    for name, p in model.named_parameters():
        if name.endswith("mlp.gate.weight"):
            nn.init.zeros_(p).requires_grad_(False)
    return model  # type: ignore[no-any-return]


CASES = {
    "all_reduce": Case(lambda mesh: experts_on(mesh, "all_reduce")),
    "all_reduce, shared experts": Case(lambda mesh: experts_on(mesh, "all_reduce", qwen2_moe)),
    "all_to_all": Case(lambda mesh: experts_on(mesh, "all_to_all")),
    "all_to_all, to one rank": Case(lambda mesh: to_one_rank(experts_on(mesh, "all_to_all"))),
    "auto, shared experts": Case(lambda mesh: experts_on(mesh, "auto", qwen2_moe)),
}


def planned(case: Case, model: nn.Module) -> planner.Plan:
    """Plan half way between the least budget and what the plain step holds."""
    step = {"inputs": ids(), "progress": "off", **case.said}
    plain = planner.fit(model, "1GB", **step)
    try:
        planner.fit(model, 1000, **step)
    except planner.InfeasibleBudget as error:
        budget = (error.least_bytes + plain.plain_peak_bytes) // 2
    return planner.fit(model, budget, limits=planner.Limits(seconds=3), **step)


def run_case(name: str, mesh: DeviceMesh, folder: Path) -> dict[str, Any]:
    """Train a model plain, and by plans of the first rank's: one in all memory, one half way."""
    case = CASES[name]
    plain = train(case.build(mesh), case, str(folder))
    found: dict[str, Any] = {}
    for budget in ("all", "half way"):
        path = folder / f"{name}, {budget}.json"
        whole = case.build(mesh)
        if dist.get_rank() == 0:
            made = planner.fit(whole, "1GB", inputs=ids(), progress="off", **case.said)
            (made if budget == "all" else planned(case, whole)).save(path)
        dist.barrier()
        plan: Any = planner.load(path)
        trained = train(plan.apply(whole), case, str(folder))
        order = plan.schedule.order
        found[budget] = {
            "equal": [bool(torch.equal(a, b)) for a, b in zip(plain, trained, strict=True)],
            "again": len(order) - len(set(order)),
            "budget": plan.budget_bytes,
            "predicted": plan.peak_bytes,
            "measured": measured_bytes(plan.apply(case.build(mesh)), ids()),
            "text": str(plan),
        }
    return found


def on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with meeting(rank, 2, folder):
        mesh = init_device_mesh("cpu", (2,))
        found = {name: run_case(name, mesh, Path(folder)) for name in CASES}
        torch.save(found, Path(folder) / f"{rank}.pt")


def run_two(folder: Path) -> list[dict[str, Any]]:
    """Run both ranks; return what each found."""
    mp.spawn(on_rank, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
