"""Ops of fused graphs: each is proved, and lies about its emitted source are not accepted."""

from __future__ import annotations

from functools import cache
from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn

from quire.fusing import tables_of
from quire.kernel.compile import KernelPlan
from quire.verify.kernel.prove import prove_kernel
from tools.mutate_kernel import lies, plan_of_graph

F = nn.functional
X = torch.rand(2, 6, 8)
IMAGE = torch.rand(2, 3, 8, 10)


class Op(nn.Module):
    def __init__(self, f: Any) -> None:
        super().__init__()
        self.f = f

    def forward(self, *xs: torch.Tensor) -> Any:
        return self.f(*xs)


class Bucketed(nn.Module):
    """Attention with a bias by relative position, in buckets that grow with a logarithm (T5)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 2)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        n = q.shape[-2]
        gap = torch.arange(n)[None, :] - torch.arange(n)[:, None]
        far = gap.abs()
        large = 3 + (torch.log(far.float() / 3) / 2.0 * 3).to(torch.long)
        large = torch.min(large, torch.full_like(large, 5))
        bucket = (gap > 0).to(torch.long) * 6 + torch.where(far < 3, far, large)
        bias = self.table(bucket).permute(2, 0, 1)[None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)


class Patches(nn.Module):
    """An image cut into patches, a class token before them, a table of positions (ViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, 6, (4, 2), stride=(4, 2))
        self.first = nn.Parameter(torch.rand(1, 1, 6))
        self.places = nn.Parameter(torch.rand(1, 11, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.cut(x).flatten(2).transpose(1, 2)
        return torch.cat([self.first.expand(len(x), -1, -1), rows], 1) + self.places


AT = torch.tensor([2, 0, -1])
OPS: dict[str, tuple[Any, tuple[torch.Tensor, ...]]] = {
    "roll": (lambda x: x.roll((1, -3), (1, 2)), (X,)),
    "cumprod": (lambda x: torch.cumprod(x, -1) + torch.cumprod(x, 1), (X,)),
    "log softmax": (lambda x: x.log_softmax(-1) + x.log_softmax(1), (X,)),
    "rms norm": (lambda x: F.rms_norm(x, (8,)), (X,)),
    "einsum": (lambda x: torch.einsum("bik,bjk->ij", x, x), (X,)),
    "convolution": (nn.Conv2d(3, 4, 3), (IMAGE,)),
    "padded, strided": (nn.Conv2d(3, 4, 3, padding=(1, 2), stride=(2, 1)), (IMAGE,)),
    "groups, dilated": (nn.Conv2d(3, 6, (2, 3), groups=3, dilation=(1, 2)), (IMAGE,)),
    "one dim": (nn.Conv1d(6, 4, 3, padding=1), (X,)),
    "patches": (Patches(), (IMAGE,)),
    "buckets": (Bucketed(), tuple(torch.rand(1, 2, 12, 4) for _ in range(3))),
    "index": (lambda x: x[:, AT] * x.index_select(1, torch.tensor([1, 1, 5])), (X,)),
    "index by input": (lambda x, i: x[:, i], (X, AT)),
    "gather": (lambda x, i: x.gather(2, i), (X, torch.randint(8, (2, 6, 3)))),
    "scatter": (lambda x: x.scatter(1, torch.full((2, 1, 8), 3), x[:, :1] * 9), (X,)),
    "scatter by input": (lambda x, i: x.scatter(1, i, x[:, :1] * 9), (X, torch.ones(2, 1, 8).long())),
}  # fmt: skip


@cache
def plan(name: str) -> KernelPlan:
    torch.manual_seed(0)
    f, args = OPS[name]
    return plan_of_graph(f if isinstance(f, nn.Module) else Op(f), args)


@pytest.mark.parametrize("name", OPS)
def test_proved(name: str) -> None:
    made = plan(name)
    found = prove_kernel(made.program, made.source, tables_of(made), witness=False)
    assert (found.verdict, found.reason) == ("proved", "")


@pytest.mark.parametrize("name", OPS)
def test_no_lie_is_accepted(name: str) -> None:
    made = plan(name)
    told = list(islice(lies(made, 0), 6))
    assert len({kind for kind, _, _ in told}) > 3
    accepted = [
        (kind, source) for kind, source, other in told
        if prove_kernel(made.program, source, other, witness=False).verdict == "proved"
    ]  # fmt: skip
    assert accepted == []
