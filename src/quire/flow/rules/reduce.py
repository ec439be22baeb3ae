"""Ops that fold dims away: sum, mean, max, variance, norms, cross entropy."""

from __future__ import annotations

import math
from collections.abc import Iterable

from quire.capture.program import Op, Operand
from quire.flow.registry import rule
from quire.flow.relation import Axis, Flow, Join, Span, span
from quire.flow.rules.common import aten, broadcast, make_axis, make_flow, nothing, wraps

JOINS = {
    "sum": Join.SUM,
    "nansum": Join.SUM,
    "count_nonzero": Join.SUM,
    "mean": Join.MEAN,
    "amax": Join.MAX,
    "amin": Join.MIN,
    "max": Join.MAX,
    "min": Join.MIN,
    "prod": Join.PROD,
    "any": Join.ANY,
    "all": Join.ALL,
}


def folded(op: Op, dims: Iterable[int], keepdim: bool, join: Join | None) -> list[Axis]:
    """The axes of a reduction of the first operand over `dims`; without `join`, none of them."""
    source: Operand = op.operands[0]
    gone = set(dims)
    axes: list[Axis] = []
    at = 0
    for dim, size in enumerate(source.shape):
        if dim in gone:
            if join is not None:
                axes.append(make_axis(op, size, {0: span(dim)}, {}, join=join))
            at += keepdim
        else:
            writes = {k: span(at) for k in range(len(op.outputs))}
            axes.append(make_axis(op, size, {0: span(dim)}, writes))
            at += 1
    return axes


def reduction(op: Op, dims: Iterable[int], keepdim: bool, join: Join | None) -> Flow:
    axes = folded(op, dims, keepdim, join)
    return make_flow(op, axes, why="reduced to one", flops=op.operands[0].info.numel)


def reduced_dims(op: Op) -> tuple[int, ...]:
    """The dims in argument `dim`; none given, or an empty list, means all."""
    dims, ndim = op.get("dim"), op.operands[0].ndim
    return wraps(None if dims is None or dims == [] else dims, ndim)


@rule(
    *aten("""
    sum sum.dim_IntList nansum mean mean.dim amax amin prod prod.dim_int any any.dim any.dims
    all all.dim all.dims max min count_nonzero count_nonzero.dim_IntList
""")
)
def monoid(op: Op) -> Flow:
    join = JOINS[op.target._schema.name.removeprefix("aten::")]
    return reduction(op, reduced_dims(op), bool(op.get("keepdim", False)), join)


@rule(
    *aten("""
    max.dim min.dim argmax argmin median.dim nanmedian.dim mode kthvalue logsumexp var var.dim
    var.correction std std.dim std.correction var_mean.correction var_mean.dim std_mean.correction
    norm.ScalarOpt_dim norm.Scalar norm.ScalarOpt_dim_dtype aminmax quantile
""")
)
def one_of_all(op: Op) -> Flow:
    """Reductions whose parts do not join by a monoid on the output alone."""
    name = op.target._schema.name.removeprefix("aten::")
    if name == "quantile" and op.operands[1].ndim:
        return nothing(op, "several quantiles")
    return reduction(op, reduced_dims(op), bool(op.get("keepdim", False)), None)


@rule(*aten("linalg_vector_norm"))
def vector_norm(op: Op) -> Flow:
    """Joins by a monoid for the orders whose sum needs no root."""
    monoids = {1: Join.SUM, math.inf: Join.MAX, -math.inf: Join.MIN, 0: Join.SUM}
    return reduction(op, reduced_dims(op), op["keepdim"], monoids.get(op["ord"]))


@rule(*aten("cross_entropy_loss nll_loss nll_loss_nd nll_loss_forward nll_loss2d_forward"))
def cross_entropy(op: Op) -> Flow:
    """Losses of single rows, and their sum, split; a mean weighs rows by the data."""
    name = op.target._schema.name.removeprefix("aten::")
    scores, target = op["self"], op["target"]
    summed = op["reduction"] == 2 and not name.endswith("forward")
    if not (op["reduction"] == 0 or summed) or target.ndim != scores.ndim - 1:
        return nothing(op, "the rows that count depend on the targets")
    axes = []
    join = Join.SUM if summed else Join.CONCAT
    for dim, size in enumerate(target.shape):
        place = dim + (dim >= 1 or scores.ndim == 1)
        reads: dict[int, Span] = {scores.index: span(place), target.index: span(dim)}
        writes = {} if summed else {0: span(dim)}
        axes.append(make_axis(op, size, reads, writes, join=join))
    return make_flow(op, axes, flops=8 * scores.info.numel)


@rule(*aten("mse_loss l1_loss smooth_l1_loss huber_loss"))
def pair_loss(op: Op) -> Flow:
    """The mean or sum of a pointwise difference of two tensors of one shape."""
    source, target = op.operands
    if source.shape != target.shape:
        return nothing(op, "its operands are broadcast")
    join = {0: Join.CONCAT, 1: Join.MEAN, 2: Join.SUM}[op["reduction"]]
    axes = [
        make_axis(
            op,
            size,
            {0: span(dim), 1: span(dim)},
            {0: span(dim)} if join is Join.CONCAT else {},
            join=join,
        )
        for dim, size in enumerate(source.shape)
    ]
    return make_flow(op, axes, flops=3 * source.info.numel)


@rule(*aten("binary_cross_entropy binary_cross_entropy_with_logits soft_margin_loss"))
def element_loss(op: Op) -> Flow:
    """Losses of single elements, or their mean or sum; weights are broadcast to the elements."""
    source: Operand = op["self"]
    if source.shape != op["target"].shape:
        return nothing(op, "its operands are broadcast")
    join = {0: Join.CONCAT, 1: Join.MEAN, 2: Join.SUM}[op["reduction"]]
    axes: list[Axis] = []
    for dim, size in enumerate(source.shape):
        found = {o.index: broadcast(o, source.shape, dim) for o in op.operands}
        if not any(isinstance(at, str) for at in found.values()):
            reads = {k: at for k, at in found.items() if isinstance(at, Span)}
            writes = {0: span(dim)} if join is Join.CONCAT else {}
            axes.append(make_axis(op, size, reads, writes, join=join))
    return make_flow(op, axes, flops=8 * source.info.numel)


@rule(*aten("histc bincount"))
def histogram(op: Op) -> Flow:
    """Counts add up, once the bins no longer depend on the data."""
    if "min" not in op.arguments or op["min"] == op["max"]:
        return nothing(op, "its bins depend on the data")
    axes = [
        make_axis(op, size, {0: span(dim)}, {}, join=Join.SUM)
        for dim, size in enumerate(op.operands[0].shape)
    ]
    return make_flow(op, axes, why="a bin counts elements from anywhere")
