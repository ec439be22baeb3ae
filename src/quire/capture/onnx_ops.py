"""ONNX ops on torch: elementwise ops and reductions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nn

from quire.capture.onnx_table import DTYPES, Node, op
from quire.errors import CaptureError

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs, "Neg": torch.neg, "Sqrt": torch.sqrt, "Exp": torch.exp, "Log": torch.log,
    "Sin": torch.sin, "Cos": torch.cos, "Tanh": torch.tanh, "Sigmoid": torch.sigmoid,
    "Relu": torch.relu, "Erf": torch.erf, "Floor": torch.floor, "Ceil": torch.ceil,
    "Round": torch.round, "Sign": torch.sign, "Reciprocal": torch.reciprocal,
    "Not": torch.logical_not, "Identity": lambda x: x, "Softplus": nn.softplus,
    "IsNaN": torch.isnan, "Mish": nn.mish, "HardSwish": nn.hardswish,
    "Softsign": lambda x: x / (1 + x.abs()),
    "Tan": lambda x: x.sin() / x.cos(),
    "Sinh": lambda x: (x.exp() - (-x).exp()) / 2,
    "Cosh": lambda x: (x.exp() + (-x).exp()) / 2,
    "Asinh": lambda x: x.sign() * (x.abs() + (x * x + 1).sqrt()).log(),
    "Acosh": lambda x: (x + (x * x - 1).sqrt()).log(),
    "Atanh": lambda x: ((1 + x) / (1 - x)).log() / 2,
}  # fmt: skip
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Equal": torch.eq,
    "Less": torch.lt, "LessOrEqual": torch.le, "Greater": torch.gt, "GreaterOrEqual": torch.ge,
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.ne,
}  # fmt: skip
for _name, _function in UNARY.items():
    op(_name)(lambda n, x, f=_function: f(x))
for _name, _function in BINARY.items():
    op(_name)(lambda n, a, b, f=_function: f(a, b))


@op("Div")
def div(n: Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


@op("Mod")
def mod(n: Node, a: Tensor, b: Tensor) -> Tensor:
    if n.get("fmod", 0):
        return a - b * torch.trunc(a / b) if a.is_floating_point() else _fmod(a, b)
    if not a.is_floating_point():
        return torch.remainder(a, b)
    # By an infinity: what is of its sign stays, and what is not gives the infinity.
    endless = torch.where((a * b < 0) & (a.abs() < math.inf), b, a + (a - a))
    return torch.where(b.abs() == math.inf, endless, torch.remainder(a, b))


def _fmod(a: Tensor, b: Tensor) -> Tensor:
    return a.sign() * torch.remainder(a.abs(), b.abs())


@op("Pow")
def power(n: Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


@op("Max Min Sum Mean")
def several(n: Node, *xs: Tensor) -> Tensor:
    fold = {"Max": torch.maximum, "Min": torch.minimum}.get(n.op, torch.add)
    out = xs[0]
    for x in xs[1:]:
        out = fold(out, x)
    return out / len(xs) if n.op == "Mean" else out


@op("IsInf")
def is_inf(n: Node, x: Tensor) -> Tensor:
    above = (x == math.inf) if n.get("detect_positive", 1) else torch.zeros_like(x) > 0
    below = (x == -math.inf) if n.get("detect_negative", 1) else torch.zeros_like(x) > 0
    return above | below


@op("LeakyRelu")
def leaky_relu(n: Node, x: Tensor) -> Tensor:
    return nn.leaky_relu(x, n.get("alpha", 0.01))


@op("PRelu")
def prelu(n: Node, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@op("Elu")
def elu(n: Node, x: Tensor) -> Tensor:
    return nn.elu(x, n.get("alpha", 1.0))


@op("Celu")
def celu(n: Node, x: Tensor) -> Tensor:
    alpha = n.get("alpha", 1.0)
    return x.clamp(min=0) + (alpha * ((x / alpha).exp() - 1)).clamp(max=0)


@op("Selu")
def selu(n: Node, x: Tensor) -> Tensor:
    alpha, gamma = (
        n.get("alpha", 1.67326319217681884765625),
        n.get("gamma", 1.05070102214813232421875),
    )
    return gamma * torch.where(x > 0, x, alpha * (x.exp() - 1))


@op("ThresholdedRelu")
def thresholded_relu(n: Node, x: Tensor) -> Tensor:
    return torch.where(x > n.get("alpha", 1.0), x, 0.0)


@op("HardSigmoid")
def hard_sigmoid(n: Node, x: Tensor) -> Tensor:
    return (n.get("alpha", 0.2) * x + n.get("beta", 0.5)).clamp(0, 1)


@op("Shrink")
def shrink(n: Node, x: Tensor) -> Tensor:
    bias, lambd = n.get("bias", 0.0), n.get("lambd", 0.5)
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero)).to(x.dtype)


@op("Gelu")
def gelu(n: Node, x: Tensor) -> Tensor:
    return nn.gelu(x, approximate=n.get("approximate", "none"))


@op("Swish")
def swish(n: Node, x: Tensor) -> Tensor:
    return x * torch.sigmoid(n.get("alpha", 1.0) * x)


@op("Clip")
def clip(n: Node, x: Tensor, *ends: Any) -> Tensor:
    low, high = (*ends, None, None)[:2] if ends else (n.get("min"), n.get("max"))
    if low is not None:
        x = torch.maximum(x, low) if isinstance(low, Tensor) else x.clamp(min=low)
    if high is not None:
        x = torch.minimum(x, high) if isinstance(high, Tensor) else x.clamp(max=high)
    return x


@op("Cast CastLike")
def cast(n: Node, x: Tensor, like: Tensor | None = None) -> Tensor:
    to = n.get("to")
    dtype = like.dtype if like is not None else DTYPES.get(to)
    if dtype is None:
        raise CaptureError(f"a cast to {to}, a dtype that torch lacks")
    return x.to(dtype)


@op("Where")
def where(n: Node, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


@op("Dropout")
def dropout(n: Node, x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    if len(rest) > 1:
        raise CaptureError("Dropout in training")
    return x, torch.ones_like(x, dtype=torch.bool)


# --- reductions -------------------------------------------------------------------------------


def _over(n: Node, x: Tensor, axes: Any) -> tuple[list[int], bool] | None:
    """The dims to fold and whether they stay; None: nothing to do."""
    axes = n.get("axes") if axes is None else axes
    if not axes:
        if n.get("noop_with_empty_axes", 0):
            return None
        axes = list(range(x.ndim))
    return list(axes), bool(n.get("keepdims", 1))


def _reduce(before: Any, fold: Any, after: Any) -> Callable[..., Tensor]:
    def apply(n: Node, x: Tensor, axes: Any = None) -> Tensor:
        over = _over(n, x, axes)
        dtype = x.dtype
        x = before(x)
        if over is not None and over[0]:
            x = fold(x, *over)
        return after(x).to(dtype)

    return apply


def _same(x: Tensor) -> Tensor:
    return x


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """As the last element of a running product, dim by dim."""
    axes = sorted(a % x.ndim for a in axes)
    for a in axes:
        if isinstance(x.shape[a], int) and x.shape[a] == 0:
            x = torch.ones_like(x.sum(a, True))
        else:
            x = x.cumprod(a).narrow(a, x.shape[a] - 1, 1)
    return x if keep else x.squeeze(tuple(axes))


def _extreme(fold: Any, above: bool) -> Callable[..., Tensor]:
    """A maximum or minimum; over nothing it is the least or greatest value of the dtype."""

    def apply(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        if x.dtype == torch.bool:
            return apply(x.to(torch.int32), axes, keep) > 0
        if any(isinstance(x.shape[a], int) and x.shape[a] == 0 for a in axes):
            ends = torch.finfo(x.dtype) if x.is_floating_point() else torch.iinfo(x.dtype)
            value = (ends.min if above else ends.max) if not x.is_floating_point() else math.inf
            value = -value if above and x.is_floating_point() else value
            return torch.full_like(x.sum(axes, keep), value)
        return fold(x, axes, keep)

    return apply


for _name, _parts in {
    "ReduceSum": (_same, torch.sum, _same),
    "ReduceMean": (_same, torch.mean, _same),
    "ReduceMax": (_same, _extreme(torch.amax, True), _same),
    "ReduceMin": (_same, _extreme(torch.amin, False), _same),
    "ReduceProd": (_same, _product, _same),
    "ReduceL1": (torch.abs, torch.sum, _same),
    "ReduceL2": (torch.square, torch.sum, torch.sqrt),
    "ReduceSumSquare": (torch.square, torch.sum, _same),
    "ReduceLogSum": (_same, torch.sum, torch.log),
}.items():
    op(_name, static=(1,))(_reduce(*_parts))


@op("ReduceLogSumExp", static=(1,))
def log_sum_exp(n: Node, x: Tensor, axes: Any = None) -> Tensor:
    over = _over(n, x, axes)
    if over is None or not over[0]:
        return x
    dims, keep = over
    most = _extreme(torch.amax, True)(x, dims, True)
    most = torch.where(most.abs() == math.inf, torch.zeros_like(most), most)
    out = (x - most).exp().sum(dims, True).log() + most
    return out if keep else out.squeeze(tuple(d % x.ndim for d in dims))


@op("ArgMax ArgMin")
def arg_extreme(n: Node, x: Tensor) -> Tensor:
    axis, keep = n.get("axis", 0), bool(n.get("keepdims", 1))
    find = torch.argmax if n.op == "ArgMax" else torch.argmin
    if not n.get("select_last_index", 0):
        return find(x, axis, keepdim=keep)
    return x.shape[axis] - 1 - find(x.flip(axis), axis, keepdim=keep)


@op("CumSum CumProd", static=(1,))
def cumulate(n: Node, x: Tensor, axis: Any) -> Tensor:
    axis = int(axis[0] if isinstance(axis, list) else axis) % x.ndim
    fold, unit = (torch.cumsum, 0) if n.op == "CumSum" else (torch.cumprod, 1)
    x = x.flip(axis) if n.get("reverse", 0) else x
    out = fold(x, axis)
    if n.get("exclusive", 0):
        first = torch.full_like(out.narrow(axis, 0, 1), unit)
        out = torch.cat([first, out.narrow(axis, 0, x.shape[axis] - 1)], axis)
    return (out.flip(axis) if n.get("reverse", 0) else out).to(x.dtype)


@op("TopK", static=(1,))
def topk(n: Node, x: Tensor, k: Any = None) -> Any:
    count = n.get("k") if k is None else k[0]
    out = torch.topk(x, count, n.get("axis", -1), bool(n.get("largest", 1)), True)
    return out.values, out.indices


# --- quantised values -------------------------------------------------------------------------


def _scales(n: Node, x: Tensor, value: Tensor) -> Tensor:
    """A scale or zero point as a tensor that `x` broadcasts with."""
    if value.ndim == 0 or value.numel() == 1:
        return value.reshape(())
    axis, block = n.get("axis", 1) % x.ndim, n.get("block_size", 0)
    if block:
        return value.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return value.reshape([-1 if d == axis else 1 for d in range(x.ndim)])


@op("DequantizeLinear")
def dequantise(n: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    by = _scales(n, x, scale)
    whole = x.to(torch.int32)
    if zero is not None:
        whole = whole - _scales(n, x, zero).to(torch.int32)
    dtype = DTYPES[n.get("output_dtype")] if n.get("output_dtype") else scale.dtype
    return (whole.to(torch.float32) * by.to(torch.float32)).to(dtype)


@op("QuantizeLinear")
def quantise(n: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    asked = n.get("output_dtype", 0)
    dtype = zero.dtype if zero is not None else DTYPES[asked] if asked else torch.uint8
    out = torch.round(x / _scales(n, x, scale))
    if zero is not None:
        out = out + _scales(n, x, zero).to(out.dtype)
    ends = torch.iinfo(dtype)
    return out.clamp(ends.min, ends.max).to(dtype)
