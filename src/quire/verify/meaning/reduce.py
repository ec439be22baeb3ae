"""Folds over dims, and functions of a whole row."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from quire.verify import term as t
from quire.verify.decide import prove
from quire.verify.meaning.contraction import sum_over
from quire.verify.meaning.gather import gather
from quire.verify.meaning.pointwise import mul as times
from quire.verify.meaning.pointwise import sub
from quire.verify.meaning.table import MEANING, means
from quire.verify.meaning.view import dim_of
from quire.verify.poly import ONE, ZERO, Poly, poly, product, variable
from quire.verify.value import NoMeaning, Value, as_real, build, kind_of, require


def dims_of(x: Value, dim: Any) -> list[int]:
    if dim is None or (isinstance(dim, list | tuple) and not dim):
        return list(range(x.ndim))
    dims = dim if isinstance(dim, list | tuple) else [dim]
    return sorted(dim_of(x, d) for d in dims) if x.ndim else []


def fold(x: Value, dims: list[int], keepdim: bool, dtype: torch.dtype, over: Any) -> Value:
    """`over(sizes, body)` for each index of the dims that stay; `body(js)` is an element."""
    shape = [ONE if d in dims else s for d, s in enumerate(x.shape) if keepdim or d not in dims]

    def element(idx: list[Poly]) -> Any:
        kept = iter(i for d, i in enumerate(idx) if not keepdim or d not in dims)
        at: list[Any] = [None if d in dims else next(kept) for d in range(x.ndim)]

        def body(js: list[Poly]) -> Any:
            inner = iter(js)
            return x.at([next(inner) if i is None else i for i in at])

        return over([x.shape[d] for d in dims], body)

    return build(shape, dtype, element)


def _summed(dtype: torch.dtype | None, x: Value) -> torch.dtype:
    return dtype or (x.dtype if x.kind == "real" else torch.int64)


@means("sum")
def sum_(self: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    def over(sizes: Any, body: Any) -> t.Term:
        return sum_over(sizes, lambda js: as_real(body(js)))

    return fold(self, dims_of(self, dim), keepdim, _summed(dtype, self), over)


@means("mean")
def mean(self: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    dims = dims_of(self, dim)
    count = t.of_int(product(self.shape[d] for d in dims))

    def over(sizes: Any, body: Any) -> t.Term:
        return t.mul((sum_over(sizes, lambda js: as_real(body(js))), 1), (count, -1))

    return fold(self, dims, keepdim, dtype or self.dtype, over)


def extreme_over(op: str, sizes: list[Poly], body: Any) -> t.Term:
    if not sizes:
        return body([])
    return t.bind(op, sizes[0], lambda j: extreme_over(op, sizes[1:], lambda js: body([j, *js])))


def _extreme(op: str) -> Any:
    def f(self: Value, dim: Any = (), keepdim: bool = False) -> Value:
        def over(sizes: Any, body: Any) -> t.Term:
            return extreme_over(op, sizes, lambda js: as_real(body(js)))

        return fold(self, dims_of(self, dim), keepdim, self.dtype, over)

    return f


amax = means("amax")(_extreme("max"))
amin = means("amin")(_extreme("min"))


@means("max", "min")
def max_(**given: Any) -> Any:
    raise NoMeaning("max")


def _max_with_index(op: str) -> Any:
    def f(self: Value, dim: Any = None, keepdim: bool = False, other: Any = None) -> Any:
        if other is not None:
            return MEANING["maximum" if op == "max" else "minimum"](self=self, other=other)
        if dim is None:
            return _extreme(op)(self)
        return _extreme(op)(self, dim, keepdim), _arg(op)(self, dim, keepdim)

    return f


means("max")(_max_with_index("max"))
means("min")(_max_with_index("min"))


def row(name: str, x: Value, d: int, idx: list[Poly], *more: Any) -> t.Term:
    """A function, known by name only, of the whole row of `x` along `d` that `idx` lies in."""
    size = x.shape[d]
    var = variable("t", [0], [size - 1])
    body = as_real(x.at([*idx[:d], var, *idx[d + 1 :]]))
    return t.row(size, body, var, name, *more)


def _arg(op: str) -> Any:
    def f(self: Value, dim: Any = None, keepdim: bool = False) -> Value:
        if dim is None:
            raise NoMeaning(f"arg{op} over all dims")
        d = dim_of(self, dim)

        def element(idx: list[Poly]) -> Any:
            at = list(idx) if keepdim else [*idx[:d], ZERO, *idx[d:]]
            return t.int_of(row("order.indices", self, d, at, ZERO, str(op == "max")))

        shape = [ONE if k == d else s for k, s in enumerate(self.shape) if keepdim or k != d]
        return build(shape, torch.int64, element)

    return f


means("argmax")(_arg("max"))
means("argmin")(_arg("min"))


@means("any", "all")
def any_(self: Value, dim: Any = None, keepdim: bool = False) -> Value:
    raise NoMeaning("any, all")


def _quantified(op: str) -> Any:
    def f(self: Value, dim: Any = None, keepdim: bool = False) -> Value:
        from_bool = build(self.shape, torch.float32, lambda i: t.ind(self.true(i)))
        found = _extreme(op)(from_bool, () if dim is None else dim, keepdim)
        return build(
            found.shape, torch.bool, lambda i: t.not_(t.compare("eq", found.at(i), t.ZERO_))
        )

    return f


means("any")(_quantified("max"))
means("all")(_quantified("min"))


def _of_row(name: str, self: Value, d: int, shape: Any, more: tuple[Any, ...], parts: Any) -> Any:
    """Tensors whose element depends on a whole row and the place asked for in it."""
    found = []
    for part, dtype in parts:

        def element(idx: list[Poly], part: str = part, dtype: torch.dtype = dtype) -> Any:
            x = row(f"{name}.{part}", self, d, idx, idx[d], *more)
            return t.int_of(x) if kind_of(dtype) == "int" else x

        found.append(build(shape, dtype, element))
    return tuple(found)


@means("topk")
def topk(self: Value, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    d = dim_of(self, dim)
    shape = [poly(k) if e == d else s for e, s in enumerate(self.shape)]
    parts = [("values", self.dtype), ("indices", torch.int64)]
    if not sorted:
        return _of_row("topk", self, d, shape, (str((k, largest)),), parts)
    return _of_row("order", self, d, shape, (str(bool(largest)),), parts)


@means("sort", "argsort")
def sort(self: Value, dim: int = -1, descending: bool = False, stable: Any = None) -> Any:
    d = dim_of(self, dim)
    parts = [("values", self.dtype), ("indices", torch.int64)]
    values, order = _of_row("order", self, d, self.shape, (str(bool(descending)),), parts)
    return (gather(self, d, order) if self.kind == "int" else values), order


def argsort(self: Value, dim: int = -1, descending: bool = False, stable: Any = None) -> Any:
    return sort(self, dim, descending, stable)[1]


means("argsort")(argsort)


@means("cumsum")
def cumsum(self: Value, dim: int, dtype: Any = None) -> Value:
    d = dim_of(self, dim)

    def element(idx: list[Poly]) -> Any:
        return t.bind("sum", idx[d] + 1, lambda j: self.real([*idx[:d], j, *idx[d + 1 :]]))

    if not self.ndim:
        return self
    return build(self.shape, _summed(dtype, self), element)


def _prefix(name: str) -> Any:
    def f(self: Value, dim: int, dtype: Any = None) -> Any:
        d = dim_of(self, dim)
        parts = [("values", dtype or self.dtype)]
        return _of_row(name, self, d, self.shape, (), parts)[0]

    return f


means("cumprod")(_prefix("cumprod"))
means("logcumsumexp")(_prefix("logcumsumexp"))


@means("prod")
def prod(self: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    if dim is None:
        raise NoMeaning("prod over all dims")
    d = dim_of(self, dim)

    def element(idx: list[Poly]) -> Any:
        at = list(idx) if keepdim else [*idx[:d], ZERO, *idx[d:]]
        return row("prod", self, d, at)

    shape = [ONE if k == d else s for k, s in enumerate(self.shape) if keepdim or k != d]
    return build(shape, dtype or self.dtype, element)


@means("logsumexp")
def logsumexp(self: Value, dim: Any, keepdim: bool = False) -> Value:
    def over(sizes: Any, body: Any) -> t.Term:
        return t.fn("log", sum_over(sizes, lambda js: t.exp(as_real(body(js)))))

    return fold(self, dims_of(self, dim), keepdim, self.dtype, over)


@means("var", "std")
def var(**_: Any) -> Value:
    raise NoMeaning("var")


def moment(x: Value, dims: list[int], keepdim: bool, correction: Any) -> Value:
    """The variance over `dims`, the sum of squares divided by their number less `correction`."""
    centred = sub(x, mean(x, dims, True))
    total = sum_(times(centred, centred), dims, keepdim)
    n = product(x.shape[d] for d in dims)
    require(prove(n - int(correction) - 1), "variance of too few elements")
    count = t.of_int(n - int(correction))
    return build(total.shape, x.dtype, lambda i: t.mul((total.real(i), 1), (count, -1)))


def _variance(root: bool) -> Any:
    def f(
        self: Value, dim: Any = None, correction: Any = None, keepdim: bool = False,
        unbiased: Any = None,
    ) -> Value:  # fmt: skip
        if isinstance(dim, bool):
            dim, unbiased = None, dim
        if correction is None:
            correction = 0 if unbiased is False else 1
        out = moment(self, dims_of(self, dim), keepdim, correction)
        return MEANING["sqrt"](self=out) if root else out

    return f


means("var")(_variance(False))
means("std")(_variance(True))


@means("linalg_vector_norm")
def norm(
    self: Value, ord: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Value:
    if ord != 2:
        raise NoMeaning(f"norm of order {ord}")
    total = sum_(times(self, self), dim, keepdim)
    return MEANING["sqrt"](self=total)


def pairs(xs: Any) -> Any:
    return itertools.pairwise(xs)
