"""Tensors made from sizes and numbers."""

from __future__ import annotations

from typing import Any

import torch

from quire.verify import term as t
from quire.verify.decide import divmod_
from quire.verify.meaning.table import means
from quire.verify.poly import Poly, poly
from quire.verify.value import NoMeaning, Value, as_real, build, kind_of, number


def _dtype_of(value: Any) -> torch.dtype:
    if isinstance(value, bool):
        return torch.bool
    return torch.get_default_dtype() if isinstance(value, float) else torch.int64


@means("full")
def full(size: Any, fill_value: Any, dtype: Any = None, **_: Any) -> Value:
    if isinstance(fill_value, Value):
        fill_value = fill_value.at([])
    dtype = dtype or (_dtype_of(fill_value) if isinstance(fill_value, int | float) else None)
    return build(size, dtype or torch.int64, lambda idx: _constant(fill_value, dtype))


def _constant(value: Any, dtype: Any) -> Any:
    if isinstance(value, int | float) and kind_of(dtype) == "real":
        return number(float(value))
    if isinstance(value, bool):
        return t.TRUE if value else t.FALSE
    return poly(value) if isinstance(value, int) else value


@means("full_like", "new_full")
def full_like(self: Value, fill_value: Any, size: Any = None, dtype: Any = None, **_: Any) -> Value:
    return full(self.shape if size is None else size, fill_value, dtype or self.dtype)


@means("zeros", "ones")
def zeros(size: Any, dtype: Any = None, **_: Any) -> Value:
    raise NoMeaning("zeros")


def _filled(value: int) -> Any:
    def make(size: Any, dtype: Any = None, **_: Any) -> Value:
        return full(size, value, dtype or torch.get_default_dtype())

    return make


def _filled_like(value: int) -> Any:
    def make(self: Value, size: Any = None, dtype: Any = None, **_: Any) -> Value:
        return full(self.shape if size is None else size, value, dtype or self.dtype)

    return make


means("zeros")(_filled(0))
means("ones")(_filled(1))
means("zeros_like", "new_zeros")(_filled_like(0))
means("ones_like", "new_ones")(_filled_like(1))


@means("scalar_tensor")
def scalar_tensor(s: Any, dtype: Any = None, **_: Any) -> Value:
    return full([], s, dtype or _dtype_of(s))


@means("arange")
def arange(end: Any, start: Any = 0, step: Any = 1, dtype: Any = None, **_: Any) -> Value:
    if isinstance(step, float) or isinstance(start, float) or isinstance(end, float):
        if float(step).is_integer() and float(start).is_integer() and float(end).is_integer():
            dtype = dtype or torch.get_default_dtype()
            end, start, step = int(end), int(start), int(step)
        else:
            raise NoMeaning("arange with fractions")
    if not isinstance(step, int) or step == 0:
        raise NoMeaning("arange with a step that is not a constant")
    length, _rest = (
        divmod_(poly(end) - poly(start) + (step - (1 if step > 0 else -1)), abs(step))
        if step > 0
        else divmod_(poly(start) - poly(end) + (-step - 1), -step)
    )
    return build([length], dtype or torch.int64, lambda idx: idx[0] * step + poly(start))


@means("eye")
def eye(n: Any, m: Any = None, dtype: Any = None, **_: Any) -> Value:
    dtype = dtype or torch.get_default_dtype()
    return build([n, n if m is None else m], dtype, lambda i: t.eq(i[0] - i[1]))


def _triangle(keep: Any) -> Any:
    def f(self: Value, diagonal: Any = 0) -> Value:
        def element(idx: Any) -> Any:
            x = self.at(idx)
            off = idx[-1] - idx[-2] - diagonal
            if isinstance(x, Poly):
                return t.ite(keep(off), x, poly(0))
            return t.ite(keep(off), x, t.FALSE if x.bool else t.ZERO_)

        return build(self.shape, self.dtype, element)

    return f


means("tril")(_triangle(lambda off: t.ge(-off)))
means("triu")(_triangle(t.ge))


@means("linspace", "empty", "rand", "randn")
def unknown(*_: Any, **__: Any) -> Value:
    raise NoMeaning("linspace, empty, rand, randn")


@means("one_hot")
def one_hot(self: Value, num_classes: Any = -1) -> Value:
    if isinstance(num_classes, int) and num_classes < 0:
        raise NoMeaning("one_hot without a number of classes")
    return build(
        [*self.shape, num_classes],
        torch.int64,
        lambda idx: t.ite(t.eq(self.int(idx[:-1]) - idx[-1]), poly(1), poly(0)),
    )


__all__ = ["as_real"]
