"""What people do without a plan where values may move: when copies begin, and what is held then."""

from __future__ import annotations

from planner.graphs import Action, Graph, Op, Phase, Subject, Value, plain_schedule, simulate
from planner.graphs.hardware.host_tier import HostTier
from planner.solvers.baselines.blocks import find_blocks
from planner.solvers.baselines.checkpoint import order_of
from planner.solvers.baselines.moved_by_hand import admitted, checkpoints_offloaded
from planner.solvers.baselines.pareto_marks import rivals


def layers(count: int) -> Graph:
    """Return blocks of two ops, the second making the next one's input, then their gradients.

    Value ``2 k`` is what block k has inside (4 bytes), ``2 k + 1`` its output (1 byte).
    """
    ops, values = list[Op](), list[Value]()
    for k in range(count):
        reads = (2 * k - 1,) if k else ()
        module = f"h.{k}"
        ops.append(Op(f"in{k}", "f", reads, (2 * k,), 1.0, module=module))
        ops.append(Op(f"out{k}", "f", (2 * k,), (2 * k + 1,), 1.0, module=module))
        values += [Value(f"inner{k}", 4), Value(f"hidden{k}", 1)]
    for k in reversed(range(count)):
        own = len(values)
        reads = {2 * k, own - 1} | ({2 * k - 1} if k else set())
        ops.append(Op(f"back{k}", "b", tuple(sorted(reads)), (own,), 2.0, phase=Phase.BACKWARD))
        values.append(Value(f"grad{k}", 1))
    return Graph(tuple(ops), tuple(values), frozenset({len(values) - 1}))


def test_inputs_of_blocks_leave_in_forward_and_return_before_their_backward() -> None:
    graph = layers(4)
    order = order_of(graph, find_blocks(graph))
    waiting, overlapped = checkpoints_offloaded(graph)
    for schedule in (waiting, overlapped):
        assert list(schedule.order) == order
        names = [
            graph.ops[s.index].name if s.action.subject is Subject.OP else s.action.name
            for s in schedule.steps
        ]
        forward = names[: names.index("out3") + 1]
        assert "offload" in forward
        assert "fetch" not in forward
    for schedule, moved in ((waiting, [1, 3, 5]), (overlapped, [1])):
        # the first block reads nothing; where a block more may run first, the last ones' stay
        assert [s.index for s in schedule.steps if s.action is Action.OFFLOAD] == moved
        assert [s.index for s in schedule.steps if s.action is Action.FETCH] == moved[::-1]


def test_waiting_holds_least_and_overlapping_is_quickest() -> None:
    graph = layers(5)
    slow = HostTier(0.5, 0.5)  # a copy takes as long as a block
    (least, longer, _), (more, shorter, _) = admitted(graph, "checkpoint_offload", slow)
    kept = simulate(graph, plain_schedule(graph))
    assert least <= more < kept.peak_bytes
    assert shorter < longer
    [(everything, longest, _)] = admitted(graph, "offload_all", slow)
    assert everything < kept.peak_bytes
    assert longest > shorter


def test_a_host_without_room_admits_less() -> None:
    made = [
        len(admitted(layers(4), "checkpoint_offload", HostTier(1.0, 1.0, 64 * k)))
        for k in range(1, 4)
    ]
    assert made == [1, 1, 2]  # one copy at once, and three


def test_marks_have_them_where_values_may_move() -> None:
    graph = layers(5)
    alone = rivals(graph, [])
    both = rivals(graph, [], host=HostTier(1.0, 1.0))
    assert both.keys() - alone.keys() == {"offload_all", "checkpoint_offload"}
    for marks in both.values():
        assert [m.seconds for m in marks] == sorted((m.seconds for m in marks), reverse=True)
