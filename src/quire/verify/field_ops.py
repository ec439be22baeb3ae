"""What ops do with field elements; those not listed are not run exactly."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from quire.verify import field


class Unsupported(Exception):
    """An op that has no exact form."""


NATIVE = {
    "copy_", "clone", "empty", "empty_strided", "empty_like", "new_empty", "cat", "stack",
    "index_select", "index", "embedding", "gather", "constant_pad_nd", "repeat", "flip", "roll",
    "where", "detach", "_reshape_alias", "_unsafe_view", "resize_", "set_", "slice_scatter",
    "select_scatter", "tril", "triu", "take", "reflection_pad2d", "replication_pad2d", "split",
    "unbind", "alias", "lift_fresh", "unfold", "_local_scalar_dense", "upsample_nearest2d",
}  # fmt: skip
"""Ops that move elements, and do nothing else with them: zero is zero in the field too."""

Given = Any


def plainly(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with torch's ops in it doing what they do on plain numbers."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return function(*args, **kwargs)

    return run


def number(x: Given) -> Tensor:
    if isinstance(x, Tensor):
        return x if x.is_floating_point() else field.encoded(x)
    return torch.full((), field.encode(x), dtype=torch.float64)


def add(a: Given, b: Given, alpha: Any = 1) -> Tensor:
    b = number(b)
    return field.add(number(a), b if alpha == 1 else field.multiply(b, number(alpha)))


def sub(a: Given, b: Given, alpha: Any = 1) -> Tensor:
    return add(a, b, -alpha)


def mul(a: Given, b: Given) -> Tensor:
    return field.multiply(number(a), number(b))


def div(a: Given, b: Given, rounding_mode: Any = None) -> Tensor:
    if rounding_mode is not None:
        raise Unsupported("a rounded quotient")
    return field.multiply(number(a), field.inverse(number(b)))


def mm(a: Tensor, b: Tensor) -> Tensor:
    if a.shape[-1] > field.MOST_TERMS:
        raise Unsupported(f"a product of {a.shape[-1]} terms")
    return field.bilinear(a, b, torch.matmul)


def addmm(c: Tensor, a: Tensor, b: Tensor, beta: Any = 1, alpha: Any = 1) -> Tensor:
    product = mm(a, b) if alpha == 1 else mul(mm(a, b), alpha)
    if beta == 0:
        return product
    return add(c if beta == 1 else mul(c, beta), product)


def dims_of(x: Tensor, dim: Any) -> list[int]:
    if dim is None or (isinstance(dim, list | tuple) and not dim):
        return list(range(x.dim()))
    return [d % x.dim() for d in (dim if isinstance(dim, list | tuple) else [dim])]


def sum_(x: Tensor, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    return field.total(number(x), dims_of(x, dim), keepdim)


def mean(x: Tensor, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    dims = dims_of(x, dim)
    return div(sum_(x, dims, keepdim), math.prod(x.shape[d] for d in dims))


def softmax(x: Tensor, dim: int, half: Any = None) -> Tensor:
    top = field.exp(x)
    return div(top, sum_(top, dim, True))


def rsqrt(x: Tensor) -> Tensor:
    return field.function("rsqrt", x)


def _normal(x: Tensor, dims: list[int], eps: float) -> Tensor:
    centred = sub(x, mean(x, dims, True))
    variance = mean(mul(centred, centred), dims, True)
    return mul(centred, rsqrt(add(variance, eps)))


def layer_norm(x: Tensor, shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    out = _normal(x, list(range(x.dim() - len(shape), x.dim())), eps)
    out = out if weight is None else mul(out, weight)
    gone = torch.zeros(())
    return (out if bias is None else add(out, bias)), gone, gone


def rms_norm(x: Tensor, shape: Any, weight: Any = None, eps: Any = None) -> Tensor:
    dims = list(range(x.dim() - len(shape), x.dim()))
    tiny = torch.finfo(torch.float32).eps if eps is None else eps
    out = mul(x, rsqrt(add(mean(mul(x, x), dims, True), tiny)))
    return out if weight is None else mul(out, weight)


def group_norm(
    x: Tensor, weight: Any, bias: Any, n: int, channels: int, size: int, groups: int, eps: float
) -> Any:
    rows = _normal(x.reshape(n, groups, -1), [2], eps).reshape(x.shape)
    wide = [1, channels] + [1] * (x.dim() - 2)
    rows = rows if weight is None else mul(rows, weight.view(wide))
    gone = torch.zeros(())
    return (rows if bias is None else add(rows, bias.view(wide))), gone, gone


def convolution(
    x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int,
) -> Tensor:  # fmt: skip
    def product(a: Tensor, b: Tensor) -> Tensor:
        return torch.ops.aten.convolution.default(
            a, b, None, stride, padding, dilation, transposed, output_padding, groups
        )

    with _disable_current_modes():
        out = field.bilinear(x, weight, product)
    return out if bias is None else add(out, bias.view([1, -1] + [1] * (x.dim() - 2)))


@plainly
def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: Any = False, *, scale: float | None = None, enable_gqa: bool = False, first: int = 0,
) -> Tensor:  # fmt: skip
    """softmax(scale·QKᵀ + mask) V; row `first + i` of a causal one sees keys 0 … first + i."""
    if enable_gqa:
        share = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(share, 1) for x in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = mul(mm(query, key.transpose(-1, -2)), scale)
    if attn_mask is not None:
        if attn_mask.dtype is torch.bool:
            scores = torch.where(attn_mask, scores, float("-inf"))
        else:
            scores = add(scores, attn_mask)
    if is_causal:
        rows = torch.arange(scores.shape[-2])[:, None] + first
        seen = torch.arange(scores.shape[-1])[None, :] <= rows
        scores = torch.where(seen, scores, float("-inf"))
    out = mm(softmax(scores, -1), value)
    # The kernel's result lies with its heads inside its rows.
    return out.transpose(-3, -2).contiguous().transpose(-3, -2) if out.dim() > 3 else out


def power(x: Tensor, exponent: Any) -> Tensor:
    if isinstance(exponent, int | float) and float(exponent).is_integer() and 0 < exponent < 9:
        out = x
        for _ in range(int(exponent) - 1):
            out = mul(out, x)
        return out
    raise Unsupported(f"a power of {exponent}")


def masked_fill(x: Tensor, mask: Tensor, value: Any) -> Tensor:
    return torch.where(mask, number(value), x)


def _largest(x: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    with _disable_current_modes():
        return torch.amax(x, dims_of(x, dim), keepdim)


def _larger(a: Given, b: Given) -> Tensor:
    with _disable_current_modes():
        return torch.maximum(*(field.encoded(y) if not y.is_floating_point() else y
                               for y in map(_plain, (a, b))))  # fmt: skip


def _plain(x: Given) -> Tensor:
    return x if isinstance(x, Tensor) else torch.full((), field.encode(x), dtype=torch.float64)


def named(name: str) -> Callable[..., Tensor]:
    def f(x: Tensor, *rest: Any, **more: Any) -> Tensor:
        return field.function(f"{name}{rest}{sorted(more.items())}", x)

    return f


ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": add, "sub": sub, "mul": mul, "div": div, "neg": field.negative,
    "rsub": lambda a, b, alpha=1: sub(b, a, alpha), "mm": mm, "bmm": mm, "addmm": addmm,
    "baddbmm": addmm, "mv": mm, "dot": mm, "sum": sum_, "mean": mean, "exp": field.exp,
    "_softmax": softmax, "_safe_softmax": softmax, "native_layer_norm": layer_norm,
    "_fused_rms_norm": lambda *a: (rms_norm(*a), None), "native_group_norm": group_norm,
    "convolution": convolution, "pow": power, "reciprocal": field.inverse,
    "masked_fill": masked_fill, "amax": _largest, "maximum": _larger,
    "square": lambda x: mul(x, x),
}  # fmt: skip
FUNCTIONS = (
    "tanh", "erf", "gelu", "silu", "sigmoid", "rsqrt", "sqrt", "sin", "cos", "log", "relu",
    "softplus", "elu", "hardtanh", "abs", "clamp", "clamp_min", "log1p", "leaky_relu",
)  # fmt: skip
for _name in FUNCTIONS:
    ARITHMETIC[_name] = named(_name)
ARITHMETIC["relu"] = lambda x: ARITHMETIC["clamp_min"](x, 0)
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "isnan", "isinf"):

    def _compared(*xs: Any, _name: str = _name) -> Tensor:
        with _disable_current_modes():
            return getattr(torch, _name)(*(_plain(x) for x in xs))

    ARITHMETIC[_name] = _compared
