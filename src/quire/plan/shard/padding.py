"""Whether rows past the end of the sequence add nothing to a fold over rows.

    rows past the end hold a fill  →  the op, of such rows alone, gives 0, −∞ or ∞

Asked of the op itself, run on one row of fills: that a sum of zeros is 0 holds of products and of
differences, not of a loss that is log 2 there, nor of a count. What is not idle is not split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch import Tensor

from quire.capture.program import Op, Operand, Size
from quire.plan.shard.plan import FILLS, Placed, padding
from quire.plan.shard.units import local_shape


def idle(
    op: Op,
    kind: str,
    reading: Mapping[int, Placed],
    changed: Mapping[str, Any],
    number: Callable[[Size], int],
) -> bool:
    """Whether a fold of `kind` does not count a row whose operands in `reading` hold `padding`.
    `changed` are the op's arguments for one row. Other operands hold what is no special case."""

    def given(value: Any) -> Any:
        if isinstance(value, Operand):
            at = reading.get(value.index)
            shape = [number(s) for s in local_shape(value.shape, at, 1)]
            fill = 0.625 if at is None else padding(kind, op, value.index)
            return _full(shape, fill, value.info.dtype)
        if isinstance(value, list | tuple):
            return [given(v) for v in value]
        return number(value) if isinstance(value, sympy.Expr) else value

    arguments = {name: given(v) for name, v in {**op.arguments, **changed}.items()}
    try:
        made = op.target(**arguments)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return False
    results = [made] if isinstance(made, Tensor) else list(made)
    return all(bool((x == FILLS.get(kind, 0.0)).all()) for x in results)


def _full(shape: list[int], fill: float, dtype: torch.dtype) -> Tensor:
    """Of one element in memory; half types, which not all kernels take, as float."""
    dtype = torch.float32 if dtype.is_floating_point else dtype
    one = torch.tensor(fill, device="cpu").to(dtype)
    return one.expand(shape)
