"""How solving grows with the size of the graph: ``python -m benchmarks.scale [--graphs FOLDER]``.

GPT-2 of 12 to 96 layers, Llama 3 70B, a stack of 50,000 ops, and models that are no stack, each at
budgets of 90% to 30% of its activations: resident bytes plus so much of what store-all holds above
them, which is what ``peak_fraction`` counts in, too. Growth is the exponent ``p`` of a fit of
seconds to ops ** p over GPT-2. Captures take longer than solving, so ``--graphs`` keeps them in a
folder from run to run.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import transformers as hf

from benchmarks.instances import Row, solved
from benchmarks.models import ZOO, Example
from benchmarks.record import record, show
from benchmarks.speed import llama_70b
from planner.graphs import (
    Graph,
    Kind,
    Op,
    Phase,
    Value,
    load_graph,
    plain_schedule,
    save_graph,
    simulate,
)
from planner.solvers import Limits

FRACTIONS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
DEPTHS = (12, 24, 48, 96)
OTHERS = ("resnet50", "unet", "t5", "whisper")


@dataclass(frozen=True)
class Growth:
    """Seconds grow as ops to the power of ``exponent``, from the least depth to the greatest."""

    instances: str
    what: str
    exponent: float


def gpt2(layers: int) -> Example:
    """Build GPT-2 of some depth on meta: narrow, with activations that outweigh parameters."""
    config = hf.GPT2Config(
        n_layer=layers,
        n_embd=256,
        n_head=8,
        n_positions=512,
        vocab_size=1024,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.device("meta"):
        model = hf.GPT2LMHeadModel(config).train()
        ids = torch.zeros(8, 512, dtype=torch.int64)
    return model, {"input_ids": ids, "labels": ids}


def llama_batch() -> Example:
    """Build Llama 3 70B on meta with a batch at which activations dominate."""
    model, _ = llama_70b()
    with torch.device("meta"):
        ids = torch.zeros(4, 4096, dtype=torch.int64)
    return model, {"input_ids": ids, "labels": ids}


def stack(layers: int, width: int = 1 << 20) -> Graph:
    """Build the step of a residual stack by hand: 18 ops a layer, half of them backward."""
    x, kinds = "tokens", {"tokens": (width, Kind.INPUT)}
    ops: list[tuple[str, list[str], int, float]] = []

    def op(name: str, reads: list[str], size: int, seconds: float) -> str:
        ops.append((name, reads, size * width, seconds))
        return name

    for i in range(layers):
        h = f"h.{i}"
        norm = op(f"{h}.norm", [x], 1, 0.5)
        qkv = op(f"{h}.qkv", [norm], 3, 6.0)
        attention = op(f"{h}.attention", [qkv], 1, 4.0)
        mid = op(f"{h}.add", [x, op(f"{h}.out", [attention], 1, 2.0)], 1, 0.5)
        act = op(f"{h}.act", [op(f"{h}.up", [mid], 4, 8.0)], 4, 1.0)
        x = op(f"{h}.add2", [mid, op(f"{h}.down", [act], 1, 8.0)], 1, 0.5)
    return _with_backward(kinds, ops, f"stack {layers}")


def _with_backward(
    kinds: dict[str, tuple[int, Kind]], ops: Sequence[tuple[str, list[str], int, float]], name: str
) -> Graph:
    """Add for each op one backward op: it reads the op's inputs and the gradient of its output."""
    values = [Value(n, size, kind) for n, (size, kind) in kinds.items()]
    index = {n: i for i, n in enumerate(kinds)}
    made: list[Op] = []
    for op, reads, size, seconds in ops:
        inputs = tuple(sorted(index[r] for r in reads))
        index[op] = len(values)
        values.append(Value(op, size))
        made.append(Op(op, "f", inputs, (index[op],), seconds, module=op.rpartition(".")[0]))
    gradient: dict[int, list[int]] = defaultdict(list)
    for forward in reversed(made.copy()):
        arriving = gradient.pop(forward.outputs[0], [])
        outputs = []
        for v in forward.inputs:
            gradient[v].append(len(values))
            outputs.append(len(values))
            values.append(Value(f"d {forward.name}:{v}", values[v].size_bytes, Kind.GRADIENT))
        reads_back = tuple(sorted({*forward.inputs, *arriving}))
        back = replace(forward, name=f"d {forward.name}", inputs=reads_back, outputs=tuple(outputs))
        made.append(replace(back, phase=Phase.BACKWARD, seconds=2 * forward.seconds))
    return Graph(tuple(made), tuple(values), frozenset(gradient[0]), name)


def captured(example: Example, optimizer: str | None) -> Graph:
    """Capture the step of a model for the costs of this machine's kind."""
    from planner.graphs.capture.training_step import capture

    model, inputs = example
    return capture(model, inputs, optimizer=optimizer, device="cpu").graph


def instances() -> dict[str, Callable[[], Graph]]:
    """Return what to build, by name, smallest first of each family."""
    found: dict[str, Callable[[], Graph]] = {}
    for n in DEPTHS:
        found[f"gpt2-{n}"] = lambda n=n: captured(gpt2(n), "adamw")  # type: ignore[misc]
    found["llama3-70b"] = lambda: captured(llama_batch(), None)
    found["stack-50k"] = lambda: stack(2778)
    for name in OTHERS:
        found[name] = lambda name=name: captured(ZOO[name](), None)  # type: ignore[misc]
    return found


def built(name: str, build: Callable[[], Graph], folder: Path | None) -> tuple[Graph, float]:
    """Return the graph and the seconds it took; read it from the folder if it is there."""
    start = time.perf_counter()
    path = None if folder is None else folder / f"{name}.json"
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    if path is not None and path.exists():
        graph = load_graph(path)
    else:
        graph = build()
        if path is not None:
            save_graph(graph, path)
    return graph, time.perf_counter() - start


def measure(name: str, graph: Graph, build_seconds: float, seconds: float) -> Iterator[Row]:
    """Solve one graph at every budget."""
    resident, limits = graph.resident_bytes, Limits(seconds=seconds)
    activations = simulate(graph, plain_schedule(graph)).peak_bytes - resident
    for fraction in FRACTIONS:
        row, _ = solved(
            name, graph, fraction, base_bytes=resident, span_bytes=activations, limits=limits,
            build_seconds=build_seconds,
        )  # fmt: skip
        yield row


def growth(rows: Sequence[Row]) -> Iterator[Growth]:
    """Fit the exponent of seconds over ops to GPT-2, for the mean over budgets and the worst."""
    stacks = [row for row in rows if row.instance.startswith("gpt2-")]
    for what, of in (("mean", np.mean), ("worst", np.max)):
        ops = sorted({row.ops for row in stacks})
        if len(ops) > 1:
            seconds = [of([r.solve_seconds for r in stacks if r.ops == n]) for n in ops]
            slope = float(np.polyfit(np.log(ops), np.log(seconds), 1)[0])
            yield Growth("gpt2", f"{what} solve seconds", round(slope, 2))


def main() -> None:
    """Solve everything; record one CSV of cases and one of growth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="instances, by default all")
    parser.add_argument("--graphs", type=Path, help="a folder that keeps captured graphs")
    parser.add_argument("--seconds", type=float, default=60.0, help="the limit of one solve")
    options = parser.parse_args()
    rows: list[Row] = []
    for name, build in instances().items():
        if not options.names or name in options.names:
            rows += measure(name, *built(name, build, options.graphs), options.seconds)
            show(name, [row for row in rows if row.instance == name])
    print(record("scale", rows))
    if slopes := list(growth(rows)):
        show("growth", slopes)
        print(record("scale-growth", slopes))


if __name__ == "__main__":
    main()
