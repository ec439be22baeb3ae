"""Samples for indexing, sorting, scans, tensors made from sizes, and odd pointwise ops."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from rule_samples import Gen, samples, some

Calls = Iterator[tuple[Any, ...]]


@samples("embedding")
def embedding(g: Gen) -> Calls:
    rows = g.n()
    yield g.t(rows, g.n()), g.ints(rows, *g.shape(g.n(0, 1, 2, 3)))


@samples("index_select")
def index_select(g: Gen) -> Calls:
    x = g.t(g.n(), g.n(), g.n())
    dim = g.dim(3)
    yield x, dim, g.ints(x.shape[dim], g.n())


@samples("gather")
def gather(g: Gen) -> Calls:
    x, dim = g.t(g.n(3, 5), g.n(2, 3), g.n(4, 7)), g.dim(3)
    shape = [g.rng.randint(1, s) for s in x.shape]
    shape[dim] = g.n()
    yield x, dim, g.ints(x.shape[dim], *shape)


@samples("take_along_dim")
def take_along_dim(g: Gen) -> Calls:
    x = g.t(g.n(), g.n(3, 5), 1)
    yield x, g.ints(3, g.rng.choice([1, x.shape[0]]), g.n(), g.n()), 1
    yield x, g.ints(3, 2), None


@samples("take")
def take(g: Gen) -> Calls:
    yield g.t(3, 5), g.ints(15, *g.shape(2))


@samples("topk")
def topk(g: Gen) -> Calls:
    x = g.t(*(g.n(3, 4, 5) for _ in range(g.n(1, 2, 3))))
    yield x, g.n(1, 2, 3), g.dim(x.ndim)


@samples("sort argsort")
def sort(g: Gen) -> Calls:
    x = some(g, 0, 1, 2, 3)
    yield x, g.dim(x.ndim), g.flag()


@samples("sort.stable argsort.stable")
def sort_stable(g: Gen) -> Calls:
    x = some(g, 1, 2, 3)
    yield x, {"stable": True, "dim": g.dim(x.ndim)}


def indices(g: Gen, x: torch.Tensor) -> list[Any]:
    shape = tuple(g.n() for _ in range(g.n(1, 2)))
    found: list[Any] = [None] * x.ndim
    for d in g.dims(x.ndim):
        found[d] = g.ints(x.shape[d], *g.thin(shape))
    while found and found[-1] is None:
        found.pop()
    return found


@samples("_unsafe_index.Tensor")
def index(g: Gen) -> Calls:
    for _ in range(4):
        x = g.t(*(g.n() for _ in range(g.n(1, 2, 3, 4))))
        yield x, indices(g, x)


@samples("index.Tensor")
def index_mask(g: Gen) -> Calls:
    yield from index(g)
    x = g.t(g.n(), g.n(3, 5), g.n())
    yield x, [None, g.mask(x.shape[1])]
    yield x, [g.mask(*x.shape[:2])]


@samples("_unsafe_index_put")
def index_put(g: Gen) -> Calls:
    for accumulate in (True, False):
        x = g.t(*(g.n() for _ in range(g.n(1, 2, 3, 4))))
        found = indices(g, x)
        shape = x[tuple(slice(None) if i is None else i for i in found)].shape
        yield x, found, g.t(*(g.thin(tuple(shape)) if accumulate else [])), accumulate


@samples("index_put")
def index_put_mask(g: Gen) -> Calls:
    yield from index_put(g)
    x = g.t(g.n(), g.n(3, 5), g.n())
    yield x, [None, g.mask(x.shape[1])], g.t(x.shape[2])


@samples("index_add index_copy")
def index_add(g: Gen) -> Calls:
    x = g.t(g.n(), g.n(4, 5), g.n())
    places = torch.randperm(x.shape[1], generator=g.torch)[:3]
    yield x, 1, places, g.t(x.shape[0], 3, x.shape[2])


@samples("index_reduce")
def index_reduce(g: Gen) -> Calls:
    x = g.t(g.n(), g.n(4, 5), g.n())
    yield x, 1, g.ints(x.shape[1], 3), g.t(x.shape[0], 3, x.shape[2]), "amax"


@samples("index_fill.int_Scalar")
def index_fill(g: Gen) -> Calls:
    x = g.t(g.n(), g.n(3, 5))
    yield x, 1, g.ints(x.shape[1], 2), 3.0


@samples("index_fill.int_Tensor")
def index_fill_tensor(g: Gen) -> Calls:
    x = g.t(g.n(), g.n(3, 5))
    yield x, 1, g.ints(x.shape[1], 2), torch.tensor(3.0, dtype=torch.float64)


def scattered(g: Gen) -> tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]:
    x, dim = g.t(g.n(3, 5), g.n(2, 3), g.n(4, 7)), g.rng.randrange(3)
    shape = [g.rng.choice([s, s, s - 1]) for s in x.shape]
    # Distinct places: of two values for one place, torch keeps either.
    order = g.t(*x.shape).argsort(dim)
    index = order[tuple(slice(0, s) for s in shape)]
    return x, dim, index, g.t(*(s + g.n(0, 1) for s in shape))


@samples("scatter.src scatter_add")
def scatter(g: Gen) -> Calls:
    yield scattered(g)


@samples("scatter.value")
def scatter_value(g: Gen) -> Calls:
    yield *scattered(g)[:3], 2.5


@samples("scatter.value_reduce")
def scatter_value_reduce(g: Gen) -> Calls:
    yield *scattered(g)[:3], 2.5, {"reduce": "add"}


@samples("scatter.reduce")
def scatter_reduce(g: Gen) -> Calls:
    yield *scattered(g), {"reduce": "multiply"}


@samples("scatter_reduce.two")
def scatter_reduce_two(g: Gen) -> Calls:
    yield *scattered(g), "amax"


@samples("one_hot")
def one_hot(g: Gen) -> Calls:
    yield g.ints(4, *(g.n() for _ in range(g.n(0, 1, 2)))), g.n(-1, 4, 5)


@samples("bucketize.Tensor")
def bucketize(g: Gen) -> Calls:
    yield some(g, 0, 1, 2), g.t(5).sort().values


@samples("searchsorted.Tensor")
def searchsorted(g: Gen) -> Calls:
    rows = g.n()
    yield g.t(5).sort().values, g.t(rows, g.n())
    yield g.t(rows, 5).sort().values, g.t(rows, g.n())


@samples("isin.Tensor_Tensor")
def isin(g: Gen) -> Calls:
    yield g.ints(5, *g.shape(2)), g.ints(5, 3)


@samples("isin.Tensor_Scalar")
def isin_scalar(g: Gen) -> Calls:
    yield g.ints(5, *g.shape(2)), 3


@samples("cumsum cumprod cummax cummin logcumsumexp")
def scan(g: Gen) -> Calls:
    x = some(g, 1, 2, 3)
    yield x, g.dim(x.ndim)


@samples("diff")
def diff(g: Gen) -> Calls:
    x = g.t(*(g.n(4, 5, 7) for _ in range(g.n(1, 2, 3))))
    yield x, g.n(1, 2), -1
    yield x, 1, -1, x[..., :1].clone()
    yield x, 1, 0, None, x[:2].clone()


@samples("full")
def full(g: Gen) -> Calls:
    yield list(g.shape(g.n(0, 1, 2, 3))), 1.5


@samples("zeros ones empty.memory_format")
def zeros(g: Gen) -> Calls:
    yield (list(g.shape(g.n(0, 1, 2, 3))),)


@samples("new_zeros new_ones new_empty")
def new_zeros(g: Gen) -> Calls:
    yield g.t(3), list(g.shape(g.n(0, 1, 2, 3)))


@samples("new_full")
def new_full(g: Gen) -> Calls:
    yield g.t(3), list(g.shape(g.n(0, 1, 2, 3))), 2.5


@samples("arange")
def arange(g: Gen) -> Calls:
    yield (g.n(0, 1, 5, 11),)
    yield 7, {"dtype": torch.float32}
    yield (4.5,)


@samples("arange.start")
def arange_start(g: Gen) -> Calls:
    yield g.n(-2, 0, 3), g.n(4, 7, 11)


@samples("arange.start_step")
def arange_step(g: Gen) -> Calls:
    yield g.n(-2, 0, 3), g.n(4, 7, 11), g.n(1, 2, 3)
    yield 9, -3, -g.n(1, 2, 5)
    yield 0.0, 1.0, 0.1


@samples("tril triu")
def triangle(g: Gen) -> Calls:
    yield some(g, 2, 3), g.n(-2, 0, 0, 1, 3)


@samples("clamp clamp_min clamp_max")
def clamp(g: Gen) -> Calls:
    yield some(g), 0.3


@samples("clamp.Tensor")
def clamp_tensor(g: Gen) -> Calls:
    shape = g.shape(g.n(1, 2, 3))
    yield g.t(*shape), g.t(*g.thin(shape)), g.maybe(g.t(*g.thin(shape)))


@samples("div.Tensor_mode")
def div_mode(g: Gen) -> Calls:
    shape = g.shape(g.n(1, 2, 3))
    yield g.t(*g.thin(shape)), g.t(*shape), {"rounding_mode": g.rng.choice(["floor", "trunc"])}


@samples("div.Scalar_mode")
def div_scalar_mode(g: Gen) -> Calls:
    yield some(g), 0.7, {"rounding_mode": g.rng.choice(["floor", "trunc"])}


@samples("round.decimals")
def round_decimals(g: Gen) -> Calls:
    yield some(g), {"decimals": 1}


@samples("where.self")
def where(g: Gen) -> Calls:
    shape = g.shape(g.n(1, 2, 3))
    yield g.mask(*g.thin(shape)), g.t(*shape), g.t(*g.thin(shape))


@samples("where.ScalarOther")
def where_scalar(g: Gen) -> Calls:
    shape = g.shape(g.n(1, 2, 3))
    yield g.mask(*shape), g.t(*g.thin(shape)), -math.inf


@samples("where.ScalarSelf")
def where_scalar_self(g: Gen) -> Calls:
    shape = g.shape(g.n(1, 2, 3))
    yield g.mask(*shape), 2.0, g.t(*g.thin(shape))


@samples("where.Scalar")
def where_scalars(g: Gen) -> Calls:
    yield g.mask(*g.shape(2)), 2.0, 3.0


@samples("masked_fill.Scalar")
def masked_fill(g: Gen) -> Calls:
    shape = g.shape(g.n(1, 2, 3))
    yield g.t(*shape), g.mask(*g.thin(shape)), -1.0


@samples("masked_fill.Tensor")
def masked_fill_tensor(g: Gen) -> Calls:
    shape = g.shape(g.n(1, 2, 3))
    yield g.t(*shape), g.mask(*g.thin(shape)), torch.tensor(2.0, dtype=torch.float64)


@samples("prelu")
def prelu(g: Gen) -> Calls:
    x = some(g, 2, 3)
    yield x, g.t(g.rng.choice([1, x.shape[1]]))


@samples("dropout")
def dropout(g: Gen) -> Calls:
    yield some(g), 0.5, False


@samples("native_dropout")
def native_dropout(g: Gen) -> Calls:
    yield some(g), 0.5, False


@samples("_assert_tensor_metadata")
def assertion(g: Gen) -> Calls:
    yield some(g), None, None, torch.float64


@samples("to.dtype")
def to_dtype(g: Gen) -> Calls:
    yield some(g), torch.float32


@samples("to.device")
def to_device(g: Gen) -> Calls:
    yield some(g), torch.device("cpu"), torch.float32


@samples("_to_copy to.dtype_layout")
def to_copy(g: Gen) -> Calls:
    yield some(g), {"dtype": torch.int64}
