"""What Inductor leaves out where it is asked for its buffers: the code of loops.

Which results are never made, or lie over what is read last, it decides while it writes a loop, by
what the loop reads and writes. That is handed to it, and nothing of what is computed. Knows the C++
back end; others write what they write.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sympy
from torch import fx
from torch._inductor.codegen.cpp import CppKernel, CppKernelProxy, CppVecKernel
from torch._inductor.codegen.cpp_utils import LocalBufferContext
from torch._inductor.cpu_vec_isa import invalid_vec_isa
from torch._inductor.loop_body import LoopBody
from torch._inductor.scheduler import SchedulerNode
from torch._inductor.virtualized import V

from planner.graphs.torch_api.patches import Patches

_SOMEWHERE = sympy.Integer(0)


def without_code(patches: Patches) -> None:
    """Let loops be written as what they read and write.

    Args:
        patches: that undo it; other threads compile meanwhile as ever.
    """
    write = SchedulerNode.codegen
    write_all: Any = CppKernelProxy.codegen_functions

    def codegen(node: SchedulerNode, index_vars: Any) -> None:
        if not (patches.mine() and isinstance(V.kernel, CppKernel)):
            write(node, index_vars)
        elif not isinstance(V.kernel, CppVecKernel):  # the scalar loop comes first, and decides
            _read_and_write(node)

    def codegen_functions(self: CppKernelProxy, *loops: Any) -> None:
        # loops with one around them are made one kernel only if they are cut into vectors alike
        if patches.mine() and not isinstance(V.local_buffer_context, LocalBufferContext):
            self.picked_vec_isa = invalid_vec_isa
        write_all(self, *loops)

    patches.attribute(SchedulerNode, "codegen", codegen)
    patches.attribute(CppKernelProxy, "codegen_functions", codegen_functions)


def _read_and_write(node: SchedulerNode) -> None:
    kernel: Any = V.kernel
    ops: Any = V.get_ops_handler()
    before, kernel.current_node = kernel.current_node, node
    value = kernel.cse.newvar()
    for call in _calls(node._body, node._body.root_block.graph):
        match call.target:
            case "load" | "load_seed":
                ops.load(call.args[1], _SOMEWHERE)
            case "store":
                _, name, _, _, *mode = call.args
                ops.store(name, _SOMEWHERE, value, *mode)
            case "store_reduction":
                ops.store_reduction(call.args[1], _SOMEWHERE, value)
    kernel.current_node = before


def _calls(body: LoopBody, graph: fx.Graph) -> Iterator[fx.Node]:
    for node in graph.nodes:
        if node.op == "call_method":
            yield node
        elif node.op == "call_module" and node.target in body.subblocks:
            yield from _calls(body, body.subblocks[node.target].graph)
