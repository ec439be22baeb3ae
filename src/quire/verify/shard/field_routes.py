"""What the ops of a mixture of experts do with field elements, forward and backward.

A field has no order: which experts a token goes to is some choice, the same for equal scores. It is
taken by the residues mod P, so that both programs and all ranks choose alike.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quire.verify import field, field_grads
from quire.verify.field_ops import ARITHMETIC, NATIVE, Unsupported, mm

MOST = 1 << 20
"""Numbers below it are the same mod P and mod Q."""


def top(
    x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Tensor, Tensor]:
    """The k elements of the largest residues, and where they lie."""
    key = torch.where(torch.isinf(x), -1.0, field.unpack(x)[0])
    at = key.argsort(dim=dim, descending=largest, stable=True).narrow(dim, 0, k)
    return x.gather(dim, at), at


def _counts(x: Tensor) -> Tensor:
    """The whole numbers that elements stand for. Raises Unsupported where they are others."""
    p, q = field.unpack(x)
    if bool(((p != q) | (p >= MOST)).any()):
        raise Unsupported("a count of what are no whole numbers")
    return p


def histogram(x: Tensor, bins: int = 100, min: Any = 0, max: Any = 0) -> Tensor:
    return field.encoded(torch.histc(_counts(x), bins, min=min, max=max))


def running_sum(x: Tensor, dim: int, dtype: Any = None) -> Tensor:
    if dtype is None or dtype.is_floating_point:
        raise Unsupported("a running sum of elements")
    return _counts(x).cumsum(dim, dtype=dtype)


def _groups(offs: Tensor) -> list[tuple[int, int, int]]:
    ends = offs.tolist()
    return list(zip(range(len(ends)), [0, *ends], ends, strict=False))


def products(x: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    """The rows from offs[g − 1] to offs[g] times weight[g]."""
    out = x.new_zeros(x.shape[0], weight.shape[2])
    for g, start, end in _groups(offs):
        out[start:end] = mm(x[start:end], weight[g])
    return out


def products_backward(
    x: Tensor, weight: Tensor, offs: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    by_x, by_weight = torch.zeros_like(x), torch.zeros_like(weight)
    for g, start, end in _groups(offs):
        by_x[start:end] = mm(grad[start:end], weight[g].T)
        by_weight[g] = mm(x[start:end].T, grad[start:end])
    return by_x, by_weight


def index_put(x: Tensor, indices: Any, values: Tensor, accumulate: bool = False, *_: Any) -> Tensor:
    """Rows too: dims past the last index are whole."""
    rest = [None] * (x.dim() - len(indices))
    return field_grads.index_put(x, [*indices, *rest], values, accumulate)


ARITHMETIC |= {
    "topk": top, "histc": histogram, "cumsum": running_sum, "grouped_mm_fallback": products,
    "grouped_mm_fallback_backward": products_backward, "index_put": index_put,
    "_index_put_impl": index_put,
}  # fmt: skip
NATIVE |= {"scatter", "scatter_"}
