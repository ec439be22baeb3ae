"""Reads at indices that are data."""

from __future__ import annotations

from typing import Any

import torch

from quire.verify import term as t
from quire.verify.meaning.table import means
from quire.verify.meaning.view import dim_of
from quire.verify.poly import ONE, ZERO, Poly
from quire.verify.value import (
    NoMeaning,
    Value,
    broadcast,
    build,
    convert,
    require,
    same_size,
    spread,
)


def wrapped(at: Poly, size: Poly) -> Poly:
    """An index as torch reads it: negative ones count from the end."""
    return t.ite(t.ge(at), at, at + size)


@means("embedding")
def embedding(weight: Value, indices: Value, **_: Any) -> Value:
    n = indices.ndim
    return build(
        [*indices.shape, *weight.shape[1:]],
        weight.dtype,
        lambda idx: weight.at([indices.int(idx[:n]), *idx[n:]]),
    )


@means("index_select")
def index_select(self: Value, dim: int, index: Value) -> Value:
    d = dim_of(self, dim)
    shape = [index.numel if k == d else s for k, s in enumerate(self.shape)]

    def element(idx: list[Poly]) -> Any:
        at = index.int([idx[d]] if index.ndim else [])
        return self.at([*idx[:d], at, *idx[d + 1 :]])

    return build(shape, self.dtype, element)


@means("gather")
def gather(self: Value, dim: int, index: Value, sparse_grad: bool = False) -> Value:
    d = dim_of(self, dim)
    return build(
        index.shape,
        self.dtype,
        lambda idx: self.at([*idx[:d], index.int(idx), *idx[d + 1 :]]),
    )


@means("index", "_unsafe_index")
def index(self: Value, indices: Any) -> Value:
    given = [(d, x) for d, x in enumerate(indices) if x is not None]
    if any(x.kind == "bool" for _, x in given):
        raise NoMeaning("index by truth values")
    shape = broadcast(*(x.shape for _, x in given))
    dims = [d for d, _ in given]
    together = dims == list(range(dims[0], dims[-1] + 1))
    front = dims[0] if together else 0
    rest = [d for d in range(self.ndim) if d not in dims]
    sizes = [self.shape[d] for d in rest]
    out = [*sizes[:front], *shape, *sizes[front:]]

    def element(idx: list[Poly]) -> Any:
        at: list[Any] = [None] * self.ndim
        mid = idx[front : front + len(shape)]
        for d, x in given:
            at[d] = wrapped(x.int(spread(mid, x.shape)), self.shape[d])
        plain = [*idx[:front], *idx[front + len(shape) :]]
        for d, i in zip(rest, plain, strict=True):
            at[d] = i
        return self.at(at)

    return build(out, self.dtype, element)


@means("take_along_dim")
def take_along_dim(self: Value, indices: Value, dim: Any = None) -> Value:
    if dim is None:
        raise NoMeaning("take_along_dim without a dim")
    return gather(self, dim, indices)


def _scattered(join: str) -> Any:
    def f(self: Value, dim: int, index: Value, src: Any = None, value: Any = None, **_: Any) -> Any:
        """Σ over the places whose index says this element; one writer only is not known, so that
        a plain scatter is a function of the whole row."""
        d = dim_of(self, dim)
        if join != "add" or src is None or not isinstance(src, Value):
            raise NoMeaning("scatter_reduce")

        def element(idx: list[Poly]) -> Any:
            def body(j: Poly) -> Any:
                at = [*idx[:d], j, *idx[d + 1 :]]
                return t.mul((src.real(at), 1), (t.ind(t.eq(index.int(at) - idx[d])), 1))

            return t.add((1, self.real(idx)), (1, t.bind("sum", index.shape[d], body)))

        return build(self.shape, self.dtype, element)

    return f


means("scatter_add")(_scattered("add"))


@means("scatter")
def scatter(
    self: Value, dim: int, index: Value, src: Any = None, value: Any = None, reduce: Any = None
) -> Value:
    """Elements replaced where the index says so. Along `dim` there is one writer only, or which of
    several comes last is not known."""
    d = dim_of(self, dim)
    if reduce is not None or (src is None and value is None):
        raise NoMeaning("scatter with a reduction")
    if index.shape[d] is not ONE:
        raise NoMeaning("scatter with several writers")
    require(
        all(k == d or same_size(a, b, "scatter") for k, (a, b) in
            enumerate(zip(index.shape, self.shape, strict=True))),
        "scatter to a part of a tensor",
    )  # fmt: skip

    def element(idx: list[Poly]) -> Any:
        at = [*idx[:d], ZERO, *idx[d + 1 :]]
        new = src.at(at) if src is not None else value
        return t.ite(t.eq(idx[d] - index.int(at)), convert(new, self.kind), self.at(idx))

    return build(self.shape, self.dtype, element)


@means("index_add")
def index_add(self: Value, dim: int, index: Value, source: Value, alpha: Any = 1) -> Value:
    d = dim_of(self, dim)

    def element(idx: list[Poly]) -> Any:
        def body(j: Poly) -> Any:
            at = [*idx[:d], j, *idx[d + 1 :]]
            return t.mul((source.real(at), 1), (t.ind(t.eq(index.int([j]) - idx[d])), 1))

        return t.add((1, self.real(idx)), (alpha, t.bind("sum", index.shape[0], body)))

    return build(self.shape, self.dtype, element)


__all__ = ["torch"]
