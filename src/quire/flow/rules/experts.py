"""Products with a choice of matrix per row: mixtures of experts."""

from __future__ import annotations

from quire.capture.program import Op
from quire.flow.registry import rule
from quire.flow.relation import Axis, Flow, Join, span
from quire.flow.rules.common import aten, make_axis, make_flow, nothing, product


@rule(*aten("_grouped_mm"), "transformers.grouped_mm_fallback.default")
def grouped_mm(op: Op) -> Flow:
    """`[rows, k] × [experts, k, n] -> [rows, n]`, the rows of an expert side by side.

    Which rows those are depends on the offsets, so rows do not split.
    """
    left, right = op.operands[:2]
    biased = op.get("bias") is not None
    if left.ndim != 2 or right.ndim != 3 or biased:
        return nothing(op, "only rows times one matrix per group is known to split")
    columns: Axis = make_axis(op, right.shape[2], {1: span(2)}, {0: span(1)})
    inner = make_axis(op, right.shape[1], {0: span(1), 1: span(1)}, {}, join=Join.SUM)
    flops = 2 * product((left.shape[0], right.shape[1], right.shape[2]))
    return make_flow(op, (columns, inner), why="the offsets say whose rows they are", flops=flops)
