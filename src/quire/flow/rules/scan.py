"""Prefix folds and differences."""

from __future__ import annotations

from quire.capture.program import Op, Operand
from quire.flow.registry import rule
from quire.flow.relation import Flow, Span, span, window
from quire.flow.rules.common import aten, equal, make_axis, make_flow, mapped, numel, others, wrap


@rule(*aten("cumsum cumprod cummax cummin logcumsumexp"))
def scan(op: Op) -> Flow:
    source: Operand = op["self"]
    axes = mapped(op, others(source.ndim, wrap(op["dim"], source.ndim)), source)
    return make_flow(op, axes, why="each element folds all before it", flops=numel(op))


@rule(*aten("diff"))
def diff(op: Op) -> Flow:
    source: Operand = op["self"]
    dim = wrap(op["dim"], source.ndim)
    axes = []
    for d in others(source.ndim, dim):
        if all(equal(o.shape[d], source.shape[d]) for o in op.operands):
            reads: dict[int, Span] = {o.index: span(d) for o in op.operands}
            axes.append(make_axis(op, source.shape[d], reads, {0: span(d)}))
    if len(op.operands) == 1:
        # A difference of order n reads n + 1 neighbours.
        reads = {0: window(dim, 1, 0, op["n"] + 1)}
        axes.append(make_axis(op, op.out.shape[dim], reads, {0: span(dim)}))
    return make_flow(op, axes, why="its first elements come from another operand")
