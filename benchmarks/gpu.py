"""What only a device can show: ``python -m benchmarks.gpu`` on any CUDA card, in ten minutes.

Needs nothing downloaded. Every check is a row with what was found, what was expected and its
tolerance; on a machine without a card those that have a meaning on a CPU run there, and the others
say "skipped: no GPU". The command ends with 1 if a row is outside its tolerance.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

import planner
from benchmarks.record import record, show
from planner.graphs.capture.call_arguments import arguments_of
from planner.graphs.capture.training_step import capture_joint
from planner.graphs.hardware.detect import device_at
from planner.graphs.torch_api.allocation_records import measure_peak
from planner.verification.difference import compare_tensors

SKIPPED = "skipped: no GPU"
EXPANDABLE = "expandable_segments:True"
Built = tuple[nn.Module, dict[str, Tensor]]


@dataclass(frozen=True)
class Row:
    """A check of a case; ``found`` and ``expected`` are in the unit of ``what``."""

    check: str
    case: str
    what: str
    found: str
    expected: str
    tolerance: str
    verdict: str


def _row(  # noqa: PLR0917 - it is read like the line of a table
    check: str, case: str, what: str, found: Any, expected: Any, tolerance: str, ok: object
) -> Row:
    one, other = (f"{x:.4g}" if isinstance(x, float) else str(x) for x in (found, expected))
    return Row(check, case, what, one, other, tolerance, "ok" if ok else "WRONG")


def gpt2(dropout: float = 0.1, layers: int = 4) -> Built:
    """Build GPT-2 with fused attention."""
    config = hf.GPT2Config(
        n_layer=layers, n_embd=256, n_head=8, n_positions=256, vocab_size=4096, use_cache=False,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    ids = torch.randint(4096, (8, 256))
    return hf.GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids}


def llama() -> Built:
    """Build Llama in bfloat16."""
    config = hf.LlamaConfig(
        hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, vocab_size=4096, use_cache=False,
    )  # fmt: skip
    ids = torch.randint(4096, (8, 256))
    return hf.LlamaForCausalLM(config).to(torch.bfloat16), {"input_ids": ids, "labels": ids}


def resnet() -> Built:
    """Build a small ResNet."""
    config = hf.ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128], depths=[2, 2, 2], layer_type="basic",
        num_labels=10,
    )  # fmt: skip
    inputs = {"pixel_values": torch.randn(16, 3, 96, 96), "labels": torch.randint(10, (16,))}
    return hf.ResNetForImageClassification(config), inputs


MODELS: dict[str, Callable[[], Built]] = {"gpt2": gpt2, "llama": llama, "resnet": resnet}


def on(kind: str, build: Callable[[], Built]) -> Built:
    """Build a model, the same every time, and move it and its inputs to a device."""
    torch.manual_seed(0)
    model, inputs = build()
    return model.to(kind).train(), {name: x.to(kind) for name, x in inputs.items()}


class Layer(nn.Module):
    """A function of an input that is a layer's output, so that its gradient arrives somewhere."""

    def __init__(self, function: Callable[[Tensor], Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.first, self.function = nn.Linear(64, 64), function
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both."""
        return self.function(self.first(x)).float().square().mean()


def _of(part: nn.Module, steps: int = 0) -> Layer:
    shape = (steps, -1, 64) if steps else (-1, 64)
    return Layer(lambda x: _first(part(x.view(shape))), part)


def _heads(x: Tensor) -> Tensor:
    return x.view(4, 32, 4, 16).transpose(1, 2)


def _mask(x: Tensor) -> Tensor:
    return torch.ones(32, 32, dtype=torch.bool, device=x.device).tril()


def layers() -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers whose kernels differ between a CPU and CUDA."""
    attention: Any = nn.functional.scaled_dot_product_attention
    yield "attention", Layer(lambda x: attention(*(_heads(x),) * 3))
    yield "attention, causal", Layer(lambda x: attention(*(_heads(x),) * 3, is_causal=True))
    yield "attention, dropout", Layer(lambda x: attention(*(_heads(x),) * 3, dropout_p=0.1))
    yield "attention, mask", Layer(lambda x: attention(*(_heads(x),) * 3, attn_mask=_mask(x)))
    yield "dropout", Layer(lambda x: nn.functional.dropout(x, 0.15))
    norms = nn.RMSNorm(64), nn.LayerNorm(64)
    for part in (*norms, nn.LSTMCell(64, 64), nn.GRUCell(64, 64)):
        yield type(part).__name__, _of(part)
    for layer in (nn.LSTM(64, 64, 2), nn.GRU(64, 64), nn.RNN(64, 64)):
        yield type(layer).__name__, _of(layer, steps=4)


def _first(made: Any) -> Tensor:
    found: Tensor = made[0] if isinstance(made, tuple) else made
    return found


def kernels(kind: str) -> Iterator[Row]:
    """Compare the ops captured on meta for this device with those captured on it."""
    card = device_at(kind)
    for dtype in (torch.float32, torch.bfloat16):
        for name, layer in layers():
            case = f"{name}, {str(dtype).removeprefix('torch.')}"
            x = torch.zeros(4, 32, 64, dtype=dtype)
            there = layer.to("meta", dtype)
            planned = capture_joint(there, arguments_of(x.to("meta")), device=card)
            real = layer.to_empty(device=kind)
            found = capture_joint(real, arguments_of(x.to(kind)), device=card)
            ops = [[op.target for op in t.captured.graph.ops] for t in (found, planned)]
            pairs = zip(*ops, strict=False)
            differing = next((pair for pair in pairs if pair[0] != pair[1]), None)
            same = ops[0] == ops[1]
            yield _row("kernels", case, "ops", differing or len(ops[0]), len(ops[1]), "equal", same)


def bits(kind: str) -> Iterator[Row]:
    """Compare loss, gradients and the generator's state with those of eager mode."""
    for name, build in MODELS.items():
        model, inputs = on(kind, build)
        plain = _trained(model, inputs)
        plan = _tight(model, inputs)
        planned = _trained(plan.apply(model), inputs)
        found = compare_tensors(plain, planned)
        yield _row("bits", name, "largest difference", found.relative, 0.0, "0", found.identical)


def _trained(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the loss and the gradients of one step, and the next random number."""
    torch.manual_seed(1)
    model.zero_grad(set_to_none=True)
    loss = model(**inputs).loss
    loss.backward()
    made = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    drawn = torch.rand(1, device=loss.device)
    return {"loss": loss.detach(), "next random number": drawn, **made}


def _tight(model: nn.Module, inputs: dict[str, Tensor], share: float = 0.5) -> planner.Plan:
    """Plan half way between what is resident and what the plain step holds."""
    said: dict[str, Any] = {"inputs": inputs, "progress": "off"}
    plain: planner.Plan = planner.fit(model, "90%", **said)
    resident = plain.graph.resident_bytes
    while True:
        try:
            budget = int(resident + share * (plain.plain_peak_bytes - resident))
            found: planner.Plan = planner.fit(model, budget, **said)
        except planner.InfeasibleBudget:
            share = (1 + share) / 2
        else:
            return found


def memory(kind: str) -> Iterator[Row]:
    """Compare what a step holds, and on a card what its allocator reserves, with the prediction."""
    for name, build in MODELS.items():
        model, inputs = on(kind, build)
        plan = replace(_tight(model, inputs), optimizer=None)
        step = _stepper(plan.apply(model), inputs)
        step()
        measured = _peak(kind, model, inputs, step)
        reserve = plan.hardware.reserve_bytes if plan.hardware else 0
        expected = (plan.needs.allocated_bytes if plan.needs else plan.peak_bytes) - reserve
        off = measured / expected - 1
        yield _row("memory", f"{name}, planned", "bytes", measured, expected, "2%", abs(off) < 0.02)
        if kind == "cuda" and plan.needs is not None:
            reserved = torch.cuda.max_memory_reserved()
            limit = plan.needs.reserved_bytes - reserve
            verdict = reserved <= 1.02 * limit
            yield _row("memory", f"{name}, reserved", "bytes", reserved, limit, "+2%", verdict)


def _peak(kind: str, model: nn.Module, inputs: dict[str, Tensor], step: Callable[[], float]) -> int:
    if kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    states = 2 * sum(p.nbytes for p in model.parameters())
    static = [*model.parameters(), *model.buffers(), *inputs.values()]
    model.zero_grad(set_to_none=True)
    held = sum({t.untyped_storage().data_ptr(): t.nbytes for t in static}.values())
    return measure_peak(step, torch.device("cpu")).peak_bytes + held + states


def _stepper(model: nn.Module, inputs: dict[str, Tensor]) -> Callable[[], float]:
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> float:
        optimizer.zero_grad()
        output = model(**inputs)  # held to the end of the step
        output.loss.backward()
        optimizer.step()
        return float(output.loss.detach())

    return step


def held_budget(kind: str) -> Iterator[Row]:
    """Train ten steps with no more memory than the budget, in a process of their own."""
    for setting in ("expandable_segments:False", EXPANDABLE):
        for name in MODELS:
            command = [sys.executable, "-m", "benchmarks.gpu", "--ten-steps", name]
            environment = os.environ | {"PYTORCH_CUDA_ALLOC_CONF": setting}
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            said = (done.stdout or done.stderr).strip().splitlines()
            found = said[-1] if said else "nothing said"
            yield _row(
                "budget", f"{name}, {setting}", "outcome", found, "ten steps", "equal",
                found == "ten steps",
            )  # fmt: skip


def ten_steps(name: str) -> None:
    """Train within a budget that the driver enforces."""
    model, inputs = on("cuda", MODELS[name])
    plan = _tight(model, inputs)
    planned = plan.apply(model)
    torch.cuda.empty_cache()
    room = plan.budget_bytes - (plan.hardware.reserve_bytes if plan.hardware else 0)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(room / total)
    step = _stepper(planned, inputs)
    for _ in range(10):
        step()
    print("ten steps")


def speed(kind: str) -> Iterator[Row]:
    """Compare the time of a planned step with the estimate and with eager mode."""
    for name, build in MODELS.items():
        model, inputs = on(kind, build)
        eager = _seconds(kind, _stepper(model, inputs))
        plan = planner.fit(model, "90%", inputs=inputs, progress="off")
        step = _seconds(kind, _stepper(plan.apply(model), inputs))
        within = 0.5 < step / plan.seconds < 2 or kind == "cpu"
        yield _row("speed", f"{name}, estimate", "seconds", step, plan.seconds, "2x", within)
        yield _row("speed", f"{name}, eager", "seconds", step, eager, "1.25x", step < 1.25 * eager)


def _seconds(kind: str, step: Callable[[], float]) -> float:
    found = []
    for _ in range(8):
        begun = time.perf_counter()
        step()
        if kind == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begun)
    return median(found[3:])


def rivals(kind: str) -> Iterator[Row]:
    """Compare a plan with per-block checkpointing at the memory that checkpointing takes."""
    build = lambda: gpt2(0.0, 8)  # noqa: E731
    model, inputs = on(kind, build)
    model.activation_checkpointing_enable()  # type: ignore[operator]
    step = _stepper(model, inputs)
    step()
    peak, seconds = _peak(kind, model, inputs, step), _seconds(kind, step)
    model, inputs = on(kind, build)
    reserve = device_at(kind).reserve_bytes
    plan = planner.fit(model, int(1.01 * peak) + reserve, inputs=inputs, progress="off")
    step = _stepper(plan.apply(model), inputs)
    step()
    ours, took = _peak(kind, model, inputs, step), _seconds(kind, step)
    yield _row("rivals", "checkpointed blocks", "bytes", ours, peak, "+2%", ours < 1.02 * peak)
    yield _row("rivals", "checkpointed blocks", "seconds", took, seconds, "1.05x",
               took < 1.05 * seconds)  # fmt: skip


def workspaces(kind: str) -> Iterator[Row]:
    """Measure what cuBLAS keeps from the first product on."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    a = torch.ones(256, 256, device=kind)
    b = a @ a
    kept = torch.cuda.memory_allocated() - before - a.nbytes - b.nbytes
    yield _row("workspace", "cuBLAS", "bytes", kept, "at most 33 MiB", "", kept <= 33 * 2**20)


def guards(kind: str) -> Iterator[Row]:
    """Check that another call, and a plan made on meta for this device, are met as they should."""
    model, inputs = on(kind, llama)
    plan = planner.fit(model, "90%", inputs=inputs, progress="off")
    larger = {name: torch.cat([x, x]) for name, x in inputs.items()}
    try:
        plan.apply(model)(**larger)
        found = "ran"
    except planner.PlanMismatch:
        found = "refused"
    yield _row("guards", "a larger batch", "outcome", found, "refused", "equal", found == "refused")
    with torch.device("meta"):
        bare = hf.LlamaForCausalLM(model.config).to(torch.bfloat16).train()
    there = {name: torch.empty_like(x, device="meta") for name, x in inputs.items()}
    made = planner.fit(bare, "90%", inputs=there, device=device_at(kind), progress="off")
    made.apply(model)
    same = [op.target for op in made.graph.ops] == [op.target for op in plan.graph.ops]
    found = "the planned graph" if same else "another graph, planned anew"
    yield _row("guards", "made on meta", "outcome", found, "the planned graph", "equal", same)


CHECKS: tuple[tuple[Callable[[str], Iterator[Row]], bool], ...] = (
    (workspaces, True),
    (kernels, False),
    (guards, False),
    (bits, False),
    (memory, False),
    (held_budget, True),
    (speed, False),
    (rivals, False),
)
"""Each check, and whether it has a meaning on a card alone."""


def rows(kind: str) -> Iterator[Row]:
    """Run every check; one that fails is a row of its own."""
    for check, needs_card in CHECKS:
        name = check.__name__.replace("_", " ")
        if needs_card and kind != "cuda":
            yield Row(name, "", "", "", "", "", SKIPPED)
            continue
        try:
            yield from check(kind)
        except Exception as error:  # noqa: BLE001 - the others are still to be run
            told = f"{type(error).__name__}: {error}"
            yield Row(name, "", "outcome", told[:300], "an end", "", "WRONG")


def main() -> None:
    """Print and record the rows; end with 1 if one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ten-steps", metavar="MODEL", help="train it within its budget, alone")
    said = parser.parse_args()
    if said.ten_steps:
        return ten_steps(said.ten_steps)
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    found = list(rows(kind))
    show(f"Checks on {device_at(kind).name}", found)
    print(record("gpu", found))
    raise SystemExit(any(row.verdict == "WRONG" for row in found))


if __name__ == "__main__":
    main()
