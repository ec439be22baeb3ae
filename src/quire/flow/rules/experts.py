"""Products with a choice of matrix per row: mixtures of experts."""

from __future__ import annotations

from quire.capture.program import Op
from quire.flow.registry import rule
from quire.flow.relation import Axis, Flow, Join, span
from quire.flow.rules.common import aten, divide, make_axis, make_flow, nothing, product


@rule(*aten("_grouped_mm"), "transformers.grouped_mm_fallback.default")
def grouped_mm(op: Op) -> Flow:
    """`[rows, k] × [experts, k, n] -> [rows, n]`, the rows of an expert side by side.

    Which rows those are depends on the offsets, so rows do not split.
    """
    left, right = op.operands[:2]
    biased = op.get("bias") is not None
    if left.ndim != 2 or right.ndim != 3 or biased:
        return nothing(op, "only rows times one matrix per group is known to split")
    # torch's own kernel wants rows that start at multiples of 16 bytes.
    own = op.target in aten("_grouped_mm")
    unit = 16 // left.info.dtype.itemsize if own else 1
    columns, inner = divide(right.shape[2], unit), divide(right.shape[1], unit)
    axes: list[Axis] = []
    if columns is not None:
        read, write = span(2, scale=unit), span(1, scale=unit)
        axes.append(make_axis(op, columns, {1: read}, {0: write}))
    if inner is not None:
        read = span(1, scale=unit)
        axes.append(make_axis(op, inner, {0: read, 1: read}, {}, join=Join.SUM))
    flops = 2 * product((left.shape[0], right.shape[1], right.shape[2]))
    return make_flow(op, axes, why="the offsets say whose rows they are", flops=flops)
