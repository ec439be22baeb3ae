"""Softmax and the normalisations, in the sums they are defined by."""

from __future__ import annotations

from typing import Any

import torch

from quire.verify import term as t
from quire.verify.decide import divmod_
from quire.verify.meaning.pointwise import add, div, mul, sub
from quire.verify.meaning.reduce import mean, moment, sum_
from quire.verify.meaning.table import MEANING, means
from quire.verify.meaning.view import dim_of
from quire.verify.poly import ONE, Poly, poly
from quire.verify.value import NoMeaning, Value, build
from quire.verify.views import reshape, through


@means("softmax", "_softmax", "_safe_softmax", "special_softmax")
def softmax(self: Value, dim: int, dtype: Any = None, half_to_float: Any = False) -> Value:
    """exp(xᵢ) / Σ exp(xⱼ): the maximum that torch takes off first cancels over the reals."""
    if not self.ndim:
        return build([], self.dtype, lambda i: t.ONE_)
    d = dim_of(self, dim)
    size = self.shape[d]

    def element(idx: list[Poly]) -> Any:
        def at(j: Poly) -> Any:
            return t.exp(self.real([*idx[:d], j, *idx[d + 1 :]]))

        return t.mul((at(idx[d]), 1), (t.bind("sum", size, at), -1))

    return build(self.shape, dtype or self.dtype, element)


@means("log_softmax", "_log_softmax")
def log_softmax(self: Value, dim: int, dtype: Any = None, half_to_float: Any = False) -> Value:
    if not self.ndim:
        return build([], self.dtype, lambda i: t.ZERO_)
    d = dim_of(self, dim)

    def element(idx: list[Poly]) -> Any:
        total = t.bind(
            "sum", self.shape[d], lambda j: t.exp(self.real([*idx[:d], j, *idx[d + 1 :]]))
        )
        return t.add((1, self.real(idx)), (-1, t.fn("log", total)))

    return build(self.shape, dtype or self.dtype, element)


def _rsqrt(x: Value) -> Value:
    return MEANING["rsqrt"](self=x)


def _affine(x: Value, weight: Any, bias: Any) -> Value:
    if weight is not None:
        x = mul(x, weight)
    return x if bias is None else add(x, bias)


def _layer_norm(x: Value, shape: Any, weight: Any, bias: Any, eps: float) -> tuple[Value, ...]:
    dims = list(range(x.ndim - len(shape), x.ndim))
    centre = mean(x, dims, True)
    scale = _rsqrt(add(moment(x, dims, True, 0), eps))
    return _affine(mul(sub(x, centre), scale), weight, bias), centre, scale


@means("layer_norm")
def layer_norm(
    input: Value, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5,
    **_: Any,
) -> Value:  # fmt: skip
    return _layer_norm(input, normalized_shape, weight, bias, eps)[0]


@means("native_layer_norm")
def native_layer_norm(
    input: Value, normalized_shape: Any, weight: Any, bias: Any, eps: float
) -> tuple[Value, ...]:
    return _layer_norm(input, normalized_shape, weight, bias, eps)


@means("rms_norm", "_fused_rms_norm")
def rms_norm(input: Value, normalized_shape: Any, weight: Any = None, eps: Any = None) -> Value:
    if eps is None:
        if input.dtype != torch.float32:
            raise NoMeaning("rms_norm without eps, not in float32")
        eps = torch.finfo(input.dtype).eps
    dims = list(range(input.ndim - len(normalized_shape), input.ndim))
    scale = _rsqrt(add(mean(mul(input, input), dims, True), eps))
    return _affine(mul(input, scale), weight, None)


def _per_channel(x: Value | None, ndim: int) -> Value | None:
    if x is None:
        return None
    return through(x, reshape(x.shape, [x.shape[0], *(ONE,) * (ndim - 2)]))


@means("group_norm", "native_group_norm")
def group_norm(
    input: Value, num_groups: Any = None, weight: Any = None, bias: Any = None, eps: float = 1e-5,
    group: Any = None, **_: Any,
) -> Any:  # fmt: skip
    if group is not None:
        raise NoMeaning("native_group_norm")
    x, groups = input, num_groups
    size = divmod_(x.shape[1], poly(groups))[0]
    split = through(x, reshape(x.shape, [x.shape[0], groups, size, *x.shape[2:]]))
    dims = list(range(2, split.ndim))
    scale = _rsqrt(add(moment(split, dims, True, 0), eps))
    normal = mul(sub(split, mean(split, dims, True)), scale)
    out = through(normal, reshape(normal.shape, x.shape))
    return _affine(out, _per_channel(weight, x.ndim), _per_channel(bias, x.ndim))


@means("instance_norm")
def instance_norm(
    input: Value, weight: Any = None, bias: Any = None, running_mean: Any = None,
    running_var: Any = None, use_input_stats: bool = True, momentum: float = 0.1,
    eps: float = 1e-5, cudnn_enabled: bool = True,
) -> Value:  # fmt: skip
    return group_norm(input, input.shape[1], weight, bias, eps)


@means("batch_norm")
def batch_norm(
    input: Value, weight: Any = None, bias: Any = None, running_mean: Any = None,
    running_var: Any = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:  # fmt: skip
    if training:
        raise NoMeaning("batch_norm in training mode")
    n = input.ndim
    centre, spread_ = _per_channel(running_mean, n), _per_channel(running_var, n)
    assert spread_ is not None
    return _affine(
        mul(sub(input, centre), _rsqrt(add(spread_, eps))),
        _per_channel(weight, n),
        _per_channel(bias, n),
    )


@means("_native_batch_norm_legit_no_training")
def native_batch_norm(
    input: Value, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: float,
    eps: float,
) -> tuple[Value, ...]:  # fmt: skip
    out = batch_norm(input, weight, bias, running_mean, running_var, eps=eps)
    nothing = build([0], input.dtype, lambda i: t.ZERO_)
    return out, nothing, nothing


@means("_weight_norm")
def weight_norm(v: Value, g: Value, dim: int = 0) -> Value:
    """v · g / ‖v‖, the norm over all dims but one."""
    d = dim_of(v, dim)
    squares = sum_(mul(v, v), [k for k in range(v.ndim) if k != d], True)
    return mul(v, div(g, MEANING["sqrt"](self=squares)))
