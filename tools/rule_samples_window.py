"""Samples for convolutions, pooling, padding and resizing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rule_samples import Gen, samples

Calls = Iterator[tuple[Any, ...]]


def conv(g: Gen, spatial: int, *, named: bool = False) -> tuple[Any, ...]:
    groups, wide_in, wide_out = g.n(1, 1, 2, 3), g.n(1, 2, 3), g.n(1, 2, 3)
    kernel = [g.n(1, 2, 3, 4) for _ in range(spatial)]
    dilation = [g.n(1, 1, 2) for _ in range(spatial)]
    size = [d * (k - 1) + g.n(1, 2, 3, 5, 7, 9) for k, d in zip(kernel, dilation, strict=True)]
    stride: list[int] = [g.n(1, 2, 3) for _ in range(spatial)]
    padding: Any = [g.n(0, 1, 2) for _ in range(spatial)]
    if named:
        padding = g.rng.choice(["valid", "same"])
        stride = stride if padding == "valid" else [1] * spatial
    channels = groups * wide_out
    lead = (g.n(1, 2, 5),) if g.rng.random() < 0.8 else ()
    source = g.t(*lead, groups * wide_in, *size)
    weight = g.t(channels, wide_in, *kernel)
    return source, weight, g.maybe(g.t(channels)), stride, padding, dilation, groups


def transposed(g: Gen, spatial: int) -> tuple[Any, ...]:
    x, w, _, stride, _, dilation, groups = conv(g, spatial)
    wide = g.n(1, 2, 3)
    turned = g.t(x.shape[-1 - spatial], wide, *w.shape[2:])
    zeros = [0] * spatial
    return x, turned, g.maybe(g.t(wide * groups)), stride, zeros, zeros, groups, dilation


def max_pool(g: Gen, spatial: int) -> tuple[Any, ...]:
    kernel = [g.n(1, 2, 3, 4) for _ in range(spatial)]
    size = [k + g.n(1, 2, 3, 5, 7) for k in kernel]
    stride = g.rng.choice([[], [g.n(1, 2, 3) for _ in range(spatial)]])
    padding = [g.rng.randint(0, k // 2) for k in kernel]
    lead = [g.n() for _ in range(g.n(1, 2))]
    return g.t(*lead, *size), kernel, stride, padding, 1, g.flag()


def avg_pool(g: Gen, spatial: int) -> tuple[Any, ...]:
    x, kernel, stride, padding, _, ceil = max_pool(g, spatial)
    more = () if spatial == 1 else (g.maybe(3),)
    return x, kernel, stride, padding, ceil, g.flag(), *more


def adaptive(g: Gen, spatial: int) -> tuple[Any, ...]:
    out = [g.n(1, 2, 3) for _ in range(spatial)]
    size = [n * g.n(1, 2, 3) + g.n(0, 0, 1) for n in out]
    return g.t(g.n(), g.n(), *size), out


def nearest(g: Gen, spatial: int) -> tuple[Any, ...]:
    size = [g.n(1, 2, 3, 5) for _ in range(spatial)]
    out = [n * g.n(1, 2, 3, 4) + g.n(0, 0, 1) for n in size]
    return g.t(g.n(), g.n(), *size), out


def nearest_vec(g: Gen, spatial: int) -> tuple[Any, ...]:
    x, out = nearest(g, spatial)
    if g.flag():
        return x, out, None
    return x, None, [float(g.n(1, 2, 3)) for _ in range(spatial)]


def smooth(g: Gen, spatial: int) -> tuple[Any, ...]:
    return *nearest(g, spatial), g.flag()


def smooth_vec(g: Gen, spatial: int) -> tuple[Any, ...]:
    x, out = nearest(g, spatial)
    return x, out, g.flag(), None


def mirror_pad(g: Gen, spatial: int) -> tuple[Any, ...]:
    size = [g.n(3, 4, 5) for _ in range(spatial)]
    return g.t(g.n(), g.n(), *size), [g.n(0, 1, 2) for _ in range(2 * spatial)]


def register(name: str, make: Any, spatial: int, **more: Any) -> None:
    def one(g: Gen) -> Calls:
        yield make(g, spatial, **more)

    samples(name)(one)


for n, smooth_name in ((1, "linear"), (2, "bilinear"), (3, "trilinear")):
    register(f"conv{n}d", conv, n)
    register(f"conv{n}d.padding", conv, n, named=True)
    register(f"conv_transpose{n}d" + (".input" if n > 1 else ""), transposed, n)
    register(f"max_pool{n}d max_pool{n}d_with_indices", max_pool, n)
    register(f"avg_pool{n}d", avg_pool, n)
    register(f"adaptive_avg_pool{n}d adaptive_max_pool{n}d", adaptive, n)
    register(f"upsample_nearest{n}d", nearest, n)
    register(f"upsample_nearest{n}d.vec", nearest_vec, n)
    register(f"upsample_{smooth_name}{n}d", smooth, n)
    register(f"upsample_{smooth_name}{n}d.vec", smooth_vec, n)
    register(f"reflection_pad{n}d replication_pad{n}d", mirror_pad, n)
register("_adaptive_avg_pool2d", adaptive, 2)
register("_adaptive_avg_pool3d", adaptive, 3)
register("upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa", smooth, 2)
register(
    "upsample_bicubic2d.vec _upsample_bilinear2d_aa.vec _upsample_bicubic2d_aa.vec", smooth_vec, 2
)


@samples("convolution")
def convolution(g: Gen) -> Calls:
    x, w, b, stride, padding, dilation, groups = conv(g, 2)
    x = x if x.ndim == 4 else x[None]
    yield x, w, b, stride, padding, dilation, False, [0, 0], groups
    x, w, b, stride, padding, _, groups, dilation = transposed(g, 2)
    x = x if x.ndim == 4 else x[None]
    yield x, w, b, stride, padding, dilation, True, [0, 0], groups


def pads(g: Gen, x: Any) -> list[int]:
    found = [g.n(-1, 0, 0, 1, 2, 5) for _ in range(2 * g.rng.randint(1, x.ndim))]
    for i in range(0, len(found), 2):
        size = x.shape[-1 - i // 2]
        if found[i] + found[i + 1] + size < 1 or found[i] < -size or found[i + 1] < -size:
            found[i : i + 2] = [0, 1]
    return found


@samples("pad")
def pad(g: Gen) -> Calls:
    x = g.t(*(g.n() for _ in range(g.n(1, 2, 3, 4))))
    yield x, pads(g, x), "constant", g.maybe(float(g.n(1, 2)))
    image = g.t(g.n(), g.n(), g.n(3, 4, 5))
    yield image, [g.n(0, 1, 2), g.n(0, 1, 2)], g.rng.choice(["reflect", "replicate", "circular"])


@samples("constant_pad_nd")
def constant_pad(g: Gen) -> Calls:
    x = g.t(*(g.n() for _ in range(g.n(1, 2, 3, 4))))
    yield x, pads(g, x), g.n(0, 1, 2)


@samples("roll")
def roll(g: Gen) -> Calls:
    x = g.t(*g.shape(g.n(1, 2, 3)))
    dims = g.dims(x.ndim)
    yield x, [g.n(-2, 1, 3) for _ in dims], dims
    yield x, [2], []


@samples("pixel_shuffle")
def pixel_shuffle(g: Gen) -> Calls:
    yield g.t(*g.shape(g.n(0, 1, 2)), 4 * g.n(), g.n(), g.n()), 2


@samples("pixel_unshuffle")
def pixel_unshuffle(g: Gen) -> Calls:
    yield g.t(*g.shape(g.n(0, 1, 2)), g.n(), 2 * g.n(), 2 * g.n()), 2


@samples("channel_shuffle")
def channel_shuffle(g: Gen) -> Calls:
    yield g.t(g.n(), 2 * g.n(), g.n(), g.n()), 2


@samples("im2col")
def im2col(g: Gen) -> Calls:
    lead = [g.n(2, 3)] if g.flag() else []
    yield g.t(*lead, g.n(), g.n(3, 5), g.n(3, 4)), [2, 3], [1, 1], [0, 1], [1, 2]


@samples("col2im")
def col2im(g: Gen) -> Calls:
    lead = [g.n(2, 3)] if g.flag() else []
    yield g.t(*lead, 4 * g.n(), 12), [4, 5], [2, 2], [1, 1], [0, 0], [1, 1]


@samples("unfold unfold_copy")
def unfold(g: Gen) -> Calls:
    x = g.t(*(g.n(3, 4, 5, 7) for _ in range(g.n(1, 2, 3))))
    yield x, g.dim(x.ndim), g.n(1, 2, 3), g.n(1, 2, 3)


@samples("grid_sampler")
def grid_sampler(g: Gen) -> Calls:
    n = g.n()
    yield g.t(n, g.n(), g.n(), g.n()), g.t(n, g.n(), g.n(), 2), g.n(0, 1), g.n(0, 1), g.flag()
    yield g.t(n, 2, 3, 4, 5), g.t(n, 2, 3, 4, 3), 0, 0, g.flag()


@samples("grid_sampler_3d")
def grid_sampler_3d(g: Gen) -> Calls:
    n = g.n()
    yield g.t(n, 2, 3, 4, 5), g.t(n, 2, 3, 4, 3), g.n(0, 1), g.n(0, 1), g.flag()


@samples("grid_sampler_2d")
def grid_sampler_2d(g: Gen) -> Calls:
    n = g.n()
    yield g.t(n, g.n(), g.n(), g.n()), g.t(n, g.n(), g.n(), 2), g.n(0, 1), g.n(0, 1), g.flag()
