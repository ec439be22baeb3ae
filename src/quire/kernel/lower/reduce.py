"""Reductions, norms, softmax, prefix sums and top-k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from quire.capture.program import Op, Size
from quire.kernel import index as ix
from quire.kernel.ir import Expr, Fold, Num, Soft, kind
from quire.kernel.lower.table import Lowering, NotLoweredError, Tensor, as_float, as_kind, c, rule

Index = tuple[Expr, ...]


def _dims(value: Any, ndim: int) -> list[int]:
    if value is None or value == []:
        return list(range(ndim))
    dims = [value] if isinstance(value, int) else list(value)
    return sorted({d % ndim for d in dims}) if ndim else []


def folded(
    low: Lowering, source: Tensor, dims: Sequence[int], monoid: str, *, keep: bool, real: bool
) -> Tensor:
    """`source` folded over `dims` (kept as size 1, or dropped)."""

    def at(i: Index) -> Expr:
        over = {d: low.var(source.shape[d], "k") for d in dims}
        rest = iter(i)
        place: list[Expr] = []
        for d in range(source.ndim):
            if d in over:
                if keep:
                    next(rest)
                place.append(over[d])
            else:
                place.append(next(rest))
        body = source.at(tuple(place))
        if kind(body) == "bool" and monoid in ("sum", "prod"):
            body = c("toint", body)
        if not over:
            return as_float(body) if real else body
        return Fold(monoid, tuple(over.values()), as_float(body) if real else body)

    shape = [1 if d in dims else s for d, s in enumerate(source.shape) if keep or d not in dims]
    return Tensor(tuple(shape), source.dtype, at)


def _count(source: Tensor, dims: Sequence[int]) -> Expr:
    count: Size = 1
    for d in dims:
        count = count * source.shape[d]
    return as_float(ix.of_size(count))


def mean(low: Lowering, source: Tensor, dims: Sequence[int], *, keep: bool) -> Tensor:
    total = low.stored(folded(low, source, dims, "sum", keep=keep, real=True))
    n = _count(source, dims)
    scale = Num(1.0 / n.value) if isinstance(n, Num) else None

    def at(i: Index) -> Expr:
        return c("mul", total.at(i), scale) if scale else c("div", total.at(i), n)

    return Tensor(total.shape, source.dtype, at)


@rule("sum.default sum.dim_IntList prod.default amax.default amin.default any.default any.dim")
@rule("any.dims all.default all.dim all.dims")
def reduction(low: Lowering, op: Op) -> Tensor:
    name = op.target._schema.name.removeprefix("aten::")
    monoid: str = {"amax": "max", "amin": "min", "any": "or", "all": "and"}.get(name) or name
    source = low.tensor(op["self"])
    dims = _dims(op.get("dim"), source.ndim)
    if monoid in ("or", "and"):
        inner = source
        source = Tensor(inner.shape, op.out.dtype, lambda i: c("tobool", inner.at(i)))
    real = op.out.dtype.is_floating_point
    out = folded(low, source, dims, monoid, keep=bool(op.get("keepdim")), real=real)
    return Tensor(op.out.shape, op.out.dtype, lambda i: as_kind(out.at(i), op.out.dtype))


@rule("mean.default mean.dim")
def mean_rule(low: Lowering, op: Op) -> Tensor:
    source = low.tensor(op["self"])
    dims = _dims(op.get("dim"), source.ndim)
    return mean(low, source, dims, keep=bool(op.get("keepdim")))


@rule("var.correction var.dim std.correction std.dim")
def variance(low: Lowering, op: Op) -> Tensor:
    source = low.tensor(op["self"])
    dims = _dims(op.get("dim"), source.ndim)
    correction = op.get("correction", 1 if op.get("unbiased", True) else 0)
    centre = mean(low, source, dims, keep=True)
    spread = Tensor(source.shape, source.dtype, lambda i: _square(source, centre, i))
    keep = bool(op.get("keepdim"))
    total = low.stored(folded(low, spread, dims, "sum", keep=keep, real=True))
    n = c("sub", _count(source, dims), Num(float(1 if correction is None else correction)))

    def at(i: Index) -> Expr:
        value = c("div", total.at(i), n)
        return c("sqrt", value) if "std" in op.target._schema.name else value

    return Tensor(op.out.shape, op.out.dtype, at)


def _square(source: Tensor, centre: Tensor, i: Index) -> Expr:
    gap = c("sub", as_float(source.at(i)), centre.broadcast(i))
    return c("mul", gap, gap)


@rule("max.dim min.dim")
def extreme(low: Lowering, op: Op) -> tuple[Tensor, Tensor]:
    dim = op["dim"] % op.operands[0].ndim
    largest = "max" in op.target._schema.name
    values, places = low.topk(low.tensor(op["self"]), dim, 1, largest)
    if op["keepdim"]:
        return values, places
    return tuple(
        Tensor(info.shape, info.dtype, lambda i, t=t: t.at((*i[:dim], ix.ZERO, *i[dim:])))
        for t, info in zip((values, places), op.outputs, strict=True)
    )  # type: ignore[return-value]


@rule("argmax.default argmin.default")
def arg_extreme(low: Lowering, op: Op) -> Tensor:
    source = low.tensor(op["self"])
    if op["dim"] is None:
        flat = Tensor(
            (op.operands[0].info.numel,),
            source.dtype,
            lambda i: source.at(ix.unflatten(i[0], source.shape)),
        )
        _, places = low.topk(flat, 0, 1, "argmax" in op.target._schema.name)
        return Tensor(op.out.shape, op.out.dtype, lambda i: places.at((ix.ZERO,)))
    dim = op["dim"] % source.ndim
    _, places = low.topk(source, dim, 1, "argmax" in op.target._schema.name)
    if op["keepdim"]:
        return places
    return Tensor(op.out.shape, op.out.dtype, lambda i: places.at((*i[:dim], ix.ZERO, *i[dim:])))


@rule("topk.default")
def topk(low: Lowering, op: Op) -> tuple[Tensor, Tensor]:
    source = low.tensor(op["self"])
    return low.topk(source, op["dim"] % source.ndim, op["k"], op["largest"])


@rule("sort.default")
def sort(low: Lowering, op: Op) -> tuple[Tensor, Tensor]:
    source = low.tensor(op["self"])
    dim = op["dim"] % source.ndim
    size = source.shape[dim]
    if not isinstance(size, int):
        raise NotLoweredError("a sort along a dim of runtime length")
    return low.topk(source, dim, size, bool(op["descending"]))


@rule("cumsum.default cumprod.default")
def cumulate(low: Lowering, op: Op) -> Tensor:
    source = low.tensor(op["self"])
    inner = Tensor(source.shape, op.out.dtype, lambda i: as_kind(source.at(i), op.out.dtype))
    monoid = "sum" if "cumsum" in op.target._schema.name else "prod"
    return low.scan(inner, op["dim"] % source.ndim, monoid)


@rule("softmax.int _softmax.default log_softmax.int _log_softmax.default")
def softmax(low: Lowering, op: Op) -> Tensor:
    source = low.tensor(op["self"])
    dim = op["dim"] % source.ndim

    def at(i: Index) -> Expr:
        j = low.var(source.shape[dim], "j")
        score = as_float(source.at((*i[:dim], j, *i[dim + 1 :])))
        return Soft(j, score, i[dim])

    if "log" not in op.target._schema.name:
        return Tensor(op.out.shape, op.out.dtype, at)
    return _log_softmax(low, op, source, dim)


def _log_softmax(low: Lowering, op: Op, source: Tensor, dim: int) -> Tensor:
    """x − max − log Σ exp(x − max): the log of a softmax is −∞ where its exp is 0 in floats."""
    source = Tensor(source.shape, torch.float32, lambda i, x=source: as_float(x.at(i)))
    most = low.stored(folded(low, source, [dim], "max", keep=True, real=True))
    less = Tensor(source.shape, torch.float32, lambda i: c("sub", source.at(i), most.broadcast(i)))
    powers = Tensor(source.shape, torch.float32, lambda i: c("exp", less.at(i)))
    mass = low.stored(folded(low, powers, [dim], "sum", keep=True, real=True))
    return Tensor(
        op.out.shape, op.out.dtype, lambda i: c("sub", less.at(i), c("log", mass.broadcast(i)))
    )


@rule("layer_norm.default native_layer_norm.default")
def layer_norm(low: Lowering, op: Op) -> Any:
    source = low.tensor(op["input"])
    dims = list(range(source.ndim - len(op["normalized_shape"]), source.ndim))
    return _normalised(low, op, source, dims, lambda i: i[dims[0] :])


@rule("rms_norm.default _fused_rms_norm.default")
def rms_norm(low: Lowering, op: Op) -> Any:
    source = low.tensor(op["input"])
    dims = list(range(source.ndim - len(op["normalized_shape"]), source.ndim))
    squares = Tensor(source.shape, source.dtype, lambda i: c("mul", source.at(i), source.at(i)))
    middle = mean(low, squares, dims, keep=True)
    eps = op["eps"]
    if eps is None:
        eps = torch.finfo(op.out.dtype).eps
    root = low.stored(
        Tensor(middle.shape, middle.dtype, lambda i: c("rsqrt", c("add", middle.at(i), Num(eps))))
    )
    weight = None if op["weight"] is None else low.tensor(op["weight"])

    def at(i: Index) -> Expr:
        value = c("mul", source.at(i), root.broadcast(i))
        return value if weight is None else c("mul", value, weight.at(i[dims[0] :]))

    out = Tensor(op.outputs[0].shape, op.outputs[0].dtype, at)
    return (out, root) if len(op.outputs) > 1 else out


@rule("group_norm.default")
def group_norm(low: Lowering, op: Op) -> Tensor:
    source, groups = low.tensor(op["input"]), op["num_groups"]
    n, channels, *space = source.shape
    split = (n, groups, channels // groups, *space)
    view = Tensor(split, source.dtype, lambda i: source.at(ix.reindex(i, split, source.shape)))
    weight, bias = op["weight"], op["bias"]
    whole = _standard(low, view, list(range(2, len(split))), op["eps"])

    def at(i: Index) -> Expr:
        value = whole.at(ix.reindex(i, source.shape, split))
        if weight is not None:
            value = c("mul", value, low.tensor(weight).at((i[1],)))
        return value if bias is None else c("add", value, low.tensor(bias).at((i[1],)))

    return Tensor(op.out.shape, op.out.dtype, at)


@rule("batch_norm.default _native_batch_norm_legit_no_training.default")
def batch_norm(low: Lowering, op: Op) -> Any:
    source = low.tensor(op["input"])
    centre, spread = low.tensor(op["running_mean"]), low.tensor(op["running_var"])
    weight, bias = op["weight"], op["bias"]

    def at(i: Index) -> Expr:
        ch = (i[1],)
        root = c("rsqrt", c("add", spread.at(ch), Num(op["eps"])))
        value = c("mul", c("sub", source.at(i), centre.at(ch)), root)
        if weight is not None:
            value = c("mul", value, low.tensor(weight).at(ch))
        return value if bias is None else c("add", value, low.tensor(bias).at(ch))

    out = Tensor(op.outputs[0].shape, op.outputs[0].dtype, at)
    return (out,) * len(op.outputs) if len(op.outputs) > 1 else out


def _standard(low: Lowering, source: Tensor, dims: list[int], eps: float) -> Tensor:
    """(x − mean) / sqrt(var + eps) over `dims`, in two passes."""
    centre = low.stored(mean(low, source, dims, keep=True))
    spread = Tensor(source.shape, source.dtype, lambda i: _square(source, centre, i))
    middle = mean(low, spread, dims, keep=True)
    root = low.stored(
        Tensor(middle.shape, middle.dtype, lambda i: c("rsqrt", c("add", middle.at(i), Num(eps))))
    )
    return Tensor(
        source.shape,
        source.dtype,
        lambda i: c("mul", c("sub", source.at(i), centre.broadcast(i)), root.broadcast(i)),
    )


def _normalised(low: Lowering, op: Op, source: Tensor, dims: list[int], own: Any) -> Any:
    whole = _standard(low, source, dims, op["eps"])
    weight, bias = op["weight"], op["bias"]

    def at(i: Index) -> Expr:
        value = whole.at(i)
        if weight is not None:
            value = c("mul", value, low.tensor(weight).at(own(i)))
        return value if bias is None else c("add", value, low.tensor(bias).at(own(i)))

    out = Tensor(op.outputs[0].shape, op.outputs[0].dtype, at)
    return (out,) * len(op.outputs) if len(op.outputs) > 1 else out


__all__ = ["folded", "kind", "mean"]
