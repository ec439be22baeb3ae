"""Convolutions and pools: reads within a window around each index."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from quire.capture.program import Op
from quire.kernel import index as ix
from quire.kernel.ir import Expr, Fold, Num, Size, Var
from quire.kernel.lower.reduce import mean
from quire.kernel.lower.table import Lowering, NotLoweredError, Tensor, as_float, c, rule

Index = tuple[Expr, ...]


def _each(value: Any, rank: int) -> list[int]:
    if isinstance(value, str):
        raise NotLoweredError(f"padding={value!r}")
    values = [value] if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


def _window(
    place: Sequence[Expr], taps: Sequence[Var], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], sizes: Sequence[Size],
) -> tuple[list[Expr], Expr]:  # fmt: skip
    """s·y + d·k − p in each dim, and whether all of them lie within the sizes."""
    inside: Expr = Num(True)
    spot: list[Expr] = []
    for k, size in enumerate(sizes):
        x = ix.add(
            ix.mul(place[k], Num(stride[k])),
            ix.mul(taps[k], Num(dilation[k])),
            Num(-padding[k]),
        )
        inside = c("and", inside, c("le", Num(0), x))
        inside = c("and", inside, c("lt", x, ix.of_size(size)))
        spot.append(x)
    return spot, inside


@rule("conv1d.default conv2d.default conv3d.default convolution.default")
def convolution(low: Lowering, op: Op) -> Tensor:
    """out[n, o, y…] = Σ_{c, k…} in[n, c, s·y + d·k − p …] · weight[o, c, k…], zeros outside."""
    source, weight = low.tensor(op["input"]), low.tensor(op["weight"])
    rank, groups = source.ndim - 2, op["groups"]
    if op.get("transposed"):
        raise NotLoweredError("a transposed convolution")
    stride, padding, dilation = (_each(op[k], rank) for k in ("stride", "padding", "dilation"))
    per_group = op.out.shape[1] // groups

    def at(i: Index) -> Expr:
        n, o, *place = i
        over = [low.var(s, "k") for s in weight.shape[1:]]
        channel: Expr = over[0]
        if groups > 1:
            channel = ix.add(ix.mul(ix.div(o, per_group), Num(int(weight.shape[1]))), channel)
        spot, inside = _window(place, over[1:], stride, padding, dilation, source.shape[2:])
        value = c("select", inside, source.at((n, channel, *spot)), Num(0.0))
        return Fold("sum", tuple(over), c("mul", value, weight.at((o, *over))))

    plain = Tensor(op.out.shape, op.out.dtype, at)
    if op["bias"] is None:
        return plain
    kept, bias = low.stored(plain), low.tensor(op["bias"])
    return Tensor(op.out.shape, op.out.dtype, lambda i: c("add", kept.at(i), bias.at((i[1],))))


@rule("max_pool1d.default max_pool2d.default max_pool3d.default")
def max_pool(low: Lowering, op: Op) -> Tensor:
    """out[…, y…] = max_{k…} in[…, s·y + d·k − p …], of what lies within."""
    return _pooled(low, op, "max", op["dilation"], -math.inf)


@rule("avg_pool1d.default avg_pool2d.default avg_pool3d.default")
def avg_pool(low: Lowering, op: Op) -> Tensor:
    """The mean over a window, zeros outside counted."""
    if op["ceil_mode"] or op.get("divisor_override"):
        raise NotLoweredError("an average over windows of other sizes")
    if not op["count_include_pad"] and any(_each(op["padding"], 1)):
        raise NotLoweredError("an average that does not count what is padded")
    total = low.stored(_pooled(low, op, "sum", 1, 0.0))
    rank = int(op.target._schema.name[-2])
    count = math.prod(_each(op["kernel_size"], rank))
    return Tensor(total.shape, total.dtype, lambda i: c("mul", total.at(i), Num(1.0 / count)))


def _pooled(low: Lowering, op: Op, monoid: str, dilation: Any, outside: float) -> Tensor:
    rank = int(op.target._schema.name[-2])
    source = low.tensor(op["self"])
    kernel, padding, reach = (_each(v, rank) for v in (op["kernel_size"], op["padding"], dilation))
    stride = _each(op["stride"], rank) if op["stride"] else kernel

    def at(i: Index) -> Expr:
        taps = [low.var(k, "k") for k in kernel]
        spot, inside = _window(i[-rank:], taps, stride, padding, reach, source.shape[-rank:])
        value = c("select", inside, as_float(source.at((*i[:-rank], *spot))), Num(outside))
        return Fold(monoid, tuple(taps), value)

    return low.stored(Tensor(op.out.shape, op.out.dtype, at))


@rule("adaptive_avg_pool1d.default adaptive_avg_pool2d.default _adaptive_avg_pool2d.default")
def adaptive_avg_pool(low: Lowering, op: Op) -> Tensor:
    source, sizes = low.tensor(op["self"]), list(op["output_size"])
    first = source.ndim - len(sizes)
    if any(n not in (1, source.shape[first + k]) for k, n in enumerate(sizes)):
        raise NotLoweredError(f"an adaptive average to {sizes}")
    return mean(low, source, [first + k for k, n in enumerate(sizes) if n == 1], keep=True)
