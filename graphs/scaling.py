"""Two captures of a model at different batch sizes, and what lies on the line through them.

Sizes of activations and times of ops grow with the batch along a line, nearly: rounding, a floor of
time per kernel and workspace that depends on the shape bend it. So what is found on the line is a
prediction, to be checked on a capture. Knows nothing of torch.
"""

from __future__ import annotations

from dataclasses import replace

from planner.graphs.graph import Graph, Op, Value


def same_shape(one: Graph, other: Graph) -> bool:
    """Tell whether two graphs differ in sizes and costs at most."""
    return (
        len(one.values) == len(other.values)
        and one.outputs == other.outputs
        and list(map(_wiring, one.ops)) == list(map(_wiring, other.ops))
    )


def _wiring(op: Op) -> tuple[object, ...]:
    return op.target, op.inputs, op.outputs, op.phase, op.recomputable


def on_the_line(one: Graph, other: Graph, share: float) -> Graph:
    """Return the graph a share of the way from one to another of the same shape; 0 is the first.

    Shares below 0 and above 1 lie beyond the ends. Nothing becomes negative.

    Args:
        one, other: the graphs at the ends.
        share: how far along, 0 for the first and 1 for the other.

    >>> x = [Graph((Op("f", "f", (), (0,), float(n)),), (Value("v", 10 * n),)) for n in (1, 2)]
    >>> far = on_the_line(*x, share=4.0)
    >>> far.values[0].size_bytes, far.ops[0].seconds
    (50, 5.0)
    """
    assert same_shape(one, other), "graphs of different shapes have no line through them"

    def whole(a: int, b: int) -> int:
        return max(0, round(a + (b - a) * share))

    def op(a: Op, b: Op) -> Op:
        return replace(
            a,
            seconds=max(0.0, a.seconds + (b.seconds - a.seconds) * share),
            flops=whole(a.flops, b.flops),
            moved_bytes=whole(a.moved_bytes, b.moved_bytes),
            workspace_bytes=whole(a.workspace_bytes, b.workspace_bytes),
        )

    def value(a: Value, b: Value) -> Value:
        return replace(a, size_bytes=whole(a.size_bytes, b.size_bytes))

    return replace(
        one,
        ops=tuple(map(op, one.ops, other.ops)),
        values=tuple(map(value, one.values, other.values)),
    )
