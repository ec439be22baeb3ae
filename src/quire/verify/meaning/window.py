"""Convolutions, pools and resampling: reads within a window around each index."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from quire.verify import term as t
from quire.verify.decide import divmod_, minimum
from quire.verify.meaning.contraction import sum_over
from quire.verify.meaning.reduce import extreme_over
from quire.verify.meaning.table import means
from quire.verify.poly import ZERO, Poly, poly
from quire.verify.value import NoMeaning, Value, build


def each(value: Any, n: int) -> list[Any]:
    """A number, or a list of one or n, as a list of n."""
    items = list(value) if isinstance(value, list | tuple) else [value]
    return items * n if len(items) == 1 else items


def _padded(padding: Any, kernel: list[Poly], dilation: list[int], n: int) -> list[tuple[int, int]]:
    if isinstance(padding, str):
        if padding == "valid":
            return [(0, 0)] * n
        total = [d * ((k.constant or 0) - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [(x // 2, x - x // 2) for x in total]
    return [(p, p) for p in each(padding, n)]


def length(size: Poly, k: Any, stride: int, pad: tuple[int, int], dilation: int) -> Poly:
    reach = (poly(k) - 1) * dilation + 1
    return divmod_(size + (pad[0] + pad[1]) - reach, poly(stride))[0] + 1


def inside(at: list[Poly], sizes: Any) -> t.Term:
    return t.and_(*(c for i, s in zip(at, sizes, strict=True) for c in (t.ge(i), t.ge(s - 1 - i))))


@means("conv1d", "conv2d", "conv3d")
def conv(
    input: Value, weight: Value, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Value:  # fmt: skip
    x, n = input, weight.ndim - 2
    if x.ndim != n + 2:
        raise NoMeaning("convolution without a batch dim")
    stride, dilation = each(stride, n), each(dilation, n)
    kernel = list(weight.shape[2:])
    pads = _padded(padding, kernel, dilation, n)
    per_in, per_out = weight.shape[1], divmod_(weight.shape[0], poly(groups))[0]
    sizes = [length(*a) for a in zip(x.shape[2:], kernel, stride, pads, dilation, strict=True)]

    def element(idx: list[Poly]) -> Any:
        group = divmod_(idx[1], per_out)[0] if groups != 1 else ZERO

        def body(js: list[Poly]) -> Any:
            at = [
                i * s - p[0] + k * d
                for i, s, p, k, d in zip(idx[2:], stride, pads, js[1:], dilation, strict=True)
            ]
            return t.mul(
                (x.real([idx[0], group * per_in + js[0], *at]), 1),
                (weight.real([idx[1], js[0], *js[1:]]), 1),
                (t.ind(inside(at, x.shape[2:])), 1),
            )

        total = sum_over([per_in, *kernel], body)
        return total if bias is None else t.add((1, total), (1, bias.real([idx[1]])))

    return build([x.shape[0], weight.shape[0], *sizes], x.dtype, element)


@means("convolution")
def convolution(
    input: Value, weight: Value, bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int,
) -> Value:  # fmt: skip
    if transposed:
        return conv_transpose(
            input, weight, bias, stride, padding, output_padding, groups, dilation
        )
    return conv(input, weight, bias, stride, padding, dilation, groups)


@means("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(
    input: Value, weight: Value, bias: Any = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Value:  # fmt: skip
    """out[o] sums x[i]·w[k] over the taps k with o = i·stride − padding + k·dilation."""
    x, n = input, weight.ndim - 2
    stride, dilation = each(stride, n), each(dilation, n)
    pads, extra = each(padding, n), each(output_padding, n)
    kernel, per_out = list(weight.shape[2:]), weight.shape[1]
    per_in = divmod_(x.shape[1], poly(groups))[0]
    sizes = [
        (s - 1) * st - 2 * p + (k - 1) * d + e + 1
        for s, st, p, k, d, e in zip(
            x.shape[2:], stride, pads, kernel, dilation, extra, strict=True
        )
    ]

    def element(idx: list[Poly]) -> Any:
        group = divmod_(idx[1], per_out)[0] if groups != 1 else ZERO
        channel = idx[1] - group * per_out

        def body(js: list[Poly]) -> Any:
            at, conditions = [], []
            for i, st, p, k, d, s in zip(
                idx[2:], stride, pads, js[1:], dilation, x.shape[2:], strict=True
            ):
                q, r = divmod_(i + p - k * d, poly(st))
                at.append(q)
                conditions += [t.eq(r), t.ge(q), t.ge(s - 1 - q)]
            channel_in = group * per_in + js[0]
            return t.mul(
                (x.real([idx[0], channel_in, *at]), 1),
                (weight.real([channel_in, channel, *js[1:]]), 1),
                (t.ind(t.and_(*conditions)), 1),
            )

        total = sum_over([per_in, *kernel], body)
        return total if bias is None else t.add((1, total), (1, bias.real([idx[1]])))

    return build([x.shape[0], per_out * groups, *sizes], x.dtype, element)


def _pool_sizes(
    x: Value, n: int, kernel: list[int], stride: list[int], pads: list[int], dilation: list[int],
    ceil: bool,
) -> list[Poly]:  # fmt: skip
    sizes = []
    for s, k, st, p, d in zip(x.shape[-n:], kernel, stride, pads, dilation, strict=True):
        if not ceil:
            sizes.append(length(s, k, st, (p, p), d))
            continue
        if s.constant is None:
            raise NoMeaning("a pool with ceil_mode over a symbolic size")
        count = -(-(s.constant + 2 * p - d * (k - 1) - 1) // st) + 1
        sizes.append(poly(count - 1 if (count - 1) * st >= s.constant + p else count))
    return sizes


def _pool(n: int) -> tuple[Callable[..., Value], Callable[..., Value]]:
    def avg(
        self: Value, kernel_size: Any, stride: Any = (), padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: Any = None,
    ) -> Value:  # fmt: skip
        x, kernel = self, each(kernel_size, n)
        step, pads = each(stride, n) if stride else kernel, each(padding, n)
        if ceil_mode or (any(pads) and not count_include_pad) or divisor_override:
            raise NoMeaning("avg_pool with a count that differs at the borders")
        sizes = _pool_sizes(x, n, kernel, step, pads, [1] * n, False)
        count = Fraction(1)
        for k in kernel:
            count /= k

        def element(idx: list[Poly]) -> Any:
            def body(js: list[Poly]) -> Any:
                at = [i * s - p + j for i, s, p, j in zip(idx[-n:], step, pads, js, strict=True)]
                own = x.real([*idx[:-n], *at])
                return t.mul((own, 1), (t.ind(inside(at, x.shape[-n:])), 1))

            return t.mul((t.const(count), 1), (sum_over([poly(k) for k in kernel], body), 1))

        return build([*x.shape[:-n], *sizes], x.dtype, element)

    def largest(
        self: Value, kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> Value:  # fmt: skip
        x, kernel = self, each(kernel_size, n)
        step, pads = each(stride, n) if stride else kernel, each(padding, n)
        reach = each(dilation, n)
        sizes = _pool_sizes(x, n, kernel, step, pads, reach, ceil_mode)

        def element(idx: list[Poly]) -> Any:
            def body(js: list[Poly]) -> Any:
                at = [
                    i * s - p + j * d
                    for i, s, p, j, d in zip(idx[-n:], step, pads, js, reach, strict=True)
                ]
                return t.ite(inside(at, x.shape[-n:]), x.real([*idx[:-n], *at]), t.NINF)

            return extreme_over("max", [poly(k) for k in kernel], body)

        return build([*x.shape[:-n], *sizes], x.dtype, element)

    return avg, largest


for _n in (1, 2, 3):
    _avg, _largest = _pool(_n)
    means(f"avg_pool{_n}d")(_avg)
    means(f"max_pool{_n}d")(_largest)


@means("max_pool2d_with_indices")
def max_pool2d_with_indices(**_: Any) -> Value:
    raise NoMeaning("max_pool2d_with_indices")


@means("adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def adaptive(self: Value, output_size: Any) -> Value:
    x, n = self, len(output_size)
    sizes = list(x.shape[-n:])
    if any(o not in (1, s.constant) for o, s in zip(output_size, sizes, strict=True)):
        raise NoMeaning("adaptive_avg_pool to sizes other than 1")
    taps = [poly(1) if s.constant == o else s for o, s in zip(output_size, sizes, strict=True)]

    def element(idx: list[Poly]) -> Any:
        def body(js: list[Poly]) -> Any:
            at = [j if s is k else i for i, j, s, k in zip(idx[-n:], js, sizes, taps, strict=True)]
            return x.real([*idx[:-n], *at])

        count = t.of_int(poly(1))
        for k in taps:
            count = t.mul((count, 1), (t.of_int(k), 1))
        return t.mul((sum_over(taps, body), 1), (count, -1))

    return build([*x.shape[:-n], *output_size], x.dtype, element)


def _nearest(n: int) -> Callable[..., Value]:
    def f(
        self: Value = None, output_size: Any = None, scale_factors: Any = None,  # type: ignore[assignment]
        input: Any = None, **scales: Any,
    ) -> Value:  # fmt: skip
        x = self if self is not None else input
        given = [scales[k] for k in ("scales", "scales_d", "scales_h", "scales_w") if k in scales]
        factors = scale_factors or (given if given and all(g is not None for g in given) else None)
        if output_size is not None:
            pairs = zip(output_size, x.shape[-n:], strict=True)
            ratios = [divmod_(poly(o), s) for o, s in pairs]
            if any(r.constant != 0 or q.constant is None for q, r in ratios):
                raise NoMeaning("nearest resampling by a ratio that is no whole number")
            whole = [q.constant for q, _ in ratios]
        else:
            whole = [int(f) for f in factors or ()]
        if factors is not None and any(float(f) != w for f, w in zip(factors, whole, strict=True)):
            raise NoMeaning("nearest resampling by a ratio that is no whole number")
        shape = [s * w for s, w in zip(x.shape[-n:], whole, strict=True)]

        def element(idx: list[Poly]) -> Any:
            at = [divmod_(i, poly(w))[0] for i, w in zip(idx[-n:], whole, strict=True)]
            return x.at([*idx[:-n], *at])

        return build([*x.shape[:-n], *shape], x.dtype, element)

    return f


for _n in (1, 2, 3):
    means(f"upsample_nearest{_n}d")(_nearest(_n))


@means("upsample_bilinear2d")
def bilinear(
    input: Value, output_size: Any = None, align_corners: bool = False, scale_factors: Any = None,
    scales_h: Any = None, scales_w: Any = None,
) -> Value:  # fmt: skip
    """A weighted mean of four neighbours; sizes must be known, as the weights follow from them."""
    x = input
    sizes: list[Any] = [s.constant for s in x.shape[-2:]]
    out = output_size or [int(s * f) for s, f in zip(sizes, scale_factors, strict=True)]
    goal: list[Any] = [poly(o).constant for o in out]
    if align_corners or any(v is None for v in (*sizes, *goal)):
        raise NoMeaning("bilinear resampling of symbolic sizes, or with align_corners")

    def element(idx: list[Poly]) -> Any:
        ends = []
        for i, s, o in zip(idx[-2:], sizes, goal, strict=True):
            # The source is at ((2i + 1)·s − o) / 2o, cut below at 0.
            place = (i * 2 + 1) * s - o
            place = t.ite(t.ge(place), place, ZERO)
            low = divmod_(place, poly(2 * o))[0]
            high = minimum(low + 1, poly(s - 1))
            part = t.mul((t.of_int(place - low * (2 * o)), 1), (t.const(Fraction(1, 2 * o)), 1))
            ends.append(((low, t.add((1, t.ONE_), (-1, part))), (high, part)))
        return t.add(
            *(
                (1, t.mul((x.real([*idx[:-2], h, w]), 1), (a, 1), (b, 1)))
                for (h, a), (w, b) in itertools.product(*ends)
            )
        )

    return build([*x.shape[:-2], *goal], x.dtype, element)
