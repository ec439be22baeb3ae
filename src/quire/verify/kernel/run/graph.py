"""Ops of the graph on field elements, in the functions that kernels are written in.

An activation is what it is defined by (silu x = x · sigmoid x), so that the field's keyed hashes
stand for the same functions on both sides; elements are ordered by their residues mod P.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quire.verify import field
from quire.verify.field_ops import (
    Unsupported,
    add,
    dims_of,
    div,
    mean,
    mul,
    number,
    plainly,
    sub,
    sum_,
)
from quire.verify.kernel.run.numbers import FieldNumbers

_FIELD = FieldNumbers()
FUNCTIONS = (
    "tanh", "sigmoid", "erf", "log", "sqrt", "rsqrt", "sin", "cos", "floor", "ceil", "round",
    "trunc",
)  # fmt: skip
"""Functions of one real that are known by name only."""


def _f(name: str, x: Tensor) -> Tensor:
    return field.function(name, x)


def _pair(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    x, y = torch.broadcast_tensors(number(a), number(b))
    return x, y


def larger(a: Any, b: Any) -> Tensor:
    return _FIELD.choose("max", *_pair(a, b))


def smaller(a: Any, b: Any) -> Tensor:
    return _FIELD.choose("min", *_pair(a, b))


def _clamp(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    x = x if low is None else larger(x, low)
    return x if high is None else smaller(x, high)


def _less(a: Any, b: Any) -> Tensor:
    x, y = _pair(a, b)
    return _FIELD.rank(x) < _FIELD.rank(y)


def _silu(x: Tensor) -> Tensor:
    return mul(x, _f("sigmoid", x))


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        inner = add(x, mul(0.044715, mul(x, mul(x, x))))
        bent = _f("tanh", mul(math.sqrt(2 / math.pi), inner))
    else:
        bent = _f("erf", mul(math.sqrt(0.5), x))
    return mul(mul(0.5, x), add(1, bent))


def _softplus(x: Tensor, beta: Any = 1, threshold: Any = 20) -> Tensor:
    scaled = mul(x, float(beta))
    soft = div(_f("log", add(field.exp(scaled), 1)), float(beta))
    return torch.where(_less(float(threshold), scaled), x, soft)


def _elu(x: Tensor, alpha: Any = 1, scale: Any = 1, input_scale: Any = 1) -> Tensor:
    below = mul(float(alpha), sub(field.exp(mul(x, float(input_scale))), 1))
    return mul(float(scale), torch.where(_less(0, x), x, below))


def _leaky(x: Tensor, slope: Any = 0.01) -> Tensor:
    return torch.where(_less(x, 0), mul(x, float(slope)), x)


def _power(x: Any, y: Any) -> Tensor:
    if isinstance(y, int | float):
        if y in (1, 2, 3, 4):
            found = number(x)
            for _ in range(int(y) - 1):
                found = mul(found, x)
            return found
        if y in (0.5, -0.5):
            return _f("sqrt" if y > 0 else "rsqrt", x)
        if y == -1:
            return field.inverse(x)
    return field.function("pow", *_pair(x, y))


def _amax(word: str) -> Callable[..., Tensor]:
    def run(x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
        dims = dims_of(x, dim)
        rest = [d for d in range(x.dim()) if d not in dims]
        flat = x.permute(*dims, *rest).reshape(-1, *[x.shape[d] for d in rest])
        found = _FIELD.extreme(word, flat)
        if keepdim:
            for d in sorted(dims):
                found = found.unsqueeze(d)
        return found

    return run


def _argmax(word: str) -> Callable[..., Tensor]:
    def run(x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
        order = _FIELD.rank(x)
        return (order.argmax if word == "max" else order.argmin)(dim, keepdim)

    return run


def _log_softmax(x: Tensor, dim: int, half: bool = False) -> Tensor:
    down = sub(x, _amax("max")(x, [dim], True))
    return sub(down, _f("log", sum_(field.exp(down), [dim], True)))


@plainly
def softmax(x: Tensor, dim: int, half: bool = False) -> Tensor:
    """Of `x` less its largest."""
    top = field.exp(sub(x, _amax("max")(x, [dim], True)))
    return div(top, sum_(top, [dim], True))


def _topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    order = torch.sort(_FIELD.rank(x), dim=dim, descending=largest, stable=True).indices
    at = order.narrow(dim, 0, k)
    return x.gather(dim, at), at


def _var(x: Tensor, dim: Any = None, correction: Any = 1, keepdim: bool = False) -> Tensor:
    dims = dims_of(x, dim)
    away = sub(x, mean(x, dims, True))
    count = math.prod(x.shape[d] for d in dims)
    free = count - (1 if correction is None else correction)
    return div(sum_(mul(away, away), dims, keepdim), free)


def _scan(step: Callable[[Any, Any], Tensor]) -> Callable[..., Tensor]:
    def run(x: Tensor, dim: int, dtype: Any = None) -> Tensor:
        rows = list(number(x).unbind(dim))
        for k in range(1, len(rows)):
            rows[k] = step(rows[k - 1], rows[k])
        return torch.stack(rows, dim) if rows else number(x)

    return run


def _abs(x: Tensor) -> Tensor:
    return larger(x, _FIELD.neg(x))


def _signs(x: Tensor) -> Tensor:
    one, zero = number(1), number(0)
    return torch.where(_less(0, x), one, torch.where(_less(x, 0), _FIELD.neg(one), x)) + zero * 0


def _batch_norm(
    x: Tensor,
    weight: Any,
    bias: Any,
    average: Tensor,
    variance: Tensor,
    momentum: float,
    eps: float,
) -> Any:
    wide = [1, -1] + [1] * (x.dim() - 2)
    scale = _f("rsqrt", add(variance, eps))
    found = mul(sub(x, average.view(wide)), scale.view(wide))
    found = found if weight is None else mul(found, weight.view(wide))
    gone = torch.zeros(())
    return (found if bias is None else add(found, bias.view(wide))), gone, gone


_PLAIN: dict[str, Callable[..., Any]] = {
    "silu": _silu, "gelu": _gelu, "softplus": _softplus, "elu": _elu, "leaky_relu": _leaky,
    "relu": lambda x: larger(x, 0), "clamp": _clamp, 
    "hardtanh": lambda x, a=-1, b=1: _clamp(x, a, b),
    "clamp_min": larger, "clamp_max": smaller,
    "hardsigmoid": lambda x: _clamp(div(add(x, 3), 6), 0, 1),
    "hardswish": lambda x: mul(x, _clamp(div(add(x, 3), 6), 0, 1)),
    "mish": lambda x: mul(x, _f("tanh", _f("log", add(field.exp(x), 1)))),
    "pow": _power, "maximum": larger, "minimum": smaller, "abs": _abs, "sgn": _signs,
    "sign": _signs, "amax": _amax("max"), "amin": _amax("min"), "argmax": _argmax("max"),
    "argmin": _argmax("min"), "_log_softmax": _log_softmax, "topk": _topk, "var": _var,
    "cumsum": _scan(add), "cumprod": _scan(mul), "expm1": lambda x: sub(field.exp(x), 1),
    "log1p": lambda x: _f("log", add(x, 1)), "reciprocal": field.inverse,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "lt": _less, "gt": lambda a, b: _less(b, a), "ge": lambda a, b: ~_less(a, b),
    "le": lambda a, b: ~_less(b, a),
    "eq": lambda a, b: ~_less(a, b) & ~_less(b, a), "ne": lambda a, b: _less(a, b) | _less(b, a),
    **{name: (lambda x, name=name: _f(name, x)) for name in FUNCTIONS},
}  # fmt: skip

_MOVES = {"scatter", "index_put", "index_put_", "scatter_", "masked_select", "_unsafe_index"}
"""Ops that move elements; sums into one place are not among them."""


def _is_real(args: Any) -> bool:
    return any(isinstance(x, Tensor) and x.is_floating_point() for x in args)


def _plain(name: str) -> Callable[..., Any]:
    run = plainly(_PLAIN[name])

    def apply(func: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_real(args):
            return NotImplemented
        if func._schema.name.endswith("_") and not func._schema.name.endswith("__"):
            raise Unsupported(f"{func} in place")
        return run(*args, **kwargs)

    return apply


def _move(func: Any, *args: Any, **kwargs: Any) -> Any:
    if kwargs.get("accumulate") or kwargs.get("reduce") or any(a is True for a in args):
        return NotImplemented
    if "value" in func._overloadname and _is_real(args):
        args = tuple(field.encode(a) if isinstance(a, int | float) and k > 2 else a
                     for k, a in enumerate(args))  # fmt: skip
    return plainly(func)(*args, **kwargs)


OPS: dict[str, Callable[..., Any]] = {name: _plain(name) for name in _PLAIN}
OPS |= {name: _move for name in _MOVES}
