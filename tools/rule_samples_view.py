"""Samples for views, slices and joins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from rule_samples import Gen, samples, some

Calls = Iterator[tuple[Any, ...]]


def refactored(g: Gen) -> tuple[list[int], list[int]]:
    """Two shapes of one number of elements, cut differently from the same factors."""
    factors = [g.n(1, 2, 2, 3, 4, 5) for _ in range(g.n(1, 2, 3, 4, 5))]

    def grouped() -> list[int]:
        found = [1]
        for factor in factors:
            if g.flag():
                found.append(factor)
            else:
                found[-1] *= factor
        return found

    return grouped(), grouped()


@samples("view _unsafe_view reshape view_copy _reshape_copy")
def view(g: Gen) -> Calls:
    for _ in range(4):
        source, result = refactored(g)
        yield g.t(*source), result
    yield g.t(2, 3), [3, 2]
    yield g.t(4, 6, 5), [g.n(8, 2, 12, 24), -1]
    yield g.t(g.n(), 0, 3), [0, 5]


@samples("flatten.using_ints")
def flatten(g: Gen) -> Calls:
    x = some(g, 3, 4)
    yield x, g.n(0, 1), g.n(-1, -2)


@samples("ravel squeeze numpy_T msort")
def alone(g: Gen) -> Calls:
    yield (some(g, 1, 2),)
    yield (g.t(g.n(), 1),)


@samples("mT")
def matrix_transposed(g: Gen) -> Calls:
    yield (some(g, 2, 3),)


@samples("t")
def t(g: Gen) -> Calls:
    yield (some(g, 1, 2),)


@samples("squeeze.dim")
def squeeze_dim(g: Gen) -> Calls:
    yield g.t(g.n(), 1, g.n()), g.n(0, 1, -1)


@samples("squeeze.dims")
def squeeze_dims(g: Gen) -> Calls:
    yield g.t(g.n(), 1, g.n(), 1), [1, 3]


@samples("unsqueeze")
def unsqueeze(g: Gen) -> Calls:
    yield some(g, 0, 1, 2, 3), g.n(0, -1)


@samples("unflatten.int")
def unflatten(g: Gen) -> Calls:
    a, b = g.n(), g.n()
    yield g.t(g.n(), a * b, g.n()), g.n(1, -2), [a, b]


@samples("view.dtype")
def view_dtype(g: Gen) -> Calls:
    for dtype in (torch.int64, torch.float32):
        yield some(g, 1, 2, 3), dtype


@samples("expand expand_copy")
def expand(g: Gen) -> Calls:
    shape = g.shape(g.n(1, 2, 3, 4))
    yield g.t(*g.thin(shape)), list(shape)


@samples("expand_as")
def expand_as(g: Gen) -> Calls:
    shape = g.shape(g.n(1, 2, 3, 4))
    yield g.t(*g.thin(shape)), g.t(*shape)


@samples("permute permute_copy")
def permute(g: Gen) -> Calls:
    x = some(g)
    yield x, g.rng.sample(range(x.ndim), x.ndim)


@samples("transpose.int transpose_copy.int swapaxes swapdims")
def two_dims(g: Gen) -> Calls:
    x = some(g, 2, 3, 4)
    one, two = g.rng.sample(range(x.ndim), 2)
    yield (x, one, two)


@samples("diagonal diagonal_copy")
def diagonal(g: Gen) -> Calls:
    x = some(g, 2, 3, 4)
    yield x, g.n(-1, 0, 2), *g.rng.sample(range(x.ndim), 2)


@samples("movedim.int")
def movedim(g: Gen) -> Calls:
    x = some(g)
    yield x, g.dim(x.ndim), g.dim(x.ndim)


@samples("movedim.intlist")
def movedim_list(g: Gen) -> Calls:
    yield some(g, 3, 4), [0, 2], [1, 0]


@samples("select.int select_copy.int")
def select(g: Gen) -> Calls:
    x = g.t(*(g.n() for _ in range(g.n(1, 2, 3))))
    yield x, g.dim(x.ndim), g.n(0, -1)


@samples("flip")
def flip(g: Gen) -> Calls:
    x = some(g)
    yield x, g.dims(x.ndim)


@samples("slice.Tensor slice_copy.Tensor")
def slice_(g: Gen) -> Calls:
    for _ in range(4):
        x = some(g)
        starts = (None, 0, 1, 2, -1, -3, -20)
        ends = (None, 2, 4, -1, 1 << 62, -2)
        yield x, g.dim(x.ndim), g.rng.choice(starts), g.rng.choice(ends), g.n(1, 1, 2, 3)


@samples("slice_scatter")
def slice_scatter(g: Gen) -> Calls:
    x = g.t(g.n(), 7, g.n())
    yield x, g.t(x.shape[0], 3, x.shape[2]), 1, 1, 4
    yield x, g.t(x.shape[0], 4, x.shape[2]), 1, -4
    yield x, g.t(x.shape[0], 4, x.shape[2]), 1, 0, 7, 2


@samples("select_scatter")
def select_scatter(g: Gen) -> Calls:
    x = g.t(g.n(), 7, g.n())
    yield x, g.t(x.shape[0], x.shape[2]), 1, 2


@samples("split.Tensor split_copy.Tensor unsafe_split.Tensor")
def split(g: Gen) -> Calls:
    x = some(g, 2, 3)
    yield x, max(1, x.shape[-1] // g.n(1, 2, 3)), -1
    n = g.n()
    yield g.t(g.n(), 3 * n), n, 1


@samples("split.sizes split split_with_sizes split_with_sizes_copy unsafe_split_with_sizes")
def split_sizes(g: Gen) -> Calls:
    a, b = g.n(), g.n()
    yield g.t(g.n(), a + b), [a, b], g.n(1, -1)
    yield g.t(3 * a, g.n()), [a, a, a], 0


@samples("chunk unsafe_chunk")
def chunk(g: Gen) -> Calls:
    x = some(g, 2, 3)
    yield x, g.n(1, 2, 3), g.dim(x.ndim)


@samples("unbind.int unbind_copy.int")
def unbind(g: Gen) -> Calls:
    x = g.t(*(g.n() for _ in range(g.n(1, 2, 3))))
    yield x, g.dim(x.ndim)


@samples("cat concat")
def cat(g: Gen) -> Calls:
    a, b, n = g.n(), g.n(), g.n()
    yield [g.t(a, n, 3), g.t(b, n, 3)], 0
    yield [g.t(n, a), g.t(n, a), g.t(n, a)], -1
    yield [g.t(0), g.t(n, a), g.t(n, b)], 1


@samples("stack")
def stack(g: Gen) -> Calls:
    shape = g.shape(g.n(0, 1, 2))
    yield [g.t(*shape) for _ in range(g.n(1, 2, 3))], g.dim(len(shape) + 1)


@samples("repeat")
def repeat(g: Gen) -> Calls:
    x = some(g, 1, 2, 3)
    yield x, [g.n(1, 1, 2, 3) for _ in range(x.ndim + g.n(0, 1))]


@samples("repeat_interleave.self_int")
def repeat_interleave(g: Gen) -> Calls:
    x = some(g, 1, 2, 3)
    dim, times = g.rng.randrange(x.ndim), g.n(1, 2, 3)
    yield x, times, dim, {"output_size": g.maybe(x.shape[dim] * times)}
    yield g.t(g.n()), times
    yield g.t(2, 3), times


@samples("repeat_interleave.self_Tensor")
def repeat_interleave_tensor(g: Gen) -> Calls:
    n = g.n()
    yield g.t(n, g.n()), g.ints(3, n), 0
