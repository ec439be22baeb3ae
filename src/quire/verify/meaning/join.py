"""Tensors put together."""

from __future__ import annotations

from typing import Any

from quire.verify import term as t
from quire.verify.meaning.pointwise import promoted, sub, xor
from quire.verify.meaning.table import means
from quire.verify.meaning.view import clipped, dim_of
from quire.verify.poly import ZERO, Poly, poly
from quire.verify.value import (
    NoMeaning,
    Value,
    as_real,
    build,
    convert,
    kind_of,
    number,
    require,
    same_size,
)
from quire.verify.views import narrow, through


@means("cat", "concat", "concatenate")
def cat(tensors: Any, dim: int = 0) -> Value:
    xs = [x for x in tensors if not (x.ndim == 1 and x.shape[0] is ZERO)] or list(tensors)
    d = dim_of(xs[0], dim)
    dtype = promoted(*xs)
    for x in xs[1:]:
        for k in range(x.ndim):
            require(k == d or same_size(x.shape[k], xs[0].shape[k], "cat"), "cat of other sizes")
    ends = []
    total = ZERO
    for x in xs:
        total = total + x.shape[d]
        ends.append(total)

    def element(idx: list[Poly]) -> Any:
        def pick(k: int) -> Any:
            start = ends[k - 1] if k else ZERO
            own = convert(xs[k].at([*idx[:d], idx[d] - start, *idx[d + 1 :]]), kind_of(dtype))
            if k == len(xs) - 1:
                return own
            return t.ite(t.ge(ends[k] - 1 - idx[d]), own, pick(k + 1))

        return pick(0)

    shape = [total if k == d else s for k, s in enumerate(xs[0].shape)]
    return build(shape, dtype, element)


@means("stack")
def stack(tensors: Any, dim: int = 0) -> Value:
    d = dim % (tensors[0].ndim + 1)
    dtype = promoted(*tensors)

    def element(idx: list[Poly]) -> Any:
        rest = [*idx[:d], *idx[d + 1 :]]

        def pick(k: int) -> Any:
            own = convert(tensors[k].at(rest), kind_of(dtype))
            if k == len(tensors) - 1:
                return own
            return t.ite(t.ge(k - idx[d]), own, pick(k + 1))

        return pick(0)

    shape = list(tensors[0].shape)
    return build([*shape[:d], len(tensors), *shape[d:]], dtype, element)


@means("constant_pad_nd", "pad")
def pad(self: Value, pad: Any, value: Any = 0, mode: str = "constant") -> Value:
    x = self
    if mode != "constant":
        raise NoMeaning(f"pad in mode {mode}")
    before = [ZERO] * x.ndim
    shape = list(x.shape)
    for k in range(len(pad) // 2):
        d = x.ndim - 1 - k
        before[d] = poly(pad[2 * k])
        shape[d] = shape[d] + pad[2 * k] + pad[2 * k + 1]
    fill = number(float(value or 0)) if x.kind == "real" else int(value or 0)

    def element(idx: list[Poly]) -> Any:
        at = [i - b for i, b in zip(idx, before, strict=True)]
        inside = t.and_(
            *(
                c
                for i, s, b, new in zip(at, x.shape, before, shape, strict=True)
                if b is not ZERO or new is not s
                for c in (t.ge(i), t.ge(s - 1 - i))
            )
        )
        return t.ite(inside, x.at(at), convert(fill, x.kind))

    return build(shape, x.dtype, element)


def _mirrored(edge: bool) -> Any:
    def f(self: Value, padding: Any) -> Value:
        x = self
        n = len(padding) // 2
        before = [0] * (x.ndim - n) + list(padding[0::2])[::-1]
        after = [0] * (x.ndim - n) + list(padding[1::2])[::-1]

        def element(idx: list[Poly]) -> Any:
            at = []
            for i, b, a, size in zip(idx, before, after, x.shape, strict=True):
                i = i - b
                if a:
                    far = size - 1 if edge else (size - 1) * 2 - i
                    i = t.ite(t.ge(size - 1 - i), i, far)
                if b:
                    i = t.ite(t.ge(i), i, ZERO if edge else -i)
                at.append(i)
            return x.at(at)

        shape = [s + b + a for s, b, a in zip(x.shape, before, after, strict=True)]
        return build(shape, x.dtype, element)

    return f


means("reflection_pad1d", "reflection_pad2d")(_mirrored(False))
means("replication_pad1d", "replication_pad2d")(_mirrored(True))


@means("diff")
def diff(self: Value, n: Any = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Value:
    if n != 1:
        raise NoMeaning("differences of a higher order")
    d = dim_of(self, dim)
    ends = [x for x in (prepend, self, append) if x is not None]
    x = cat(ends, d) if len(ends) > 1 else self
    size = x.shape[d] - 1
    after = through(x, narrow(x.shape, d, 1, size))
    before = through(x, narrow(x.shape, d, 0, size))
    return xor(after, before) if x.kind == "bool" else sub(after, before)


@means("slice_scatter")
def slice_scatter(
    self: Value, src: Value, dim: int = 0, start: Any = None, end: Any = None, step: Any = 1
) -> Value:
    if step != 1:
        raise NoMeaning("slice_scatter with a step")
    d = dim_of(self, dim)
    size = self.shape[d]
    lo, hi = clipped(start, size, ZERO), clipped(end, size, size)

    def element(idx: list[Poly]) -> Any:
        i = idx[d] - lo
        inside = t.and_(t.ge(i), t.ge(hi - 1 - idx[d]))
        own = convert(src.at([*idx[:d], i, *idx[d + 1 :]]), self.kind)
        return t.ite(inside, own, self.at(idx))

    return build(self.shape, self.dtype, element)


@means("select_scatter")
def select_scatter(self: Value, src: Value, dim: int, index: Any) -> Value:
    d = dim_of(self, dim)
    at = poly(index)
    if at.constant is not None and at.constant < 0:
        at = at + self.shape[d]

    def element(idx: list[Poly]) -> Any:
        own = convert(src.at([*idx[:d], *idx[d + 1 :]]), self.kind)
        return t.ite(t.eq(idx[d] - at), own, self.at(idx))

    return build(self.shape, self.dtype, element)


__all__ = ["as_real"]
