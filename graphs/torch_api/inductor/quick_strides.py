"""How far apart in memory a loop's next element lies, without simplifying what is a sum as it is.

Inductor asks it of every index of every loop when it cuts loops into vectors. It substitutes and
simplifies, which takes milliseconds; of most indices the answer is the factor of a variable.
"""

from __future__ import annotations

from typing import Any

import sympy
from torch._inductor.codegen import cpp

from planner.graphs.torch_api.patches import Patches

_ASKED = "stride_at_vec_range"


def quick_strides(patches: Patches) -> None:
    """Let Inductor find such strides quickly: the same ones.

    Args:
        patches: that undo it; other threads compile meanwhile as ever.
    """
    usual: Any = vars(cpp)[_ASKED]

    def stride(index: Any, variable: Any, length: int | None = None) -> Any:
        factor = factor_of(variable, index) if patches.mine() else None
        return usual(index, variable, length) if factor is None else factor

    patches.attribute(cpp, _ASKED, stride)


def factor_of(variable: sympy.Symbol, index: sympy.Expr) -> sympy.Integer | None:
    """Return the number by which a variable is multiplied in a sum, if it is nowhere else in it.

    >>> x, y = sympy.symbols("x y", integer=True)
    >>> factor_of(x, 8 * x + y % 3), factor_of(x, y), factor_of(x, x % 4), factor_of(x, x * y)
    (8, 0, None, None)
    """
    factor = sympy.S.Zero
    for term in sympy.Add.make_args(index):
        number, rest = term.as_coeff_Mul()
        if rest == variable and number.is_Integer:
            factor += number
        elif variable in rest.free_symbols:
            return None
    return factor
