"""Fused projections are taken apart where all readers are slices."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from quire.rewrite import simplify

from .programs import aten, calls, check_equal, count, program_of

N, S, K, H, D = 2, 40, 64, 4, 32
W = 3 * H * D


def cut(function: Any, *args: torch.Tensor, parts: int, dynamic: Any = None) -> Any:
    before = program_of(function, *args, dynamic=dynamic)
    after = simplify(before)
    check_equal(before, after, *args, tolerance=1e-5)
    assert count(after, aten.linear.default) == parts
    return after


def inputs(rows: int = S) -> tuple[torch.Tensor, ...]:
    return torch.randn(N, rows, K), torch.randn(W, K), torch.randn(W)


def test_fused_qkv_by_split() -> None:
    def gpt2(x: Any, w: Any, b: Any) -> Any:
        q, k, v = torch.addmm(b, x.view(-1, K), w.mT).view(N, -1, W).split(H * D, dim=2)
        return q.exp(), k.sin(), v.cos()

    after = cut(gpt2, *inputs(), parts=3)
    assert all(op["weight"].shape == (H * D, K) for op in calls(after, aten.linear.default))
    notes: list[str] = []
    simplify(program_of(gpt2, *inputs()), notes)
    assert notes == ["the model in 3 parts"]


def test_fused_qkv_by_view_and_permute() -> None:
    def timm(x: Any, w: Any, b: Any) -> Any:
        qkv = F.linear(x, w, b).view(N, -1, 3, H, D).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return q.exp(), k.sin(), v.cos()

    cut(timm, *inputs(), parts=3)
    length = torch.export.Dim("length", min=33, max=256)
    after = cut(timm, *inputs(), parts=3, dynamic=[{1: length}, None, None])
    before = program_of(timm, *inputs(), dynamic=[{1: length}, None, None])
    check_equal(before, after, torch.randn(N, 77, K), *inputs()[1:])


def test_slices_of_a_split_dim_and_of_a_transpose() -> None:
    def uneven(x: Any, w: Any, b: Any) -> Any:
        y = F.linear(x, w, b).view(N, S, 3 * H, D)
        return y[:, :, :H].exp(), y[:, :, H : 2 * H].sin(), y[:, :, -H:].cos()

    def turned(x: Any, w: Any, b: Any) -> Any:
        a, b = F.linear(x, w, b).transpose(1, 2).chunk(2, dim=1)
        return a.exp(), b.sin()

    cut(uneven, *inputs(), parts=3)
    cut(turned, *inputs(), parts=2)


def whole(x: Any, w: Any, b: Any) -> Any:
    y = F.linear(x, w, b)
    return y[..., :64].exp(), y[..., 64:].sin(), y.sum()


def overlapping(x: Any, w: Any, b: Any) -> Any:
    y = F.linear(x, w, b)
    return y[..., :96].exp(), y[..., 64:].sin()


def strided(x: Any, w: Any, b: Any) -> Any:
    y = F.linear(x, w, b)
    return y[..., ::2].exp(), y[..., 1::2].sin()


def rows_of_x(x: Any, w: Any, b: Any) -> Any:
    y = F.linear(x, w, b)
    return y[:, :20].exp(), y[:, 20:].sin()


def by_head(x: Any, w: Any, b: Any) -> Any:
    """Q, K and V of each head side by side: their rows of W do not lie together."""
    q, k, v = F.linear(x, w, b).view(N, S, H, 3 * D).permute(0, 2, 1, 3).chunk(3, dim=-1)
    return q.exp(), k.sin(), v.cos()


def one_slice(x: Any, w: Any, b: Any) -> Any:
    return F.linear(x, w, b)[..., :64].exp()


def test_other_readers_leave_the_projection_whole() -> None:
    for function in (whole, overlapping, strided, rows_of_x, by_head, one_slice):
        cut(function, *inputs(), parts=1)


def test_few_rows_or_narrow_parts_leave_it_whole() -> None:
    def halves(x: Any, w: Any, b: Any) -> Any:
        a, b = F.linear(x, w, b).chunk(2, -1)
        return a.exp(), b.sin()

    cut(halves, *inputs(rows=8), parts=1)
    cut(halves, torch.randn(N, S, K), torch.randn(32, K), torch.randn(32), parts=1)
    cut(halves, torch.randn(N, S, K), torch.randn(64, K), torch.randn(64), parts=2)
