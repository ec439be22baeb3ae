"""What the backward ops of torch's autograd do with field elements.

Where the derivative of a function known by name is asked for, it is another keyed hash: both
programs ask for it in the same words, so that equal chains of calls give equal gradients.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from quire.verify import field
from quire.verify.field_ops import (
    ARITHMETIC,
    NATIVE,
    Unsupported,
    add,
    div,
    mean,
    mul,
    number,
    sub,
    sum_,
)


def _slope(name: str) -> Any:
    def f(grad: Tensor, x: Tensor, *rest: Any, **more: Any) -> Tensor:
        return mul(grad, field.function(f"{name}'{rest}{sorted(more.items())}", x))

    return f


def log_softmax(x: Tensor, dim: int, half: Any = None) -> Tensor:
    return sub(x, field.function("log", sum_(field.exp(x), dim, True)))


def log_softmax_backward(grad: Tensor, out: Tensor, dim: int, dtype: Any) -> Tensor:
    return sub(grad, mul(field.exp(out), sum_(grad, dim, True)))


def softmax_backward(grad: Tensor, out: Tensor, dim: int, dtype: Any) -> Tensor:
    both = mul(grad, out)
    return sub(both, mul(out, sum_(both, dim, True)))


def _picked(x: Tensor, target: Tensor, ignore: int) -> tuple[Tensor, Tensor]:
    valid = target != ignore
    return valid, torch.where(valid, target, 0)


def nll_loss(
    x: Tensor, target: Tensor, weight: Any, reduction: int, ignore: int
) -> tuple[Tensor, Tensor]:
    if weight is not None or x.dim() != 2 or reduction == 0:
        raise Unsupported("a loss with weights, or of each row")
    valid, at = _picked(x, target, ignore)
    own = torch.where(valid, x.gather(1, at[:, None])[:, 0], 0.0)
    total = field.negative(sum_(own))
    count = number(valid.sum())
    return (div(total, count) if reduction == 1 else total), count


def nll_loss_backward(
    grad: Tensor, x: Tensor, target: Tensor, weight: Any, reduction: int, ignore: int, count: Tensor
) -> Tensor:
    valid, at = _picked(x, target, ignore)
    share = field.negative(div(grad, count) if reduction == 1 else grad)
    hit = torch.arange(x.shape[1])[None, :] == at[:, None]
    return torch.where(hit & valid[:, None], share, 0.0)


def embedding_backward(
    grad: Tensor, indices: Tensor, count: int, padding: int, by_count: bool
) -> Tensor:
    hit = (indices.reshape(1, -1) == torch.arange(count)[:, None]).double()
    if padding >= 0:
        hit[padding] = 0.0
    rows = grad.reshape(-1, grad.shape[-1])
    return ARITHMETIC["mm"](field.encoded(hit), rows)


def layer_norm_backward(
    grad: Tensor, x: Tensor, shape: Any, _mean: Any, _scale: Any, weight: Any, bias: Any, mask: Any
) -> tuple[Tensor | None, ...]:
    """Of y = w·c·r(v) + b, c = x − mean, v = mean(c²), for r known by name."""
    dims = list(range(x.dim() - len(shape), x.dim()))
    lead = list(range(x.dim() - len(shape)))
    centred = sub(x, mean(x, dims, True))
    variance = mean(mul(centred, centred), dims, True)
    scale, slope = (field.function(n, variance) for n in ("rsqrt of v", "rsqrt' of v"))
    hat = grad if weight is None else mul(grad, weight)
    count = math.prod(shape)
    through = mul(mul(sum_(mul(hat, centred), dims, True), slope), div(mul(centred, 2), count))
    inner = add(mul(hat, scale), through)
    found = sub(inner, mean(inner, dims, True))
    own = mul(grad, mul(centred, scale))
    return (
        found if mask[0] else None,
        (sum_(own, lead) if lead else own) if mask[1] else None,
        (sum_(grad, lead) if lead else grad) if mask[2] else None,
    )


def index_put(x: Tensor, indices: Any, values: Tensor, accumulate: bool = False, *_: Any) -> Tensor:
    if not accumulate:
        raise Unsupported("index_put that overwrites")
    out = x.clone()
    if any(i is None for i in indices):
        (dim,) = [d for d, i in enumerate(indices) if i is not None]
        if indices[dim].dim() != 1:
            raise Unsupported("index_put of some dims")
        for k, at in enumerate(indices[dim].tolist()):
            out.select(dim, at).copy_(add(out.select(dim, at), values.select(dim, k)))
        return out
    shown = torch.broadcast_tensors(*indices)
    values = values.expand(shown[0].shape)
    for k in range(shown[0].numel()):
        at = tuple(i.reshape(-1)[k] for i in shown)
        out[at] = add(out[at], values.reshape(-1)[k])
    return out


ARITHMETIC |= {
    "_log_softmax": log_softmax, "_log_softmax_backward_data": log_softmax_backward,
    "_softmax_backward_data": softmax_backward, "nll_loss_forward": nll_loss,
    "nll_loss_backward": nll_loss_backward, "embedding_dense_backward": embedding_backward,
    "native_layer_norm_backward": layer_norm_backward, "index_put": index_put,
    "_index_put_impl": index_put, "sgn": lambda x: field.function("sgn", x),
    "tanh_backward": _slope("tanh"), "sigmoid_backward": _slope("sigmoid"),
    "silu_backward": _slope("silu"), "gelu_backward": _slope("gelu"),
    "threshold_backward": _slope("relu"),
}  # fmt: skip
NATIVE |= {"slice_backward", "select_backward", "unfold_backward"}
