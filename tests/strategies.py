"""Graphs to test with: random ones, by seed or by hypothesis, and builders of known shapes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from hypothesis import strategies as st

from planner.graphs import Graph, Kind, Op, Phase, Value

Pick = Callable[[int, int], int]
"""Choose an integer between two, both included."""


def _random_op(pick: Pick, index: int, known: int, *, turn: int, silent: bool) -> Op:
    inputs = {known - 1 - pick(0, min(known - 1, 5)) for _ in range(pick(0, 3))} if known else set()
    outputs = range(known, known + (2 if pick(0, 4) == 0 else 1))
    if silent and pick(0, 9) == 9:
        outputs = range(0)
    return Op(
        f"op{index}",
        "test.random",
        tuple(sorted(inputs)),
        tuple(outputs),
        seconds=float(pick(0, 5)),
        workspace_bytes=pick(1, 4) if pick(0, 3) == 0 else 0,
        phase=Phase.FORWARD if index < turn else Phase.BACKWARD,
        recomputable=pick(0, 7) > 0,
    )


def build_graph(pick: Pick, *, max_ops: int = 8, silent: bool = False) -> Graph:
    """Build a graph from choices: multi-output ops, workspace, residents, outputs, no rerun.

    With ``silent`` some ops make nothing.
    """
    count = pick(1, max_ops)
    turn = pick(0, count)
    values = [Value(f"in{v}", pick(0, 3), Kind.INPUT) for v in range(pick(0, 2))]
    ops = []
    for index in range(count):
        ops.append(_random_op(pick, index, len(values), turn=turn, silent=silent))
        values += [Value(f"v{v}", pick(0, 9)) for v in ops[-1].outputs]
    outputs = frozenset(v for v in range(len(values)) if pick(0, 5) == 0)
    return Graph(tuple(ops), tuple(values), outputs, "random")


def random_graph(seed: int, *, max_ops: int = 8) -> Graph:
    """Return the random graph of a seed."""
    graph = build_graph(random.Random(seed).randint, max_ops=max_ops)
    return replace(graph, name=f"seed {seed}")


@st.composite
def graphs(draw: st.DrawFn, max_ops: int = 8, *, silent: bool = False) -> Graph:
    """Draw a random graph; hypothesis shrinks it to few ops and small sizes."""
    pick = lambda low, high: draw(st.integers(low, high))  # noqa: E731 (a name for one line)
    return build_graph(pick, max_ops=max_ops, silent=silent)


def chain(length: int, *, size: int = 1, seconds: float = 1.0) -> Graph:
    """Return the chain of Griewank and Walther: step ``i`` back needs the state before step ``i``.

    The first state is resident. States and gradients weigh ``size``; every op takes ``seconds``.
    """
    states = [Value(f"x{i}", size, Kind.ACTIVATION if i else Kind.INPUT) for i in range(length + 1)]
    gradients = [Value(f"g{i}", size, Kind.GRADIENT) for i in reversed(range(length))]
    forward = [Op(f"f{i}", "f", (i - 1,), (i,), seconds) for i in range(1, length + 1)]
    backward = [
        Op(f"b{i}", "b", (i - 1, 2 * length - i), (2 * length - i + 1,), seconds)
        for i in reversed(range(1, length + 1))
    ]
    backward = [replace(op, phase=Phase.BACKWARD) for op in backward]
    return Graph((*forward, *backward), (*states, *gradients), frozenset({2 * length}), "chain")


class _Tape:
    """Collect forward ops, then mirror them: each backward op reads what its forward op saved."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.values: list[Value] = []

    def value(self, name: str, size: int, kind: Kind = Kind.ACTIVATION) -> int:
        self.values.append(Value(name, size, kind))
        return len(self.values) - 1

    def op(self, name: str, inputs: tuple[int, ...], *sizes: int, **fields: object) -> int:
        outputs = tuple(self.value(f"{name}:{k}", size) for k, size in enumerate(sizes))
        op = Op(name, "f", inputs, outputs, module=name.rpartition(".")[0])
        self.ops.append(replace(op, **fields))  # type: ignore[arg-type]
        return outputs[0]

    def finish(self, name: str, loss: int) -> Graph:
        gradient: dict[int, int] = {}
        kept = {loss}
        for op in reversed(self.ops.copy()):
            arriving = [gradient[v] for v in op.outputs if v in gradient]
            saved = {*op.inputs, *op.outputs[1:]}
            made = []
            for v in op.inputs:
                if self.values[v].kind is Kind.INPUT:
                    continue
                old = gradient.get(v)  # a second reader adds its gradient to the first's
                gradient[v] = self.value(f"d {op.name}:{v}", self.values[v].size_bytes)
                made.append(gradient[v])
                if old is not None:
                    arriving.append(old)
                if self.values[v].kind is Kind.PARAMETER:
                    kept.add(gradient[v])
            if made:
                reads = tuple(sorted({*saved, *arriving}))
                back = replace(op, name=f"d {op.name}", inputs=reads, outputs=tuple(made))
                self.ops.append(replace(back, phase=Phase.BACKWARD, seconds=2 * op.seconds))
        weights = [v for v, x in enumerate(self.values) if x.kind is Kind.PARAMETER]
        for w in weights:
            reads = (w, gradient[w])
            update = Op(f"step {w}", "s", reads, (self.value(f"new {w}", 1),), 1.0)
            self.ops.append(replace(update, phase=Phase.OPTIMIZER, recomputable=False))
        return Graph(tuple(self.ops), tuple(self.values), frozenset(kept), name)


def transformer(layers: int, *, width: int = 8, square: int = 32) -> Graph:
    """Return the step of a small transformer: a shared mask, dropout that cannot be rerun."""
    tape = _Tape()
    x = tape.value("tokens", width, Kind.INPUT)
    mask = tape.op("mask", (x,), width, seconds=0.5)
    x = tape.op("wte.embed", (x,), width, seconds=0.5)
    for i in range(layers):
        w = [tape.value(f"h.{i}.w{k}", width // 2, Kind.PARAMETER) for k in range(2)]
        a = tape.op(f"h.{i}.ln.norm", (x,), width, 1, seconds=0.5)
        q = tape.op(f"h.{i}.attn.qkv", (a, w[0]), 3 * width, seconds=6.0)
        s = tape.op(f"h.{i}.attn.scores", (q, mask), square, seconds=4.0, workspace_bytes=square)
        p = tape.op(f"h.{i}.attn.softmax", (s,), square, seconds=1.0)
        p = tape.op(f"h.{i}.attn.drop", (p,), square, square // 4, seconds=1.0, recomputable=False)
        o = tape.op(f"h.{i}.attn.out", (p, q), width, seconds=4.0)
        x = tape.op(f"h.{i}.add", (x, o), width, seconds=0.5)
        m = tape.op(f"h.{i}.mlp.up", (x, w[1]), 4 * width, seconds=8.0)
        g = tape.op(f"h.{i}.mlp.gelu", (m,), 4 * width, seconds=1.0)
        d = tape.op(f"h.{i}.mlp.down", (g, w[1]), width, seconds=8.0)
        x = tape.op(f"h.{i}.add2", (x, d), width, seconds=0.5)
    loss = tape.op("head.loss", (x,), 1, seconds=1.0)
    return tape.finish(f"transformer {layers}", loss)


def unet(depth: int, *, size: int = 4) -> Graph:
    """Return the step of a U-Net: long skips cross the whole of its middle."""
    tape = _Tape()
    x = tape.value("image", size * 2**depth, Kind.INPUT)
    skips = []
    for i in reversed(range(depth)):
        x = tape.op(f"down.{i}.conv", (x,), size * 2**i, seconds=2.0**i)
        skips.append(x)
        x = tape.op(f"down.{i}.pool", (x,), size * 2**i // 2, seconds=1.0)
    for i in range(depth):
        x = tape.op(f"up.{i}.conv", (x, skips.pop()), size * 2**i, seconds=2.0**i)
        x = tape.op(f"up.{i}.act", (x,), size * 2 ** (i + 1), seconds=1.0)
    loss = tape.op("loss", (x,), 1, seconds=1.0)
    return tape.finish(f"unet {depth}", loss)
