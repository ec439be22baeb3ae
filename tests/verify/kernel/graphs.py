"""Small graphs for the proof of kernels, one for each op that needs a word of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

F = nn.functional
torch.manual_seed(0)
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


def masked(x: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
    """Attention whose weights are stored, over the keys that are live in each row."""
    low = torch.finfo(x.dtype).min
    scores = x @ x.mT * 0.3 + torch.where(live[:, None] != 0, 0.0, low)
    weights = scores.softmax(-1)
    return weights @ x + weights.sum(1, keepdim=True).mT


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
    "pools": (lambda x: F.max_pool2d(x, 3, 2, 1) - F.avg_pool2d(x, 2), (IMAGE,)),
    "patches": (Patches(), (IMAGE,)),
    "buckets": (Bucketed(), tuple(torch.rand(1, 2, 12, 4) for _ in range(3))),
    "masked": (masked, (X, (torch.arange(6) < 4).long().expand(2, 6).contiguous())),
    "index": (lambda x: x[:, AT] * x.index_select(1, torch.tensor([1, 1, 5])), (X,)),
    "index by input": (lambda x, i: x[:, i], (X, AT)),
    "gather": (lambda x, i: x.gather(2, i), (X, torch.randint(8, (2, 6, 3)))),
    "scatter": (lambda x: x.scatter(1, torch.full((2, 1, 8), 3), x[:, :1] * 9), (X,)),
    "scatter by input": (
        lambda x, i: x.scatter(1, i, x[:, :1] * 9), (X, torch.randint(6, (2, 1, 8))),
    ),
}  # fmt: skip


def graph(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """The module of that name, with seeded weights, and inputs for it."""
    f, args = OPS[name]
    return f if isinstance(f, nn.Module) else Op(f), args
