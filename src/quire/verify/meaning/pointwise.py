"""Ops whose element at an index depends on the operands' elements at that index."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import torch

from quire.verify import term as t
from quire.verify.decide import divmod_, maximum, minimum
from quire.verify.meaning.table import MEANING, means
from quire.verify.poly import Poly
from quire.verify.value import (
    NoMeaning,
    Value,
    as_bool,
    as_int,
    as_real,
    broadcast,
    build,
    kind_of,
    spread,
)


def dtype_of(x: Any) -> torch.dtype | None:
    if isinstance(x, Value):
        return x.dtype
    return None


def promoted(*xs: Any) -> torch.dtype:
    """Type promotion of torch: tensors with dims, then those without, then numbers."""
    dims = [x.dtype for x in xs if isinstance(x, Value) and x.ndim]
    zero = [x.dtype for x in xs if isinstance(x, Value) and not x.ndim]
    plain = [
        torch.bool if isinstance(x, bool) else torch.get_default_dtype()
        if isinstance(x, float) else torch.int64
        for x in xs if not isinstance(x, Value)
    ]  # fmt: skip
    rank = {"bool": 0, "int": 1, "real": 2}
    result: torch.dtype | None = None
    for group in (dims, zero, plain):
        if not group:
            continue
        top = group[0]
        for d in group[1:]:
            top = torch.promote_types(top, d)
        if result is None or rank[kind_of(top)] > rank[kind_of(result)]:
            result = top
    assert result is not None
    return result


def element(x: Any, idx: Any) -> Any:
    return x.at(spread(idx, x.shape)) if isinstance(x, Value) else x


def shape_of(*xs: Any) -> Any:
    return broadcast(*(x.shape for x in xs if isinstance(x, Value)))


def pointwise(dtype: torch.dtype, function: Any, *xs: Any) -> Value:
    return build(shape_of(*xs), dtype, lambda idx: function(*(element(x, idx) for x in xs)))


# --- arithmetic ------------------------------------------------------------------------------


def _real(dtype: torch.dtype) -> torch.dtype:
    return dtype if kind_of(dtype) == "real" else torch.get_default_dtype()


@means("add")
def add(self: Any, other: Any, alpha: Any = 1) -> Value:
    dtype = promoted(self, other)

    def f(x: Any, y: Any) -> Any:
        if kind_of(dtype) == "real":
            if isinstance(alpha, Value | t.Term | Poly):
                return t.add((1, as_real(x)), (1, t.mul((as_real(alpha), 1), (as_real(y), 1))))
            return t.add((1, as_real(x)), (Fraction(alpha), as_real(y)))
        if kind_of(dtype) == "bool":
            return t.or_(as_bool(x), as_bool(y))
        return as_int(x) + as_int(y) * int(alpha)

    return pointwise(dtype, f, self, other)


@means("sub", "subtract")
def sub(self: Any, other: Any, alpha: Any = 1) -> Value:
    return add(self, other, -alpha)


@means("rsub")
def rsub(self: Any, other: Any, alpha: Any = 1) -> Value:
    return add(other, self, -alpha)


@means("mul", "multiply")
def mul(self: Any, other: Any) -> Value:
    dtype = promoted(self, other)

    def f(x: Any, y: Any) -> Any:
        if kind_of(dtype) == "real":
            return t.mul((as_real(x), 1), (as_real(y), 1))
        if kind_of(dtype) == "bool":
            return t.and_(as_bool(x), as_bool(y))
        return as_int(x) * as_int(y)

    return pointwise(dtype, f, self, other)


@means("div", "divide", "true_divide")
def div(self: Any, other: Any, rounding_mode: Any = None) -> Value:
    dtype = promoted(self, other)
    if rounding_mode is None:
        return pointwise(
            _real(dtype), lambda x, y: t.mul((as_real(x), 1), (as_real(y), -1)), self, other
        )
    if rounding_mode == "floor":
        return floor_divide(self, other)
    name = f"div_{rounding_mode}"
    return pointwise(dtype, lambda x, y: t.fn(name, as_real(x), as_real(y)), self, other)


@means("floor_divide")
def floor_divide(self: Any, other: Any) -> Value:
    dtype = promoted(self, other)

    def f(x: Any, y: Any) -> Any:
        if kind_of(dtype) == "int":
            n = as_int(y)
            if n.constant is not None and n.constant > 0:
                return divmod_(as_int(x), n)[0]
            return t.int_of(t.fn("floordiv", t.of_int(as_int(x)), t.of_int(n)))
        return t.fn("floordiv", as_real(x), as_real(y))

    return pointwise(dtype, f, self, other)


@means("remainder")
def remainder(self: Any, other: Any) -> Value:
    dtype = promoted(self, other)

    def f(x: Any, y: Any) -> Any:
        if kind_of(dtype) == "int":
            n = as_int(y)
            if n.constant is not None and n.constant > 0:
                return divmod_(as_int(x), n)[1]
            return t.int_of(t.fn("remainder", t.of_int(as_int(x)), t.of_int(n)))
        return t.fn("remainder", as_real(x), as_real(y))

    return pointwise(dtype, f, self, other)


@means("pow")
def pow_(self: Any, exponent: Any) -> Value:
    dtype = promoted(self, exponent)

    def f(x: Any, y: Any) -> Any:
        if isinstance(y, int | float) and float(y).is_integer() and abs(y) <= 8:
            if kind_of(dtype) == "real":
                return t.mul((as_real(x), int(y)))
            if y >= 0:
                total = as_int(1)
                for _ in range(int(y)):
                    total = total * as_int(x)
                return total
        if isinstance(y, float) and y == 0.5:
            return t.fn("sqrt", as_real(x))
        return t.fn("pow", as_real(x), as_real(y))

    return pointwise(dtype, f, self, exponent)


@means("neg")
def neg(self: Value) -> Value:
    return mul(self, -1)


@means("square")
def square(self: Value) -> Value:
    return mul(self, self)


@means("reciprocal")
def reciprocal(self: Value) -> Value:
    return div(1, self)


@means("exp")
def exp(self: Value) -> Value:
    return pointwise(_real(self.dtype), lambda x: t.exp(as_real(x)), self)


@means("relu")
def relu(self: Value) -> Value:
    return clamp(self, 0)


@means("clamp", "clamp_min", "clamp_max", "clip")
def clamp(self: Value, min: Any = None, max: Any = None) -> Value:
    dtype = self.dtype

    def f(x: Any) -> Any:
        for bound_, name in ((min, "max"), (max, "min")):
            if bound_ is not None:
                x = _extreme(dtype, name, x, bound_)
        return x

    return pointwise(dtype, f, self)


def _extreme(dtype: torch.dtype, name: str, x: Any, y: Any) -> Any:
    if kind_of(dtype) == "real":
        return t.extreme(name, as_real(x), as_real(y))
    if kind_of(dtype) == "bool":
        return (t.or_ if name == "max" else t.and_)(as_bool(x), as_bool(y))
    return (maximum if name == "max" else minimum)(as_int(x), as_int(y))


@means("maximum")
def maximum_(self: Value, other: Value) -> Value:
    dtype = promoted(self, other)
    return pointwise(dtype, lambda x, y: _extreme(dtype, "max", x, y), self, other)


@means("minimum")
def minimum_(self: Value, other: Value) -> Value:
    dtype = promoted(self, other)
    return pointwise(dtype, lambda x, y: _extreme(dtype, "min", x, y), self, other)


def _unary(*names: str) -> None:
    for name in names:

        def f(self: Value, _name: str = name, **more: Any) -> Value:
            extra = tuple(
                t.const(v) if isinstance(v, int | float) else str(v)
                for _, v in sorted(more.items())
                if v is not None
            )
            return pointwise(_real(self.dtype), lambda x: t.fn(_name, as_real(x), *extra), self)

        MEANING[name] = f


_unary(
    "tanh", "sin", "cos", "tan", "atan", "rsqrt", "sqrt", "erf", "erfc", "log", "log2", "log1p",
    "expm1", "sigmoid", "hardswish", "mish",
    "hardsigmoid", "log_sigmoid", "floor", "ceil", "round", "trunc", "selu", "celu",
    "softsign", "relu6", "hardtanh", "exp2", "cosh", "sinh", "acos", "asin", "log10", "sgn",
    "threshold", "lgamma", "digamma", "erfinv", "frac", "nan_to_num", "special_expit",
)  # fmt: skip


@means("sign")
def sign(self: Value) -> Value:
    def f(x: t.Term) -> Any:
        below = t.ite(t.compare("lt", x, t.ZERO_), t.const(-1), x)
        return t.ite(t.compare("lt", t.ZERO_, x), t.ONE_, below)

    if self.kind != "real":
        raise NoMeaning("the sign of what is no real")
    return pointwise(self.dtype, f, self)


@means("abs")
def abs_(self: Value) -> Value:
    if self.kind == "int":
        return pointwise(self.dtype, lambda x: maximum(as_int(x), -as_int(x)), self)
    return pointwise(self.dtype, lambda x: t.fn("abs", as_real(x)), self)


@means("atan2", "hypot", "fmod", "prelu", "xlogy", "copysign")
def binary(self: Any, other: Any = None, **more: Any) -> Value:
    raise NoMeaning("atan2, hypot, fmod, prelu, xlogy, copysign")


# --- comparisons and truth values ------------------------------------------------------------


def _comparison(name: str, op: str, swap: bool, negate: bool) -> None:
    def f(self: Any, other: Any) -> Value:
        def one(x: Any, y: Any) -> Any:
            if swap:
                x, y = y, x
            c = t.compare(op, as_real(x), as_real(y))
            return t.not_(c) if negate else c

        return pointwise(torch.bool, one, self, other)

    MEANING[name] = f


for _name, _op, _swap, _negate in [
    ("lt", "lt", False, False), ("le", "le", False, False), ("gt", "lt", True, False),
    ("ge", "le", True, False), ("eq", "eq", False, False), ("ne", "eq", False, True),
]:  # fmt: skip
    _comparison(_name, _op, _swap, _negate)


def _logical(f: Any, *xs: Any) -> Value:
    return pointwise(torch.bool, lambda *es: f(*map(as_bool, es)), *xs)


@means("bitwise_and", "logical_and", "__and__")
def and_(self: Any, other: Any) -> Value:
    _truth(self, other)
    return _logical(t.and_, self, other)


@means("bitwise_or", "logical_or", "__or__")
def or_(self: Any, other: Any) -> Value:
    _truth(self, other)
    return _logical(t.or_, self, other)


@means("bitwise_xor", "logical_xor")
def xor(self: Any, other: Any) -> Value:
    _truth(self, other)
    return _logical(lambda x, y: t.or_(t.and_(x, t.not_(y)), t.and_(t.not_(x), y)), self, other)


@means("logical_not", "bitwise_not")
def not_(self: Value) -> Value:
    _truth(self)
    return _logical(t.not_, self)


def _truth(*xs: Any) -> None:
    if any(isinstance(x, Value) and x.kind != "bool" for x in xs):
        raise NoMeaning("bitwise ops on integers")


@means("isnan", "isinf")
def isnan(self: Value) -> Value:
    """Over the reals nothing is: axiom `finite`."""
    return build(self.shape, torch.bool, lambda idx: t.FALSE)


@means("where")
def where(condition: Value, self: Any, other: Any) -> Value:
    dtype = promoted(self, other)
    kind = {"real": as_real, "int": as_int, "bool": as_bool}[kind_of(dtype)]
    return pointwise(
        dtype, lambda c, x, y: t.ite(as_bool(c), kind(x), kind(y)), condition, self, other
    )


@means("masked_fill")
def masked_fill(self: Value, mask: Value, value: Any) -> Value:
    out = where(mask, value, self)
    return Value(out.shape, self.dtype, out.scalar)


# --- copies and conversions ------------------------------------------------------------------


@means("clone", "alias", "detach", "contiguous", "lift_fresh_copy", "lift_fresh", "detach_copy",
       "positive")  # fmt: skip
def same(self: Value, **more: Any) -> Value:
    return self


@means("dropout", "feature_dropout", "alpha_dropout")
def dropout(input: Value, p: float, train: bool) -> Value:
    if train and p:
        raise NoMeaning("dropout: what is dropped is drawn, and no function of the place")
    return input


@means("_to_copy", "to", "type_as")
def to(self: Value, dtype: Any = None, **more: Any) -> Value:
    if isinstance(more.get("other"), Value):
        dtype = more["other"].dtype
    dtype = dtype or self.dtype
    return build(self.shape, dtype, self.at)


def finite(value: float) -> bool:
    return math.isfinite(value)
