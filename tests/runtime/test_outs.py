"""What `flow/outs.py` claims of ops that write into a given buffer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from quire.flow.outs import ANY_LAYOUT, DENSE, OVERWRITES
from quire.flow.parts import causal_rows
from quire.runtime import kernels

aten: Any = torch.ops.aten


def called(name: str) -> Callable[..., Any]:
    module, _, function = name.rpartition(".")
    return getattr(kernels if module == "kernels" else torch, function)


X, Y, POSITIVE = torch.randn(3, 6, 4), torch.randn(3, 6, 4), torch.rand(3, 6, 4) + 0.5

CALLS: dict[Any, tuple[Any, ...]] = {
    aten.pow.Tensor_Scalar: (X, 3),
    aten.pow.Tensor_Tensor: (POSITIVE, Y),
    aten.rsqrt.default: (POSITIVE,),
    aten.sqrt.default: (POSITIVE,),
    aten.where.self: (X > 0, X, Y),
    aten.mean.dim: (torch.randn(3, 6, 4, 5), [3]),
    aten.sum.dim_IntList: (torch.randn(3, 6, 4, 5), [3]),
    aten.amax.default: (torch.randn(3, 6, 4, 5), [3]),
    aten.amin.default: (torch.randn(3, 6, 4, 5), [3]),
    aten.cat.default: ([X[:, :2], Y[:, :4]], 1),
    aten.mm.default: (torch.randn(18, 5), torch.randn(5, 4)),
    aten.bmm.default: (torch.randn(3, 6, 5), torch.randn(3, 5, 4)),
    aten.addmm.default: (torch.randn(4), torch.randn(18, 5), torch.randn(5, 4)),
    aten.baddbmm.default: (torch.randn(3, 6, 4), torch.randn(3, 6, 5), torch.randn(3, 5, 4)),
    aten.linear.default: (torch.randn(3, 6, 5), torch.randn(4, 5), torch.randn(4)),
    aten.embedding.default: (torch.randn(9, 4), torch.randint(9, (3, 6))),
    aten.softmax.int: (X, -1),
    aten._softmax.default: (X, -1, False),
    aten.matmul.default: (torch.randn(3, 6, 5), torch.randn(3, 5, 4)),
}
BINARY = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor}
BINARY |= {aten.maximum.default, aten.minimum.default}


def arguments(target: Any) -> tuple[Any, ...]:
    return CALLS.get(target) or ((X, Y) if target in BINARY else (X,))


def strided(shape: torch.Size) -> torch.Tensor:
    """A buffer that is a slice of the second dim, as a region's output is."""
    rows = list(shape)
    rows[0 if len(shape) == 2 else 1] += 3
    return torch.empty(rows).narrow(
        0 if len(shape) == 2 else 1, 1, shape[0 if len(shape) == 2 else 1]
    )


@pytest.mark.parametrize("target", ANY_LAYOUT, ids=str)
def test_any_layout(target: Any) -> None:
    want = target(*arguments(target))
    for out in (
        strided(want.shape),
        torch.empty(want.shape[::-1]).permute(*range(want.dim())[::-1]),
    ):
        called(ANY_LAYOUT[target])(*arguments(target), out=out.fill_(torch.nan))
        torch.testing.assert_close(out, want)


@pytest.mark.parametrize("target", DENSE, ids=str)
def test_dense(target: Any) -> None:
    want = target(*arguments(target))
    out = torch.full_like(want, torch.nan)
    called(DENSE[target])(*arguments(target), out=out)
    torch.testing.assert_close(out, want)


@pytest.mark.parametrize("target", sorted(OVERWRITES, key=str), ids=str)
def test_overwrites(target: Any) -> None:
    x, *rest = arguments(target)
    x, want = x.clone(), target(x, *rest)
    called(DENSE[target])(x, *rest, out=x)
    torch.testing.assert_close(x, want)


@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (4, 1)])
@pytest.mark.parametrize("keys", [13, 17, 11])
def test_causal_rows(heads: tuple[int, int], keys: int) -> None:
    """Any run of rows is that of the whole, whether keys are as many as queries or not."""
    q = torch.randn(2, heads[0], 13, 8)
    k, v = torch.randn(2, heads[1], keys, 8), torch.randn(2, heads[1], keys, 8)
    grouped = heads[0] != heads[1]
    want = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    for part in (1, 2, 5, 13):
        rows = [
            causal_rows(q[:, :, a : a + part], k, v, is_causal=a, enable_gqa=grouped)
            for a in range(0, 13, part)
        ]
        torch.testing.assert_close(torch.cat(rows, 2), want, rtol=1e-5, atol=1e-5)
