"""Ops that work element by element, under broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from quire.capture.program import Op
from quire.kernel.ir import Expr, Num, kind
from quire.kernel.lower.table import Lowering, NotLoweredError, Tensor, as_float, as_kind, c, rule


def elementwise(
    low: Lowering, op: Op, function: Callable[..., Expr], *operands: Any, real: bool = False
) -> Tensor:
    """`function` of the operands' elements; `real` converts them to floats first."""
    tensors = [low.tensor(o) for o in operands]
    out = op.out

    def at(index: tuple[Expr, ...]) -> Expr:
        parts = [t.broadcast(index) for t in tensors]
        if real or (out.dtype.is_floating_point and any(kind(p) == "float" for p in parts)):
            parts = [as_float(p) if kind(p) != "bool" or real else p for p in parts]
        return as_kind(function(*parts), out.dtype)

    return Tensor(out.shape, out.dtype, at)


UNARY: dict[str, Callable[[Expr], Expr]] = {
    "neg": lambda x: c("neg", x),
    "abs": lambda x: c("abs", x),
    "sqrt": lambda x: c("sqrt", x),
    "rsqrt": lambda x: c("rsqrt", x),
    "exp": lambda x: c("exp", x),
    "expm1": lambda x: c("sub", c("exp", x), Num(1.0)),
    "log": lambda x: c("log", x),
    "log1p": lambda x: c("log", c("add", x, Num(1.0))),
    "log2": lambda x: c("mul", c("log", x), Num(1 / math.log(2))),
    "tanh": lambda x: c("tanh", x),
    "sigmoid": lambda x: c("sigmoid", x),
    "silu": lambda x: c("mul", x, c("sigmoid", x)),
    "relu": lambda x: c("max", x, Num(0.0)),
    "sin": lambda x: c("sin", x),
    "cos": lambda x: c("cos", x),
    "erf": lambda x: c("erf", x),
    "reciprocal": lambda x: c("div", Num(1.0), x),
    "floor": lambda x: c("floor", x),
    "ceil": lambda x: c("ceil", x),
    "round": lambda x: c("round", x),
    "trunc": lambda x: c("trunc", x),
    "square": lambda x: c("mul", x, x),
    "sign": lambda x: c(
        "select", c("lt", Num(0.0), x), Num(1.0), c("select", c("lt", x, Num(0.0)), Num(-1.0), x)
    ),
    "mish": lambda x: c("mul", x, c("tanh", c("log", c("add", c("exp", x), Num(1.0))))),
    "hardsigmoid": lambda x: _clip(c("div", c("add", x, Num(3.0)), Num(6.0)), 0.0, 1.0),
    "hardswish": lambda x: c("mul", x, _clip(c("div", c("add", x, Num(3.0)), Num(6.0)), 0.0, 1.0)),
    "relu6": lambda x: _clip(x, 0.0, 6.0),
}
UNARY["silu_"] = UNARY["silu"]
_ON_INTEGERS = {"neg", "abs"}


def _clip(x: Expr, low: float, high: float) -> Expr:
    return c("min", c("max", x, Num(low)), Num(high))


def _unary(name: str) -> None:
    @rule(f"{name}.default")
    def apply(low: Lowering, op: Op) -> Tensor:
        real = name not in _ON_INTEGERS or op.out.dtype.is_floating_point
        return elementwise(low, op, UNARY[name], op.operands[0], real=real)


for _name in UNARY:
    if hasattr(torch.ops.aten, _name):
        _unary(_name)


@rule("add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Scalar rsub.Tensor")
def add(low: Lowering, op: Op) -> Tensor:
    name = op.target._schema.name.removeprefix("aten::")
    alpha = op.get("alpha", 1)

    def apply(a: Expr, b: Expr) -> Expr:
        if name == "rsub":
            a, b = b, a
        if alpha != 1:
            b = c("mul", b, Num(float(alpha) if kind(b) == "float" else alpha))
        return c("add" if name == "add" else "sub", a, b)

    return elementwise(low, op, apply, op["self"], op["other"])


@rule("mul.Tensor mul.Scalar")
def mul(low: Lowering, op: Op) -> Tensor:
    def apply(a: Expr, b: Expr) -> Expr:
        if op.out.dtype == torch.bool:
            return c("and", a, b)
        for x, y in ((a, b), (b, a)):
            if kind(x) == "bool":  # a product with a truth value keeps or drops
                zero = Num(0.0) if kind(y) == "float" else Num(0)
                return c("select", x, y, zero)
        return c("mul", a, b)

    return elementwise(low, op, apply, op["self"], op["other"])


@rule("div.Tensor div.Scalar div.Tensor_mode div.Scalar_mode true_divide.Tensor")
def div(low: Lowering, op: Op) -> Tensor:
    mode = op.get("rounding_mode")
    whole = not op.out.dtype.is_floating_point

    def apply(a: Expr, b: Expr) -> Expr:
        if whole:
            return c("idiv" if mode == "floor" else "tdiv", a, b)
        ratio = c("div", as_float(a), as_float(b))
        return c(mode, ratio) if mode in ("floor", "trunc") else ratio

    return elementwise(low, op, apply, op["self"], op["other"], real=not whole)


@rule("floor_divide")
def floor_divide(low: Lowering, op: Op) -> Tensor:
    def apply(a: Expr, b: Expr) -> Expr:
        if op.out.dtype.is_floating_point:
            return c("floor", c("div", a, b))
        return c("idiv", a, b)

    return elementwise(low, op, apply, op["self"], op["other"])


@rule("remainder.Tensor remainder.Scalar")
def remainder(low: Lowering, op: Op) -> Tensor:
    def apply(a: Expr, b: Expr) -> Expr:
        if op.out.dtype.is_floating_point:
            return c("sub", a, c("mul", b, c("floor", c("div", a, b))))
        return c("imod", a, b)

    return elementwise(low, op, apply, op["self"], op["other"])


@rule("pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar")
def power(low: Lowering, op: Op) -> Tensor:
    def apply(a: Expr, b: Expr) -> Expr:
        if isinstance(b, Num) and b.value in (1, 2, 3, 4):
            result = a
            for _ in range(int(b.value) - 1):
                result = c("mul", result, a)
            return result
        if isinstance(b, Num) and b.value == 0.5:
            return c("sqrt", as_float(a))
        if isinstance(b, Num) and b.value == -0.5:
            return c("rsqrt", as_float(a))
        if isinstance(b, Num) and b.value == -1:
            return c("div", Num(1.0), as_float(a))
        return c("pow", as_float(a), as_float(b))

    return elementwise(low, op, apply, op["self"], op["exponent"])


@rule("gelu.default")
def gelu(low: Lowering, op: Op) -> Tensor:
    def exact(x: Expr) -> Expr:
        half = c("mul", x, Num(0.5))
        return c("mul", half, c("add", c("erf", c("mul", x, Num(math.sqrt(0.5)))), Num(1.0)))

    def tanh(x: Expr) -> Expr:
        cube = c("mul", c("mul", c("mul", x, x), x), Num(0.044715))
        inner = c("mul", c("add", x, cube), Num(math.sqrt(2 / math.pi)))
        return c("mul", c("mul", x, Num(0.5)), c("add", c("tanh", inner), Num(1.0)))

    return elementwise(low, op, tanh if op["approximate"] == "tanh" else exact, op["self"])


@rule("leaky_relu.default")
def leaky_relu(low: Lowering, op: Op) -> Tensor:
    slope = Num(float(op["negative_slope"]))
    return elementwise(
        low, op, lambda x: c("select", c("lt", x, Num(0.0)), c("mul", x, slope), x), op["self"]
    )


@rule("elu.default")
def elu(low: Lowering, op: Op) -> Tensor:
    alpha, scale, inner = (Num(float(op[k])) for k in ("alpha", "scale", "input_scale"))

    def apply(x: Expr) -> Expr:
        below = c("mul", alpha, c("sub", c("exp", c("mul", x, inner)), Num(1.0)))
        return c("mul", scale, c("select", c("lt", Num(0.0), x), x, below))

    return elementwise(low, op, apply, op["self"])


@rule("softplus.default")
def softplus(low: Lowering, op: Op) -> Tensor:
    beta, limit = Num(float(op["beta"])), Num(float(op["threshold"]))

    def apply(x: Expr) -> Expr:
        scaled = c("mul", x, beta)
        soft = c("div", c("log", c("add", c("exp", scaled), Num(1.0))), beta)
        return c("select", c("lt", limit, scaled), x, soft)

    return elementwise(low, op, apply, op["self"])


@rule("clamp.default clamp.Tensor clamp_min.default clamp_max.default hardtanh.default")
def clamp(low: Lowering, op: Op) -> Tensor:
    least = op.get("min", op.get("min_val"))
    most = op.get("max", op.get("max_val"))
    bounds = [b for b in (least, most) if b is not None]

    def apply(x: Expr, *rest: Expr) -> Expr:
        ends = list(rest)
        if least is not None:
            x = c("max", x, as_kind(ends.pop(0), op.out.dtype))
        if most is not None:
            x = c("min", x, as_kind(ends.pop(0), op.out.dtype))
        return x

    return elementwise(low, op, apply, op["self"], *bounds)


@rule("maximum.default minimum.default max.other min.other")
def extreme(low: Lowering, op: Op) -> Tensor:
    name = "max" if "max" in op.target._schema.name else "min"
    return elementwise(low, op, lambda a, b: c(name, a, b), op["self"], op["other"])


COMPARE: dict[str, Callable[[Expr, Expr], Expr]] = {
    "le": lambda a, b: c("le", a, b),
    "lt": lambda a, b: c("lt", a, b),
    "ge": lambda a, b: c("le", b, a),
    "gt": lambda a, b: c("lt", b, a),
    "eq": lambda a, b: c("eq", a, b),
    "ne": lambda a, b: c("ne", a, b),
}


@rule("le lt ge gt eq ne")
def compare(low: Lowering, op: Op) -> Tensor:
    name = op.target._schema.name.removeprefix("aten::")

    def apply(a: Expr, b: Expr) -> Expr:
        if "float" in (kind(a), kind(b)):
            a, b = as_float(a), as_float(b)
        return COMPARE[name](a, b)

    return elementwise(low, op, apply, op["self"], op["other"])


def _no_bits(op: Op) -> None:
    """Truth values only: the loop IR has no arithmetic on bits."""
    if op.out.dtype != torch.bool:
        raise NotLoweredError(f"bits of {op.out.dtype}")


@rule("logical_and.default __and__.Tensor bitwise_and.Tensor")
def both(low: Lowering, op: Op) -> Tensor:
    _no_bits(op)
    return elementwise(low, op, lambda a, b: c("and", a, b), op["self"], op["other"])


@rule("logical_or.default __or__.Tensor bitwise_or.Tensor")
def either(low: Lowering, op: Op) -> Tensor:
    _no_bits(op)
    return elementwise(low, op, lambda a, b: c("or", a, b), op["self"], op["other"])


@rule("logical_not.default bitwise_not.default")
def negation(low: Lowering, op: Op) -> Tensor:
    _no_bits(op)
    return elementwise(low, op, lambda a: c("not", c("tobool", a)), op["self"])


@rule("where.self where.ScalarOther where.ScalarSelf where.Scalar")
def where(low: Lowering, op: Op) -> Tensor:
    dtype = op.out.dtype
    return elementwise(
        low,
        op,
        lambda q, a, b: c("select", q, as_kind(a, dtype), as_kind(b, dtype)),
        op["condition"],
        op["self"],
        op["other"],
    )


@rule("masked_fill.Scalar masked_fill.Tensor")
def masked_fill(low: Lowering, op: Op) -> Tensor:
    dtype = op.out.dtype
    return elementwise(
        low,
        op,
        lambda a, q, b: c("select", q, as_kind(b, dtype), a),
        op["self"],
        op["mask"],
        op["value"],
    )


@rule("isnan.default")
def isnan(low: Lowering, op: Op) -> Tensor:
    return elementwise(low, op, lambda a: c("ne", a, a), op["self"])
