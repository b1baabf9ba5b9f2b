"""Mixtures of experts that transformers parallelized by its expert plans, trained on two ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import planner
from tests.planner.running.parallel import WIDTH, WORDS, measured_bytes
from tests.planner.running.parallel_cases import ANY_SIZE, SMALLER, Case, ids, train

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
    """The loss of a language model of transformers, with that of its routers if asked for."""

    def __init__(self, model: nn.Module, *, routers: bool = False) -> None:
        super().__init__()
        self.model, self.routers = model, routers

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        said = {"input_ids": ids, "labels": labels, "output_router_logits": self.routers}
        loss: Tensor = self.model(**said).loss
        return loss


def mixtral(**said: Any) -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=EXPERTS, **said))


def qwen2_moe() -> Any:
    """Return one with experts that all tokens share beside the others."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    sizes = {"moe_intermediate_size": WIDTH, "shared_expert_intermediate_size": WIDTH}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**SIZES, **sizes, num_experts=EXPERTS))


def olmoe() -> Any:
    from transformers import OlmoeConfig, OlmoeForCausalLM

    return OlmoeForCausalLM(OlmoeConfig(**SIZES, num_experts=EXPERTS, eos_token_id=2))


def experts_on(
    mesh: DeviceMesh,
    how: str,
    make: Callable[[], Any] = mixtral,
    *,
    shared: DeviceMesh | None = None,
) -> nn.Module:
    """Return a model whose experts lie whole on the ranks of a mesh, as transformers lays them.

    Args:
        mesh: of one dimension.
        how: an ``ep_implementation`` of transformers.
        make: makes the model.
        shared: of the ranks that see the same batch; by default the same.
    """
    from transformers.distributed.expert_parallel import apply_expert_parallelism
    from transformers.distributed.tensor_parallel import apply_tensor_parallelism

    torch.manual_seed(0)
    model = make().train()
    model.config._experts_implementation = "grouped_mm"
    shared = mesh if shared is None else shared
    dense = {n: w for n, w in expanded(model, model.tp_plan).items() if ".experts" not in n}
    owners = ((n, n.rpartition(".")[0]) for n, _ in model.named_parameters())
    if shared.size() > 1:
        apply_tensor_parallelism(
            model, shared, dense | {n: dense[m] for n, m in owners if m in dense}
        )
    apply_expert_parallelism(model, mesh, shared, expanded(model, model.ep_plan), how)
    return ItsLoss(model)


def expanded(model: Any, plan: dict[str, str]) -> dict[str, str]:
    """Return a plan of transformers with the numbers of layers in place of the stars."""
    layers = range(model.config.num_hidden_layers)
    found = {pattern.replace("*", str(i)): w for pattern, w in plan.items() for i in layers}
    there = {n for named in (model.named_modules(), model.named_parameters()) for n, _ in named}
    return {n: w for n, w in found.items() if n in there}


def own_batches(mesh: DeviceMesh) -> nn.Module:
    """Return a model whose ranks share nothing but experts, as with data parallelism around."""
    both = init_device_mesh("cpu", (mesh.size(), 1), mesh_dim_names=("ep", "tp"))
    return experts_on(both["ep"], "all_to_all", shared=both["tp"])


def halved() -> Any:
    """Return a class that does something around what it is derived from."""
    from transformers.distributed.expert_parallel import AllToAllEP

    class Halved(AllToAllEP):
        def __call__(self, tokens: Tensor, index: Tensor, weights: Tensor) -> Any:
            return super().__call__(tokens, index, weights * 0.5)

    return Halved


def derived(mesh: DeviceMesh) -> nn.Module:
    """Return a model whose tokens are sent by somebody's own class, derived from transformers'."""
    from transformers.distributed.expert_parallel import EPImplementationInterface

    EPImplementationInterface.register("halved", halved())
    return experts_on(mesh, "halved")


def balanced(mesh: DeviceMesh) -> nn.Module:
    """Return a model whose routers draw, and have a loss, by hooks set up at its first call."""
    model: Any = experts_on(mesh, "auto", partial(mixtral, router_jitter_noise=0.1))
    return ItsLoss(model.model, routers=True)


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
    "own batches": Case(own_batches),
    "own batches, to one rank": Case(lambda mesh: to_one_rank(own_batches(mesh))),
    "bfloat16": Case(lambda mesh: experts_on(mesh, "auto", olmoe).bfloat16()),
    "autocast": Case(
        lambda mesh: experts_on(mesh, "auto"),
        within=partial(torch.autocast, "cpu", torch.bfloat16),
    ),
    "derived": Case(derived),
    "its routers' loss": Case(balanced),
    "float16, to one rank": Case(lambda mesh: to_one_rank(experts_on(mesh, "auto").half())),
    "accumulated": Case(lambda mesh: experts_on(mesh, "auto"), {"accumulate": True}, micro_steps=2),
    "smaller": Case(lambda mesh: experts_on(mesh, "auto"), ANY_SIZE, SMALLER),
}


IN_ALL_MEMORY = ("all_reduce", "all_to_all", "all_to_all, to one rank")
"""Cases that are planned with all memory there is, too, and not half way alone."""

UNEVEN = (
    *("all_to_all", "auto, shared experts", "own batches", "bfloat16", "derived"),
    "its routers' loss",
)
"""Cases in which no rank receives as many rows as are planned for."""

UNMEASURED = ("autocast", "accumulated", "smaller")
"""Cases whose step is another than the one that is measured."""


def planned(case: Case, model: nn.Module, where: str) -> planner.Plan:
    """Plan in all memory, or half way between the least budget and what the plain step holds."""
    step = {"inputs": ids(), "progress": "off", **case.said}
    with case.within():
        plain = planner.fit(model, "1GB", **step)
        if where == "all":
            return plain
        try:
            return planner.fit(model, 1000, **step)
        except planner.InfeasibleBudget as error:
            budget = (error.least_bytes + plain.plain_peak_bytes) // 2
        return planner.fit(model, budget, limits=planner.Limits(seconds=3), **step)


def run_case(name: str, mesh: DeviceMesh, folder: Path) -> dict[str, Any]:
    """Train a model plain, and by plans of the first rank's: one in all memory, one half way."""
    case = CASES[name]
    plain = train(case.build(mesh), case, str(folder))
    found: dict[str, Any] = {}
    for where in ("all", "half way") if name in IN_ALL_MEMORY else ("half way",):
        path, whole = folder / f"{name}, {where}.json", case.build(mesh)
        if dist.get_rank() == 0:
            planned(case, whole, where).save(path)
        dist.barrier()
        plan: Any = planner.load(path)
        with case.within():
            model = plan.apply(whole)
        trained = train(model, case, str(folder))
        order = plan.schedule.order
        found[where] = {
            "equal": [
                bool(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))  # float16 overflows
                for a, b in zip(plain, trained, strict=True)
            ],
            "again": len(order) - len(set(order)),
            "budget": plan.budget_bytes,
            "predicted": plan.peak_bytes,
            "measured": None if name in UNMEASURED else measured(plan, case.build(mesh)),
            "text": str(plan),
        }
    return found


def measured(plan: planner.Plan, model: nn.Module) -> int:
    return measured_bytes(plan.apply(model), ids())


def overflowing(mesh: DeviceMesh, folder: Path) -> dict[str, Any]:
    """Send all tokens to one rank, by a plan that has memory for half as many more than is even."""
    path = folder / "overflowing.json"
    model = to_one_rank(experts_on(mesh, "auto"))
    if dist.get_rank() == 0:
        step = {"inputs": ids(), "progress": "off", "capacity_factor": 1.5}
        planner.fit(model, "1GB", **step).save(path)
    dist.barrier()
    plan: Any = planner.load(path)
    planned_model = plan.apply(model)
    try:
        planned_model(**ids())
        said = ""
    except planner.CapacityExceeded as error:
        said = str(error)
    smaller = ids(12)
    with torch.no_grad():
        expected = to_one_rank(experts_on(mesh, "auto"))(**smaller)
    return {"said": said, "smaller": torch.equal(planned_model(**smaller).detach(), expected)}


def every_case(mesh: DeviceMesh, folder: Path) -> dict[str, Any]:
    found = {name: run_case(name, mesh, folder) for name in CASES}
    return {**found, "overflowing": overflowing(mesh, folder)}
